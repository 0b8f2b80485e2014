"""Events that a projection cannot handle: parked with their error until a person retries or skips them.

The projection halts before such an event, because billing never guesses; the others go on. Every replay leaves out what
was skipped, and every report says who decided so, and why.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from psycopg import Connection
from psycopg.rows import DictRow, class_row

from domain.messages import Refusal
from infra.event_log.recorder import LogRow
from projections.engine.projection import Projection

REASON_MAX: Final = 500


class NothingParked(Refusal):
    """The projection is not halted, so there is nothing to retry or skip."""


class NoReason(Refusal):
    """Skipping an event needs a reason, which every later report repeats."""


@dataclass(frozen=True)
class Parked:
    """The event that halts a projection, with its error."""

    name: str
    position: int
    stream: str
    version: int
    topic: str
    error: str
    traceback: str
    attempts: int
    parked_at: datetime
    retry: bool


@dataclass(frozen=True)
class Skipped:
    """An event that a projection skips for good: who decided so, and why."""

    name: str
    position: int
    topic: str
    error: str
    actor: str
    reason: str
    skipped_at: datetime


def said(error: BaseException) -> str:
    """Return an error in one line. Further lines of a database error repeat rows, so they are left out."""
    first = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first}".replace("\x00", "\\x00")


def park(conn: Connection[DictRow], projection: Projection, row: LogRow, error: BaseException) -> None:
    """Park an event with its error, or count another attempt if it is parked already."""
    frames = "".join(traceback.format_tb(error.__traceback__)) + said(error)
    conn.execute(
        "INSERT INTO projection.parked AS p (name, position, stream, version, topic, error, traceback) "
        "VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (name) DO UPDATE SET "
        "attempts = CASE WHEN p.position = excluded.position THEN p.attempts + 1 ELSE 1 END, "
        "position = excluded.position, stream = excluded.stream, version = excluded.version, topic = excluded.topic, "
        "error = excluded.error, traceback = excluded.traceback, parked_at = now(), retry = false",
        (
            projection.name,
            row.id,
            str(row.originator_id),
            row.originator_version,
            row.topic,
            said(error),
            frames.replace("\x00", "\\x00"),
        ),
    )


def passed(conn: Connection[DictRow], name: str, position: int) -> None:
    """Delete the parked event that a projection has passed."""
    conn.execute("DELETE FROM projection.parked WHERE name = %s AND position <= %s", (name, position))


def parked(conn: Connection[Any]) -> Mapping[str, Parked]:
    """Return the parked event of each halted projection."""
    found = conn.cursor(row_factory=class_row(Parked)).execute("SELECT * FROM projection.parked ORDER BY name")
    return {row.name: row for row in found}


def skipped(conn: Connection[Any], name: str) -> Sequence[Skipped]:
    """Return the events that a projection skips."""
    query = "SELECT * FROM projection.skipped WHERE name = %s ORDER BY position"
    return conn.cursor(row_factory=class_row(Skipped)).execute(query, (name,)).fetchall()


def skipped_positions(conn: Connection[Any], name: str) -> frozenset[int]:
    """Return the positions that a projection skips."""
    return frozenset(row.position for row in skipped(conn, name))


def retry(conn: Connection[DictRow], name: str) -> int:
    """Request another attempt at the parked event; the process that runs the projection makes it. Returns its position.

    Raises:
        NothingParked: the projection is not halted.
    """
    found = conn.execute(
        "UPDATE projection.parked SET retry = true WHERE name = %s RETURNING position", (name,)
    ).fetchone()
    if found is None:
        raise _not_halted(name)
    return int(found["position"])


def skip(conn: Connection[DictRow], name: str, actor: str, reason: str) -> int:
    """Skip the parked event for good. Returns its position.

    Raises:
        NothingParked: the projection is not halted.
        NoReason: the reason is empty or too long.
    """
    reason = reason.strip()
    if not reason or len(reason) > REASON_MAX:
        raise NoReason(f"Give a reason why {name} may skip this event, in 1 to {REASON_MAX} characters.")
    with conn.transaction():
        found = conn.execute(
            "WITH gone AS (DELETE FROM projection.parked WHERE name = %s RETURNING *) "
            "INSERT INTO projection.skipped (name, position, topic, error, actor, reason) "
            "SELECT name, position, topic, error, %s, %s FROM gone RETURNING position",
            (name, actor, reason),
        ).fetchone()
    if found is None:
        raise _not_halted(name)
    return int(found["position"])


def _not_halted(name: str) -> NothingParked:
    return NothingParked(f"The projection {name} is not halted; trunkline projections list shows the state of each.")
