"""Matches tenants' regular expressions, which could run for ever: all but simple ones are tried in a process
of their own, for a limited time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence

from stoa.errors import InvalidAdapter

_TIMEOUT_S = 5.0
_BEFORE_END = r"(.*\.)?"
_REPEATS = re.compile(r"(?<!\\)(?<!\()[*+?{]")  # escaped signs and "(?:" repeat nothing
_PROGRAM = (
    "import json, re, sys; patterns, names = json.load(sys.stdin); compiled = [re.compile(p) for p in patterns]; "
    "json.dump([[c.fullmatch(n) is not None for c in compiled] for n in names], sys.stdout)"
)


def match_ends(patterns: Iterable[str], names: Sequence[str], field: str) -> list[list[bool]]:
    """[name][pattern]: does it match the whole name, or its end after a dot?"""
    return match_all([f"{_BEFORE_END}({p})$" for p in patterns], names, field)


def match_all(patterns: Sequence[str], names: Sequence[str], field: str) -> list[list[bool]]:
    """[name][pattern]: does it match the whole name? Raises InvalidAdapter, which names the config's `field`."""
    try:
        compiled = [re.compile(p) for p in patterns]
    except (re.error, RecursionError, OverflowError) as error:
        raise InvalidAdapter(f"{field} holds a malformed regular expression: {error}") from None
    if all(map(_is_simple, patterns)):
        return [[c.fullmatch(n) is not None for c in compiled] for n in names]
    return _match_apart(patterns, names, field)


def _is_simple(pattern: str) -> bool:
    """No repetition and few alternatives: matching ends soon, whatever the pattern."""
    own = pattern.removeprefix(_BEFORE_END)
    return _REPEATS.search(own) is None and own.count("|") <= 8


def _match_apart(patterns: Sequence[str], names: Sequence[str], field: str) -> list[list[bool]]:
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _PROGRAM],
            input=json.dumps([patterns, names]),
            capture_output=True,
            check=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise InvalidAdapter(
            f"{field}: its regular expressions take over {_TIMEOUT_S:g} s to match"
        ) from None
    except (OSError, subprocess.CalledProcessError) as error:
        raise InvalidAdapter(f"{field}: its regular expressions cannot be matched: {error}") from None
    result: list[list[bool]] = json.loads(done.stdout)
    return result
