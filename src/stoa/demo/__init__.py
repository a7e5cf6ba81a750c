"""The bundled demonstration model: a tiny Llama that echoes, and adapters that each do one thing to a word.

What each adapter must answer is a pure function (`tasks.py`), so that a mix-up between tenants shows. The
scripts that trained them are in `scripts/demo/` of the repository.
"""

from __future__ import annotations

from pathlib import Path

MODEL_ID = "stoa-demo"
BASE_DIR = Path(__file__).parent / "base"
ADAPTERS_DIR = Path(__file__).parent / "adapters"
