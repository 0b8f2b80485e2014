"""An event that a projection cannot deal with: parked with its error, until somebody retries or skips it.

The projection halts before it, for billing never guesses, and the others go on. What was skipped is left out by every
replay too, and every report says so: who decided it, and why.
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

LONGEST_REASON: Final = 500


class NothingParked(Refusal):
    """The projection is not halted, so there is nothing to retry or to skip."""


class NoReason(Refusal):
    """An event is skipped for a reason, which every later report repeats."""


@dataclass(frozen=True)
class Parked:
    """The event that a projection halts before, and why."""

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
    """An event that a projection leaves out for good; who decided so, and why."""

    name: str
    position: int
    topic: str
    error: str
    actor: str
    reason: str
    skipped_at: datetime


def said(error: BaseException) -> str:
    """What went wrong, in one line. What the database adds to its own first line repeats rows, so it is left out."""
    first = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first}".replace("\x00", "\\x00")


def park(conn: Connection[DictRow], projection: Projection, row: LogRow, error: BaseException) -> None:
    """Park an event with its error; where it was parked before, count one more attempt."""
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
    """Forget what was parked: the projection has come past it."""
    conn.execute("DELETE FROM projection.parked WHERE name = %s AND position <= %s", (name, position))


def parked(conn: Connection[Any]) -> Mapping[str, Parked]:
    """What each projection that is halted halts before."""
    found = conn.cursor(row_factory=class_row(Parked)).execute("SELECT * FROM projection.parked ORDER BY name")
    return {row.name: row for row in found}


def skipped(conn: Connection[Any], name: str) -> Sequence[Skipped]:
    """What a projection leaves out for good."""
    query = "SELECT * FROM projection.skipped WHERE name = %s ORDER BY position"
    return conn.cursor(row_factory=class_row(Skipped)).execute(query, (name,)).fetchall()


def skipped_positions(conn: Connection[Any], name: str) -> frozenset[int]:
    """The positions of what a projection leaves out."""
    return frozenset(row.position for row in skipped(conn, name))


def retry(conn: Connection[DictRow], name: str) -> int:
    """Ask for another attempt at what is parked; whoever runs the projection makes it. Gives the position.

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
    """Leave out what is parked, for good. Gives its position.

    Raises:
        NothingParked: the projection is not halted.
        NoReason: there is none, or one that is too long.
    """
    reason = reason.strip()
    if not reason or len(reason) > LONGEST_REASON:
        raise NoReason(f"Say why {name} may leave this event out, in 1 to {LONGEST_REASON} characters.")
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
    return NothingParked(f"The projection {name} is not halted; trunkline projections list shows where each one is.")
