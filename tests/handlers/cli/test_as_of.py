"""Positions and times on the command line: every command parses them the same way."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from handlers.cli.as_of import UnknownPosition, moment, position, position_as_of

RECORDED = datetime(2026, 9, 1, 12, 0, tzinfo=UTC)


@dataclass
class Recorded:
    """A log with 42 events, all recorded at the same time."""

    def head(self) -> int:
        """See `History`."""
        return 42

    def position_at(self, moment: datetime) -> int:
        """See `History`."""
        return 42 if moment >= RECORDED else 0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, 42),
        ("42", 42),
        ("7", 7),
        ("007", 7),
        ("0", 0),
        ("2026-09-01T12:00:00+00:00", 42),
        ("2026-09-01T13:59:59+02:00", 0),
        ("2026-09-01T12:00:00Z", 42),
    ],
)
def test_a_position_or_a_time_names_a_position(text: str | None, found: int) -> None:
    assert position_as_of(Recorded(), text) == found


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("43", "The log ends at position 42; 43 lies ahead."),
        ("-1", "-1 is neither a position nor a time"),
        ("\u0664\u0662", "is neither a position nor a time"),
        ("9" * 400, "is neither a position nor a time"),
        ("", " is neither a position nor a time"),
        ("yesterday", "yesterday is neither a position nor a time"),
        ("2026-09-01T12:00:00", "2026-09-01T12:00:00 is neither a position nor a time"),
    ],
)
def test_anything_else_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(UnknownPosition) as refused:
        position_as_of(Recorded(), text)
    assert sentence in str(refused.value)


def test_a_position_filter_rejects_times_and_a_time_filter_rejects_positions() -> None:
    assert position("42", Recorded()) == 42
    assert moment("2026-09-01T12:00:00+00:00") == RECORDED
    with pytest.raises(UnknownPosition, match="is not a position; write a whole number, up to 42"):
        position("2026-09-01T12:00:00+00:00", Recorded())
    with pytest.raises(UnknownPosition, match="42 is not a time"):
        moment("42")
