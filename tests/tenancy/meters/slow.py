"""What meters mean, without any thought of speed: every reservation is a parcel of its own, in exact fractions."""

from __future__ import annotations

from fractions import Fraction

from stoa.tenancy.meters import Rate


class SlowBucket:
    """Parcels flow off together, each in proportion to what is left of it."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self.parcels: dict[int, Fraction] = {}
        self.taken: dict[int, int] = {}
        self.now_ms = 0
        self._next = 0

    @property
    def used(self) -> Fraction:
        return sum(self.parcels.values(), Fraction(0))

    def to(self, now_ms: int) -> None:
        gone = Fraction((now_ms - self.now_ms) * self.per_minute, 60_000)
        self.now_ms = now_ms
        used = self.used
        if used > 0:
            left = max(Fraction(0), 1 - gone / used)
            self.parcels = {number: amount * left for number, amount in self.parcels.items()}

    def room(self, take: int) -> Fraction:
        """Negative: refused."""
        return self.per_minute - self.used - take

    def reserve(self, take: int) -> int:
        self._next += 1
        self.parcels[self._next] = Fraction(take)
        self.taken[self._next] = take
        return self._next

    def settle(self, number: int, used: int) -> None:
        """Of what is left of the parcel, the unused part goes."""
        take = self.taken.pop(number)
        if used >= take:
            self.parcels[number] += used - take
        else:
            self.parcels[number] *= Fraction(used, take)

    def rate(self, name: str, take: int) -> Rate:
        return Rate(name, self.per_minute, take)
