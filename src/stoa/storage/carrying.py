"""Transactions that are not torn by cancellation: a connection that is cancelled in the middle of a statement is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def carried_through(work: Coroutine[Any, Any, T] | asyncio.Task[T]) -> T:
    """`work` to its end, also if the caller is cancelled meanwhile: the cancellation comes after it. A task may have
    several callers."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # nobody is left to be told
        raise
