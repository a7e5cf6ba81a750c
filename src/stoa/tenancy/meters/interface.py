"""What is counted, and the two verbs: reserve before the work, settle after it.

Names are "ORGANIZATION/…/WHAT". All meters of one reservation belong to one organization: what stands before the first
"/" decides where they are kept.

A rate is a bucket. It is kept as the amount in it that has not flowed off yet (0: the whole limit is there), and
`per_minute` flows off each minute. Whatever flows off is taken from all reservations in proportion, so a late
settlement gives back only that part of the unused that is still in the bucket: nothing comes back twice. Another
limit counts from the first reservation that asks with it, let in or not. Hence, for
any stretch of w seconds, what the requests admitted in it use is at most limit x (1 + w / 60), plus what answers
grew beyond their reservations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

TOKEN = 60_000  # units of a bucket in one token: `per_minute` units flow off each millisecond, all in whole numbers
FADED = 1e-200  # a share smaller than this starts a new era: what was reserved before has flowed off
REMEMBER_SETTLED_S = 120  # a settlement repeated within this time changes nothing
FORGET_SPENT_S = 86_400  # the sum of a budget that nobody touched so long is asked of the ledger again


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `per_minute` at once, refilled evenly over a minute. Settlement may take it below zero."""

    name: str
    per_minute: int
    take: int


@dataclass(frozen=True, slots=True)
class Gauge:
    """At most `limit` holders at once; a hold is one."""

    name: str
    limit: int


@dataclass(frozen=True, slots=True)
class Spend:
    """A budget, in nano-dollars: spent + held + take may not exceed the limit. None: only counted."""

    name: str
    limit_nanos: int | None
    take: int


Meter = Rate | Gauge | Spend


@dataclass(frozen=True, slots=True)
class Level:
    """A meter after a reservation. `remaining` is never negative; `reset_s`: until a rate is full again."""

    limit: int | None
    remaining: int | None
    reset_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a rate's bucket stood at the reservation: its era, and the part of the era's content still there."""

    era: int
    share: float


@dataclass(frozen=True, slots=True)
class Hold:
    """What was reserved. `levels` and `marks` go with `meters`, one each; marks are None but for rates."""

    id: str
    meters: tuple[Meter, ...]
    levels: tuple[Level, ...]
    marks: tuple[Mark | None, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was reserved. `meter` is the first in order that had no room (one that `never` has room comes before
    others), `used` how much of it is taken.

    `retry_after_s`: when the same request would fit if nothing else came; None where time alone does not help
    (gauges, budgets). `never`: the request is larger than the whole limit. `unknown`: the budget's spent amount is
    not known here; `seed` it and ask again.
    """

    meter: Meter
    used: int = 0
    retry_after_s: float | None = None
    never: bool = False
    unknown: bool = False


class Meters(Protocol):
    """Kept in this process (`memory.py`), or in Redis for all gateways together (`redis.py`)."""

    async def reserve(self, wanted: Sequence[Meter], *, lease_s: float) -> Hold | Refused:
        """All of `wanted` (of one organization, each name once) or nothing, at one moment. Gauges and budgets count the
        hold until it is settled, or until `lease_s` has passed without `renew`. Raises DatabaseUnavailable."""
        ...

    async def settle(self, hold: Hold, used: Mapping[str, int]) -> dict[str, int]:
        """Ends a hold with what it really used, by meter name; a meter not named used nothing.

        Rates take more, or give the unused back; gauges are freed; budgets count `used` nano-dollars as spent.
        A second settlement changes nothing. One that comes after the lease ran out is counted all the same.
        Returns what each known budget of the hold has spent now; nothing the second time. Raises DatabaseUnavailable.
        """
        ...

    async def renew(self, holds: Sequence[Hold], *, lease_s: float) -> None:
        """Their leases end `lease_s` from now; holds that had run out count again. Settled ones stay settled."""
        ...

    async def seed(self, name: str, spent_nanos: int) -> bool:
        """Sets a budget's spent amount if it is not known; returns whether that was needed.

        Settlements of a budget that is not known are not counted: the ledger has them, and is asked for the seed.
        """
        ...

    async def known(self, name: str) -> bool:
        """Whether the spent amount of a budget is known here."""
        ...

    async def close(self) -> None: ...


def owner_of(name: str) -> str:
    return name.partition("/")[0]
