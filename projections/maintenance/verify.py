"""Verify a read model: replay it in a scratch schema, and compare it with the live one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from psycopg import Connection, sql
from psycopg.rows import DictRow

from infra.event_log.log import Log
from infra.postgres.positions import position_of
from projections.engine.batches import catch_up
from projections.engine.poison import Skipped, skipped
from projections.engine.projection import Projection
from projections.engine.rows import Row, Shape
from projections.maintenance.replay import (
    OnProgress,
    begin,
    count_rows,
    fill,
    forget,
    hold,
    index,
    release,
    silent,
    working_connection,
)

SCRATCH: Final = "scratch"
DIFFERENCES_MAX: Final = 20


@dataclass(frozen=True)
class Difference:
    """A row that differs from its replay; None on the side that has no such row."""

    table: str
    key: Mapping[str, Any]
    live: Mapping[str, Any] | None
    replay: Mapping[str, Any] | None


@dataclass(frozen=True)
class Verified:
    """The comparison of the live tables of a projection with their replay, at a position."""

    name: str
    position: int
    rows: Mapping[str, int]
    checksums: Mapping[str, tuple[str, str]]
    differences: Sequence[Difference]
    skipped: Sequence[Skipped]

    @property
    def ok(self) -> bool:
        """Whether they are equal."""
        return all(live == replay for live, replay in self.checksums.values())


def verify(
    database_url: str, log: Log, projection: Projection, on_progress: OnProgress = silent, processes: int | None = None
) -> Verified:
    """Replay a read model and compare it with the live one, at a position that the live one had meanwhile.

    Raises:
        CannotRebuild: an event cannot be folded, or another process is verifying it.
    """
    with working_connection(database_url) as conn, ExitStack() as stack:
        hold(conn, SCRATCH, [projection])
        stack.callback(release, conn)
        stack.callback(forget, conn, SCRATCH, projection)
        begin(conn, SCRATCH, [projection], position_of(conn, projection.name))
        fill(database_url, conn, log, SCRATCH, [projection], on_progress, processes)
        index(conn, SCRATCH, projection)
        on_progress("compared", 0, 1)
        with conn.transaction():
            # One snapshot for both sides: the live tables and their position do not move in it, and nobody waits.
            conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            position = position_of(conn, projection.name)
            while catch_up(conn, log, projection, schema=SCRATCH, upto=position)[1]:
                continue
            sums = {t.TABLE: (_checksum(conn, "read", t), _checksum(conn, SCRATCH, t)) for t in projection.tables}
            differences = [d for t in projection.tables if len({*sums[t.TABLE]}) > 1 for d in _differences(conn, t)]
            rows = {table.TABLE: count_rows(conn, table) for table in projection.tables}
            left_out = skipped(conn, projection.name)
        on_progress("compared", 1, 1)
    return Verified(projection.name, position, rows, sums, differences, left_out)


def _checksum(conn: Connection[DictRow], schema: str, table: type[Row]) -> str:
    """Checksum all rows in any order: their number, and the sums of the two halves of the MD5 of each."""
    query = sql.SQL(
        "SELECT count(*) || '-' || coalesce(sum(('x' || left(h, 16))::bit(64)::bigint::numeric), 0) "
        "|| '-' || coalesce(sum(('x' || right(h, 16))::bit(64)::bigint::numeric), 0) AS checksum "
        "FROM (SELECT md5(row({columns})::text) AS h FROM {table}) AS hashed"
    ).format(columns=Shape.of(table).columns, table=Shape.of(table, schema).table)
    row = conn.execute(query).fetchone()
    assert row is not None
    return str(row["checksum"])


def _differences(conn: Connection[DictRow], table: type[Row]) -> list[Difference]:
    shape = Shape.of(table)
    query = sql.SQL(
        "SELECT to_jsonb(l) AS live, to_jsonb(r) AS replay "
        "FROM (SELECT {columns} FROM {live}) AS l FULL JOIN (SELECT {columns} FROM {replay}) AS r USING ({key}) "
        "WHERE l::text IS DISTINCT FROM r::text ORDER BY {key} LIMIT {most}"
    ).format(
        columns=shape.columns,
        live=shape.table,
        replay=Shape.of(table, SCRATCH).table,
        key=shape.key,
        most=sql.Literal(DIFFERENCES_MAX),
    )
    found = conn.execute(query).fetchall()
    return [
        Difference(
            table.TABLE,
            {column: (row["live"] or row["replay"])[column] for column in table.KEY},
            row["live"],
            row["replay"],
        )
        for row in found
    ]
