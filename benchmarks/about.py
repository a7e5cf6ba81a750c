"""How a result came about: every benchmark that writes one puts this into it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from stoa.bench.machine import machine_facts


def about() -> dict[str, Any]:
    """Command, with paths outside the project cut to their last part; commit, "-dirty" with changes; machine."""
    words = [Path(a).name if Path(a).is_absolute() else a for a in sys.orig_argv[1:]]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True, check=False
    )
    return {
        "command": " ".join(["python", *words]),
        "commit": commit.stdout.strip(),
        "machine": machine_facts(),
    }
