"""Counting what may be had only so often, so many at once, or for so much money."""

from stoa.tenancy.meters.interface import Gauge, Hold, Level, Meter, Meters, Rate, Refused, Spend
from stoa.tenancy.meters.memory import MemoryMeters

__all__ = ["Gauge", "Hold", "Level", "MemoryMeters", "Meter", "Meters", "Rate", "Refused", "Spend"]
