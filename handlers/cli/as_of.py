"""Positions and moments on the command line: ``--as-of`` and its like, read the same way by every command."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Protocol

import typer

from domain.messages import Refusal

POSITION_DIGITS_MAX = 18
AsOf = Annotated[str | None, typer.Option(help="A position of the log, or a time with its UTC offset.")]


class UnknownPosition(Refusal):
    """It is neither a position nor a time, or the log has not reached it."""


class History(Protocol):
    """The log, as its writer or as its auditor reads it."""

    def head(self) -> int:
        """The last position; 0 if the log is empty."""
        ...

    def position_at(self, moment: datetime) -> int:
        """The last position that was recorded at a time or before."""
        ...


def position_as_of(history: History, text: str | None) -> int:
    """Return the position that a text names: a position itself, or a time (ISO 8601 with offset). The head for None.

    Position 0 is the log before its first event.

    Raises:
        UnknownPosition: it names neither, or one that the log has not reached.
    """
    if text is None:
        return history.head()
    if _is_number(text):
        return position(text, history)
    found = _time(text)
    if found is None:
        raise UnknownPosition(f"{text} is neither a position nor a time; write 42, or 2026-09-01T12:00:00+00:00.")
    return history.position_at(found)


def position(text: str, history: History) -> int:
    """Return a position that the log has reached.

    Raises:
        UnknownPosition: it is not a whole number, or the log has not reached it.
    """
    head = history.head()
    if not _is_number(text):
        raise UnknownPosition(f"{text} is not a position; write a whole number, up to {head}.")
    if int(text) > head:
        raise UnknownPosition(f"The log ends at position {head}; {text} lies ahead.")
    return int(text)


def moment(text: str) -> datetime:
    """Return a time.

    Raises:
        UnknownPosition: it is not ISO 8601 with a UTC offset.
    """
    found = _time(text)
    if found is None:
        raise UnknownPosition(f"{text} is not a time; write it with its UTC offset, as 2026-09-01T12:00:00+00:00.")
    return found


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= POSITION_DIGITS_MAX


def _time(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else None
