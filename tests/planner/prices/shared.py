"""Where the real price lists are."""

from __future__ import annotations

from pathlib import Path

import pytest

DATA = Path(__file__).parents[4] / "shared" / "data"
PRICES = DATA / "prices"
needs_data = [
    pytest.mark.data,
    pytest.mark.skipif(not PRICES.exists(), reason="the shared data folder is not there"),
]


def write(folder: Path, text: str, name: str = "prices.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path
