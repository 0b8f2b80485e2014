"""Given past events, when more happen, then these rows are new, changed in these columns, or deleted.

given(ORDERS, requested).when(placed).then({"order-1": {"state": "placed", ...}})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime

from domain.messages import Event
from infra.recorded import Cause, Recorded
from projections.engine.projection import Projection
from projections.engine.rows import Row
from tests.support.examples import NOW

CAUSE = Cause("distributor:dora", "wish-1", "click-1")

Difference = Row | Mapping[str, object] | None
"""A new row, the changed columns with their new values, or None if the row was deleted."""


def recorded(event: Event, position: int, account_id: str | None = "acme", at: datetime = NOW) -> Recorded:
    """An event as the log returns it, from the stream of all events."""
    return Recorded("everything", position, event, account_id, CAUSE, at, position)


def given(projection: Projection, *events: Event) -> Given:
    """A read model folded from these events."""
    return Given(projection).after(events)


@dataclass(frozen=True)
class Given:
    """A read model and the history it was folded from."""

    projection: Projection
    history: tuple[Recorded, ...] = ()

    def after(self, events: Sequence[Event]) -> Given:
        """Fold more events."""
        begin = len(self.history) + 1
        more = tuple(recorded(event, position) for position, event in enumerate(events, start=begin))
        return replace(self, history=self.history + more)

    def when(self, *events: Event) -> When:
        """Fold one event or several."""
        return When(self, self.after(events))

    @property
    def rows(self) -> dict[str, Row]:
        """All rows of all tables by primary key, written as ``order-1/capture-1``."""
        folded = self.projection.folded(self.history)
        rows = [row for table in self.projection.tables for row in folded.of(table)]
        return {"/".join(map(str, row.key())): row for row in rows}


@dataclass(frozen=True)
class When:
    """The read model before and after."""

    before: Given
    after: Given

    def then(self, expected: Mapping[str, Difference]) -> Given:
        """Expect that exactly these rows and columns are new, changed or deleted."""
        before, after = self.before.rows, self.after.rows
        different = {
            key: _difference(before.get(key), after.get(key))
            for key in (*before, *after)
            if before.get(key) != after.get(key)
        }
        assert different == expected
        return self.after

    def then_nothing(self) -> Given:
        """Expect that no row changed."""
        return self.then({})


def _difference(before: Row | None, after: Row | None) -> Difference:
    if before is None or after is None:
        return after
    old = asdict(before)  # type: ignore[call-overload]  # every row class is a dataclass
    new = asdict(after)  # type: ignore[call-overload]  # as above
    return {column: value for column, value in new.items() if value != old[column]}
