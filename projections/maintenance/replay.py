"""Replay read models into tables beside the live ones: account by account, in parallel, resumable.

Accounts are split into parts. The events of a part are read once for all projections, folded in memory, and copied to
tables without indexes, in one transaction with the note that the part is done.
"""

from __future__ import annotations

import gc
import hashlib
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from datetime import date, datetime
from functools import cache
from itertools import groupby
from multiprocessing import get_context, parent_process
from types import UnionType
from typing import Any, Final, get_args, get_origin, get_type_hints
from uuid import UUID

import psycopg
from psycopg import Connection, sql
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb
from pydantic_core import to_json

from domain.messages import Refusal
from infra.event_log.log import Log
from infra.event_log.postgres_recorder import postgres_log
from infra.event_log.recorder import LogRow
from infra.postgres.connections import connect, only_one
from infra.postgres.positions import drop_position, move_position
from projections.engine.batches import bodiless, position_name, read_by
from projections.engine.poison import said, skipped_positions
from projections.engine.projection import PartitionKey, Projection
from projections.engine.rows import Row, Rows, Shape
from projections.maintenance.runner import LOST, projection_named

PART_EVENTS: Final = 20_000
"""The approximate number of events in a part, which a worker replays in one transaction."""

SINGLE_PROCESS_EVENTS: Final = 40_000
"""Up to so many events, processes take longer to start than they save."""

FETCH_ROWS: Final = 2_000

_KINDS: Final = {str: "text", int: "int8", bool: "bool", datetime: "timestamptz", date: "date", UUID: "uuid"}

OnProgress = Callable[[str, int, int], object]
"""Called with the stage, how much of it is done, and the total."""


class CannotRebuild(Refusal):
    """An event cannot be folded, or another process is replaying the same read model."""


def silent(*_: object) -> None:
    """Report no progress."""


@contextmanager
def working_connection(database_url: str) -> Iterator[Connection[DictRow]]:
    """Yield a connection for long work: no timeouts, and no flush at commit, because lost work is repeated."""
    with connect(database_url) as conn:
        conn.execute(
            "SELECT set_config('statement_timeout', '0', false), set_config('synchronous_commit', 'off', false), "
            "set_config('idle_in_transaction_session_timeout', '0', false)"
        )
        yield conn


def hold(conn: Connection[DictRow], place: str, projections: Sequence[Projection]) -> None:
    """Take the locks of projections, so that no other process replays them.

    Raises:
        CannotRebuild: another process does.
    """
    for projection in projections:
        if not only_one(conn, f"rebuild {place} {projection.name}"):
            raise CannotRebuild(f"Another process is replaying {projection.name}; wait until it is done.")


def release(conn: Connection[DictRow]) -> None:
    """Release the locks of `hold`."""
    if not conn.closed:
        conn.execute("SELECT pg_advisory_unlock_all()")


def _fingerprint(projection: Projection) -> str:
    """Hash everything that the rows of a projection depend on."""
    source = inspect.getsource(sys.modules[projection.fold.__module__])
    columns = [table.columns() for table in projection.tables]
    return hashlib.sha256(f"{source}{columns}".encode()).hexdigest()


def resumes(conn: Connection[DictRow], place: str, projection: Projection) -> bool:
    """Whether a replay by the same code was interrupted; one by other code does not count."""
    query = "SELECT fingerprint FROM projection.rebuilds WHERE place = %s AND name = %s"
    row = conn.execute(query, (place, projection.name)).fetchone()
    return row is not None and row["fingerprint"] == _fingerprint(projection)


def begin(conn: Connection[DictRow], place: str, projections: Sequence[Projection], upto: int) -> None:
    """Create the empty tables, and split the accounts into parts."""
    if not projections:
        return
    with conn.transaction():
        names = [projection.name for projection in projections]
        conn.execute("DELETE FROM projection.rebuilds WHERE place = %s AND name = ANY(%s)", (place, names))
        for projection in projections:
            for table in projection.tables:
                conn.execute("SELECT projection.make_table(%s, %s)", (place, table.TABLE))
            conn.execute(
                "INSERT INTO projection.rebuilds (place, name, upto, fingerprint) VALUES (%s, %s, %s, %s)",
                (place, projection.name, upto, _fingerprint(projection)),
            )
            move_position(conn, position_name(projection, place), upto)
        conn.execute(
            "INSERT INTO projection.rebuild_parts (place, name, number, first_account, last_account, events) "
            "SELECT %s, name, number, min(account_id), max(account_id), sum(events) FROM ("
            "  SELECT account_id, count(*) AS events, "
            "         CASE WHEN account_id IS NULL THEN -1 "
            "              ELSE div(sum(count(*)) OVER (ORDER BY account_id) - count(*), %s) END AS number "
            "    FROM log.events WHERE position <= %s GROUP BY account_id) AS accounts, unnest(%s::text[]) AS name "
            "GROUP BY name, number",
            (place, PART_EVENTS, upto, names),
        )


def forget(conn: Connection[DictRow], place: str, projection: Projection) -> None:
    """Drop the tables of a replay, and all that is stored about it."""
    if conn.closed:
        return
    with conn.transaction():
        for table in projection.tables:
            conn.execute("SELECT projection.drop_table(%s, %s)", (place, table.TABLE))
        conn.execute("DELETE FROM projection.rebuilds WHERE place = %s AND name = %s", (place, projection.name))
        drop_position(conn, position_name(projection, place))


def fill(  # noqa: PLR0917 - all of them are needed
    database_url: str,
    conn: Connection[DictRow],
    log: Log,
    place: str,
    projections: Sequence[Projection],
    on_progress: OnProgress,
    processes: int | None,
) -> None:
    """Replay all remaining parts, in this process or in several."""
    names = [projection.name for projection in projections]
    done, of = _progress(conn, place, names)
    on_progress("accounts", done, of)
    count = processes or (1 if of - done <= SINGLE_PROCESS_EVENTS * len(names) else min(4, os.cpu_count() or 1))
    if count == 1:
        while _do_part(conn, log, place, projections):
            on_progress("accounts", *_progress(conn, place, names))
        return
    with ProcessPoolExecutor(count, get_context("spawn"), _die_with_the_parent) as pool:
        working: set[Future[None]] = {pool.submit(_do_parts, database_url, place, names) for _ in range(count)}
        while working:
            ended, working = wait(working, timeout=0.2)
            on_progress("accounts", *_progress(conn, place, names))
            for future in ended:
                future.result()


def _progress(conn: Connection[DictRow], place: str, names: Sequence[str]) -> tuple[int, int]:
    row = conn.execute(
        "SELECT coalesce(sum(events) FILTER (WHERE done), 0)::bigint AS done, coalesce(sum(events), 0)::bigint AS of "
        "FROM projection.rebuild_parts WHERE place = %s AND name = ANY(%s)",
        (place, names),
    ).fetchone()
    assert row is not None
    return row["done"], row["of"]


def _die_with_the_parent() -> None:
    gc.set_threshold(200_000, 20, 20)  # rows and events live as long as their part, and form no cycles
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _do_parts(database_url: str, place: str, names: Sequence[str]) -> None:
    """Replay parts in a worker process."""
    projections = [projection_named(name) for name in names]
    with postgres_log(database_url, pool_size=1) as log, working_connection(database_url) as conn:
        while _do_part(conn, log, place, projections):
            continue


def _do_part(conn: Connection[DictRow], log: Log, place: str, projections: Sequence[Projection]) -> bool:
    """Replay one free part, for all projections that lack it. Returns False if there is none."""
    with conn.transaction():
        part = conn.execute(
            "SELECT p.number, p.first_account, p.last_account, r.upto FROM projection.rebuild_parts AS p "
            "JOIN projection.rebuilds AS r USING (place, name) "
            "WHERE place = %s AND name = ANY(%s) AND NOT done ORDER BY number LIMIT 1 FOR UPDATE OF p SKIP LOCKED",
            (place, [projection.name for projection in projections]),
        ).fetchone()
        if part is None:
            return False
        same = conn.execute(
            "SELECT name FROM projection.rebuild_parts AS p JOIN projection.rebuilds AS r USING (place, name) "
            "WHERE place = %s AND name = ANY(%s) AND number = %s AND upto = %s AND NOT done "
            "AND (first_account, last_account) IS NOT DISTINCT FROM (%s, %s) FOR UPDATE OF p SKIP LOCKED",
            (
                place,
                [projection.name for projection in projections],
                part["number"],
                part["upto"],
                part["first_account"],
                part["last_account"],
            ),
        ).fetchall()
        chosen = [projection for projection in projections if projection.name in {row["name"] for row in same}]
        _copy(conn, place, _rows_of_part(conn, log, chosen, part))
        conn.execute(
            "UPDATE projection.rebuild_parts SET done = true WHERE place = %s AND name = ANY(%s) AND number = %s",
            (place, [projection.name for projection in chosen], part["number"]),
        )
    return True


def _rows_of_part(
    conn: Connection[DictRow], log: Log, projections: Sequence[Projection], part: Mapping[str, Any]
) -> dict[type[Row], list[tuple[object, ...]]]:
    """Return the rows of the accounts of a part. Each account is folded on its own, and its events discarded."""
    rows: dict[type[Row], list[tuple[object, ...]]] = {t: [] for projection in projections for t in projection.tables}
    left_out = {projection.name: skipped_positions(conn, projection.name) for projection in projections}
    with_bodies = _read_with_bodies(projections)
    readers = {kind: [p for p in projections if kind in p.kinds] for p in projections for kind in p.kinds}
    for _, events in groupby(_events(conn, projections, part), key=lambda row: row["account_id"]):
        folded: dict[str, dict[PartitionKey, Rows]] = {projection.name: {} for projection in projections}
        for row in events:
            reading, position = "", row["id"]
            try:
                fact = log.decoded(LogRow(**row)) if row["topic"] in with_bodies else bodiless(row)
                for projection in readers.get(type(fact.event), ()):
                    reading = projection.name
                    if position not in left_out[reading]:
                        partitions, key = folded[reading], projection.partition(fact)
                        if (partition := partitions.get(key)) is None:
                            partition = partitions[key] = Rows()
                        projection.fold(partition, fact)
            except LOST:
                raise
            except Exception as error:
                category = row["topic"].partition(".")[0]
                names = reading or ", ".join(p.name for p in projections if category in p.categories)
                raise CannotRebuild(f"{names} cannot be replayed past position {position}: {said(error)}") from error
        for projection in projections:
            for partition in folded[projection.name].values():
                for table in projection.tables:
                    rows[table] += [found.values() for found in partition.of(table)]
    return rows


def _read_with_bodies(projections: Sequence[Projection]) -> frozenset[str]:
    return frozenset[str]().union(*(projection.topics for projection in projections if projection.bodies))


def _events(
    conn: Connection[DictRow], projections: Sequence[Projection], part: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield the events of a part that any of the projections reads; with bodies if one of them needs them."""
    condition, topics_read = read_by(projections)
    query = (
        "SELECT stream AS originator_id, version AS originator_version, topic, "  # noqa: S608 - made of constants
        "CASE WHEN topic = ANY(%(bodies)s) THEN state ELSE '' END AS state, position AS id, recorded_at, account_id, "
        "correlation_id, causation_id, actor FROM log.events WHERE position <= %(upto)s AND "
        + ("account_id IS NULL " if part["first_account"] is None else "account_id BETWEEN %(first)s AND %(last)s ")
        + f"AND {condition} ORDER BY account_id, position"
    )
    parameters = {
        "bodies": sorted(_read_with_bodies(projections)),
        **topics_read,
        "upto": part["upto"],
        "first": part["first_account"],
        "last": part["last_account"],
    }
    with conn.cursor("events_of_a_part") as cursor:
        cursor.itersize = FETCH_ROWS
        yield from cursor.execute(query.encode(), parameters, binary=True)


@cache
def _copied_types(hints: tuple[Any, ...]) -> tuple[str, ...]:
    kinds = []
    for hint in hints:
        optional = [arg for arg in get_args(hint) if arg is not type(None)] if get_origin(hint) is UnionType else [hint]
        kinds.append("jsonb" if get_origin(optional[0]) in (list, dict) else _KINDS[optional[0]])
    return tuple(kinds)


def _dumped(value: object) -> bytes:
    return to_json(value)


def _copy(conn: Connection[DictRow], place: str, rows: Mapping[type[Row], list[tuple[object, ...]]]) -> None:
    """Copy rows to the new tables, in the binary format of PostgreSQL."""
    for table, some in rows.items():
        if not some:
            continue
        shape, hints = Shape.of(table, place), get_type_hints(table)
        types = _copied_types(tuple(hints[column] for column in shape.column_names))
        query = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(shape.table, shape.columns)
        packed = [n for n, kind in enumerate(types) if kind == "jsonb"]
        with conn.cursor().copy(query) as copy:
            copy.set_types(types)
            for row in some if not packed else _with_json(some, packed):
                copy.write_row(row)


def _with_json(rows: Iterable[tuple[object, ...]], packed: Sequence[int]) -> Iterator[Sequence[object]]:
    for row in rows:
        values = list(row)
        for n in packed:
            values[n] = Jsonb(values[n], dumps=_dumped)
        yield values


def index(conn: Connection[DictRow], place: str, projection: Projection) -> None:
    """Create the keys and indexes of replayed tables, once they are full.

    Raises:
        CannotRebuild: two accounts have a row with the same key.
    """
    with conn.transaction():
        row = conn.execute(
            "SELECT indexed FROM projection.rebuilds WHERE place = %s AND name = %s FOR UPDATE",
            (place, projection.name),
        ).fetchone()
        assert row is not None
        if row["indexed"]:
            return
        for table in projection.tables:
            try:
                conn.execute("SELECT projection.index_table(%s, %s)", (place, table.TABLE))
            except psycopg.errors.UniqueViolation as error:
                raise CannotRebuild(
                    f"{projection.name} cannot be replayed by account: two accounts have the same row of {table.TABLE}."
                ) from error
        conn.execute(
            "UPDATE projection.rebuilds SET indexed = true WHERE place = %s AND name = %s", (place, projection.name)
        )


def count_rows(conn: Connection[DictRow], table: type[Row]) -> int:
    """Return the number of rows of a live table."""
    query = sql.SQL("SELECT count(*) AS n FROM {}").format(Shape.of(table).table)
    row = conn.execute(query).fetchone()
    assert row is not None
    return int(row["n"])
