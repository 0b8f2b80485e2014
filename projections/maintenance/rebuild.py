"""Rebuild read models in shadow tables, and swap them in.

Accounts are replayed in parts (`projections.maintenance.replay`). Events that were appended meanwhile are then
projected one by one, as they would be live. At the end the live projection is held for a moment, the rest is projected,
and the new tables replace the old ones together with the position, in one transaction: nobody sees a half-built view,
and no event is missed or applied twice.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg import Connection
from psycopg.rows import DictRow

from infra.event_log.log import Log
from infra.postgres.positions import drop_position, move_position, position_of
from projections.engine.batches import catch_up, head_of, locked_position, position_name
from projections.engine.poison import Skipped, passed, skipped
from projections.engine.projection import Projection
from projections.maintenance.replay import (
    CannotRebuild,
    OnProgress,
    begin,
    count_rows,
    fill,
    hold,
    index,
    release,
    resumes,
    silent,
    working_connection,
)

SHADOW: Final = "shadow"
SWAP_LAG_MAX: Final = 500
"""The largest lag, in positions, at which a rebuild holds the live projection for the rest."""

SWAP_LOCK_MS: Final = 500
"""How long a swap waits for readers: less than the deadlock timeout of the server."""

SWAP_WAIT_MAX_S: Final = 60.0


@dataclass(frozen=True)
class Rebuilt:
    """The result of a rebuild: the position that it reached, and the number of rows in each table."""

    names: Sequence[str]
    position: int
    rows: Mapping[str, int]
    resumed: bool
    took_s: float
    skipped: Sequence[Skipped]


def rebuild(
    database_url: str,
    log: Log,
    projections: Sequence[Projection],
    on_progress: OnProgress = silent,
    processes: int | None = None,
) -> Rebuilt:
    """Rebuild read models and swap them in. Resumes a rebuild that was interrupted.

    Raises:
        CannotRebuild: an event cannot be folded, or another process is rebuilding one of them.
    """
    started, names = time.monotonic(), [projection.name for projection in projections]
    with working_connection(database_url) as conn, ExitStack() as stack:
        hold(conn, SHADOW, projections)
        stack.callback(release, conn)
        fresh = [projection for projection in projections if not resumes(conn, SHADOW, projection)]
        begin(conn, SHADOW, fresh, head_of(conn))
        fill(database_url, conn, log, SHADOW, projections, on_progress, processes)
        for done, projection in enumerate(projections):
            on_progress("indexes", done, len(projections))
            index(conn, SHADOW, projection)
        position, rows = 0, dict[str, int]()
        for done, projection in enumerate(projections):
            on_progress("the rest, and the swap", done, len(projections))
            position = _swap_when_free(conn, log, projection)
            rows |= {table.TABLE: count_rows(conn, table) for table in projection.tables}
        on_progress("the rest, and the swap", len(projections), len(projections))
        left_out = [skip for projection in projections for skip in skipped(conn, projection.name)]
    return Rebuilt(names, position, rows, len(fresh) < len(projections), time.monotonic() - started, left_out)


# --- the swap


def _swap_when_free(conn: Connection[DictRow], log: Log, projection: Projection) -> int:
    """Project the rest and swap the new tables in, once no reader is in the way. Returns their position."""
    deadline = time.monotonic() + SWAP_WAIT_MAX_S
    pause_s = 0.05
    while True:
        position = position_of(conn, position_name(projection, SHADOW))
        while head_of(conn) - position > SWAP_LAG_MAX:
            position, _ = catch_up(conn, log, projection, schema=SHADOW)
        try:
            return _swap(conn, log, projection)
        except psycopg.errors.LockNotAvailable:
            if time.monotonic() > deadline:
                raise CannotRebuild(
                    f"{projection.name} is rebuilt, but readers have held its tables for {SWAP_WAIT_MAX_S:g} s; "
                    "run the rebuild again to continue from here."
                ) from None
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)


def _swap(conn: Connection[DictRow], log: Log, projection: Projection) -> int:
    with conn.transaction():
        conn.execute(f"SET LOCAL lock_timeout = {SWAP_LOCK_MS}")
        conn.execute("SET LOCAL synchronous_commit = on")
        locked_position(conn, projection)  # the live projection waits until the commit
        while catch_up(conn, log, projection, schema=SHADOW)[1]:
            continue
        position = position_of(conn, position_name(projection, SHADOW))
        conn.execute("SELECT projection.take_place(%s)", ([table.TABLE for table in projection.tables],))
        move_position(conn, projection.name, position)
        drop_position(conn, position_name(projection, SHADOW))
        conn.execute("DELETE FROM projection.rebuilds WHERE place = %s AND name = %s", (SHADOW, projection.name))
        passed(conn, projection.name, position)
    return position
