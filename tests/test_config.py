"""Settings: who wins, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stoa.config import load_settings
from stoa.errors import ConfigError


def test_flags_win_over_variables_over_the_file(tmp_path: Path) -> None:
    """Each source overrides the one below, key by key."""
    file = tmp_path / "stoa.toml"
    file.write_text("port = 1\nthreads = 1\nmax_queue = 1\n")
    env = {"STOA_PORT": "2", "STOA_THREADS": "2"}
    settings = load_settings({"port": 3, "threads": None}, file=file, environ=env)
    assert (settings.port, settings.threads, settings.max_queue) == (3, 2, 1)


@pytest.mark.parametrize(
    ("text", "flags", "match"),
    [
        ("colour = 1", {}, "unknown setting 'colour'"),
        ("port = 'many'", {}, "stoa.toml: port"),
        ("port = ", {}, "cannot be read"),
        ("", {"dtype": "int3"}, "command line: dtype is 'int3'; accepted: auto, bf16, fp32"),
        ("", {"threads": -1}, "threads is -1; accepted: an integer, at least 0 and at most 256"),
        ("", {"max_num_seqs": 0}, "max_num_seqs is 0"),
        ("", {"max_batch_tokens": -3}, "at least 0"),
        ("pool_gib = nan", {}, "pool_gib is nan; accepted: a number"),
        ("port = 99999", {}, "port is 99999"),
    ],
)
def test_what_is_wrong_is_named_with_its_source(
    tmp_path: Path, text: str, flags: dict[str, Any], match: str
) -> None:
    """Unknown keys, wrong types and broken files."""
    file = tmp_path / "stoa.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=match):
        load_settings(flags, file=file, environ={})
