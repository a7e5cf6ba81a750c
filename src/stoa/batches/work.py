"""What one gateway process does for batches, for those who watch it."""

from __future__ import annotations

from dataclasses import dataclass, field

from stoa.batches.throttle import Throttle


@dataclass
class Work:
    """Lines count once what they came to is in the database; since the process started."""

    completed: int = 0
    failed: int = 0
    not_run: int = 0  # the batch was cancelled, or its window was over
    throttle: Throttle = field(default_factory=Throttle)

    @property
    def in_flight(self) -> int:
        """Lines that have been sent and have no answer yet."""
        return self.throttle.in_flight
