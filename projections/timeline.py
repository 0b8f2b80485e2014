"""What happened in an account, in order: who caused it, and why?"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from psycopg import Connection

from domain.messages import Event
from infra.recorded import Recorded
from projections.engine.pages import PAGE_SIZE, Condition, Page, page
from projections.engine.projection import Projection
from projections.engine.rows import Row, Rows


@dataclass
class TimelineRow(Row):
    """One event of an account, with its position. Its body is only in the log."""

    TABLE: ClassVar = "timeline"
    KEY: ClassVar = ("position",)
    PARTITION: ClassVar = "position"

    position: int
    account_id: str
    stream: str
    version: int
    topic: str
    event_id: UUID
    actor: str
    correlation_id: str
    causation_id: str | None
    recorded_at: datetime


def fold(rows: Rows, recorded: Recorded) -> None:
    """Add a row for the event, unless it belongs to no account, as a price list."""
    if recorded.account_id is None:
        return
    cause = recorded.cause
    rows.put(
        TimelineRow(
            position=recorded.position,
            account_id=recorded.account_id,
            stream=recorded.stream,
            version=recorded.version,
            topic=recorded.event.TOPIC,
            event_id=recorded.event_id,
            actor=cause.actor,
            correlation_id=cause.correlation_id,
            causation_id=cause.causation_id,
            recorded_at=recorded.recorded_at,
        )
    )


TIMELINE = Projection(
    name="timeline",
    tables=(TimelineRow,),
    events=(Event,),
    partition=lambda recorded: recorded.position,
    fold=fold,
    bodies=False,
    append_only=True,
)


def timeline(
    conn: Connection[Any], account_id: str, cursor: str | None = None, size: int = PAGE_SIZE
) -> Page[TimelineRow]:
    """Return what happened in an account, newest first."""
    conditions: list[Condition] = [("account_id = %s", account_id)]
    return page(conn, TimelineRow, conditions, ("position",), newest_first=True, cursor=cursor, size=size)
