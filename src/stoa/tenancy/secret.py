"""Secrets of API keys: how they look, and what is kept of them."""

from __future__ import annotations

import hashlib
import re
import secrets

_PREFIX = "sk-stoa-"
_ADMIN_PREFIX = "sk-stoa-admin-"
_SHAPE = re.compile(r"sk-stoa-(admin-)?[A-Za-z0-9_-]{43}", re.ASCII)


def new_secret(*, admin: bool) -> str:
    """256 random bits in 43 characters of the URL's alphabet, after a prefix."""
    return (_ADMIN_PREFIX if admin else _PREFIX) + secrets.token_urlsafe(32)


def hash_secret(secret: str) -> str:
    """SHA-256 in hex. One round is enough: nobody guesses 256 random bits, however fast the hash."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def redact(secret: str) -> str:
    """sk-stoa-…abcd"""
    return (_ADMIN_PREFIX if secret.startswith(_ADMIN_PREFIX) else _PREFIX) + "…" + secret[-4:]


def is_well_formed(secret: str) -> bool:
    """Whether it can be one of ours at all: what cannot is refused without a look at the database."""
    return _SHAPE.fullmatch(secret) is not None
