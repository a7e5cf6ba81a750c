"""The string under which the engine books a request's use: project, key and model in one."""

from __future__ import annotations

from typing import NamedTuple

SEPARATOR = "\x1f"  # ASCII's unit separator: in no identifier
NO_ACCOUNT_PROJECT = "default"  # use without an account, such as that of an engine used alone


class Account(NamedTuple):
    project_id: str
    key_id: str | None
    model: str

    def __str__(self) -> str:
        """As `GenerationRequest.account` and `AccountLine.account` carry it."""
        return SEPARATOR.join((self.project_id, self.key_id or "", self.model))


def parse_account(text: str) -> Account:
    """The reverse of `str(account)`. Text of another form belongs to the default project."""
    parts = text.split(SEPARATOR)
    if len(parts) != 3 or not parts[0]:
        return Account(NO_ACCOUNT_PROJECT, None, "")
    return Account(parts[0], parts[1] or None, parts[2])
