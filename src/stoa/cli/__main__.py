"""`python -m stoa.cli`: the `stoa` command without its script."""

from stoa.cli import main

main()
