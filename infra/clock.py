"""The time of day, handed in: nothing in Trunkline asks the machine for it by itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from."""

    def now(self) -> datetime:
        """This moment, in UTC, aware."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """This moment, in UTC."""
        return datetime.now(UTC)


class ShiftedClock:
    """The machine's clock, shifted: for a demonstration in which days pass, and for tests."""

    def __init__(self, start: datetime) -> None:
        self._shift = start - datetime.now(UTC)

    def now(self) -> datetime:
        """This moment, as shifted so far."""
        return datetime.now(UTC) + self._shift

    def advance(self, by: timedelta) -> None:
        """Let time pass."""
        self._shift += by
