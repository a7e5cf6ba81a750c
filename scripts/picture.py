"""Draws README's picture from a real run: starts the bundled model, talks to it, saves the terminal as SVG.

python scripts/picture.py docs/images/terminal.svg
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

TALK = [
    ["stoa", "chat", "hello", "--model", "reverse"],
    ["stoa", "chat", "hello", "--model", "upper"],
    ["stoa", "chat", "hello", "--model", "caesar"],
    ["stoa", "chat", "hello"],
]


def main() -> None:
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "STOA_HOME": home}
        server = subprocess.Popen(["stoa", "serve"], stdout=subprocess.PIPE, text=True, env=environment)
        assert server.stdout is not None
        try:
            ready = [server.stdout.readline().rstrip() for _ in range(4)]
            answers = [_run(command, environment) for command in TALK]
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
    console = Console(record=True, width=104, file=open(os.devnull, "w"))  # noqa: SIM115
    _show(console, ["stoa", "serve"], ready)
    for command, answer in zip(TALK, answers, strict=True):
        _show(console, command, [answer])
    target.parent.mkdir(parents=True, exist_ok=True)
    console.save_svg(str(target), title="stoa", unique_id="stoa")


def _run(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()


def _show(console: Console, command: list[str], lines: list[str]) -> None:
    console.print(Text("$ " + shlex.join(command), style="bold"))
    for line in lines:
        console.print(Text(line), overflow="ellipsis", no_wrap=True)


if __name__ == "__main__":
    main()
