"""Clocks. Time is injected: nothing else in Trunkline reads the clock of the machine."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """A source of time."""

    def now(self) -> datetime:
        """Return the present time, in UTC, aware."""


class SystemClock:
    """The clock of the machine."""

    def now(self) -> datetime:
        """Return the present time, in UTC."""
        return datetime.now(UTC)


class ShiftedClock:
    """A shifted clock, for tests, and for the demo, in which days pass."""

    def __init__(self, start: datetime) -> None:
        self._shift = start - datetime.now(UTC)

    def now(self) -> datetime:
        """Return the shifted time."""
        return datetime.now(UTC) + self._shift

    def advance(self, by: timedelta) -> None:
        """Move the clock forward."""
        self._shift += by
