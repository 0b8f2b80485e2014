"""Making read models anew, beside those that are live: account by account, in parallel, resumable, then swapped in.

The accounts are parted; a part's events are read once for all projections that are being made, folded in memory, and
copied to tables without indexes, in one transaction with the note that the part is done. What was appended meanwhile is
then projected event by event, as it would be live. At last the live projection is held for a moment, the rest is
projected, and the new tables take the place of the old ones, with the position, in one transaction: nobody sees a
half-built view, and no event is missed or doubled.

Verifying makes the tables in a scratch schema, up to the position at which the live ones are seen, and compares.
"""

from __future__ import annotations

import gc
import hashlib
import inspect
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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
from infra.postgres.positions import drop_position, move_position, position_of
from projections.engine.poison import Skipped, passed, said, skipped, skipped_positions
from projections.engine.projection import (
    PartitionKey,
    Projection,
    Row,
    Rows,
    Shape,
    bodiless,
    catch_up,
    head_of,
    locked_position,
    position_name,
    read_by,
)
from projections.maintenance.runner import LOST, projection_named

SHADOW: Final = "shadow"
SCRATCH: Final = "scratch"
PART_EVENTS: Final = 20_000
"""How many events the accounts of a part have, about: what a worker does in one transaction."""

ALONE_EVENTS: Final = 40_000
"""Up to so many events, starting processes takes longer than they save."""

PAGE: Final = 2_000
NEAR: Final = 500
"""So few positions behind the log, a rebuild may hold the live projection for the rest."""

SWAP_LOCK_MS: Final = 500
"""How long a swap waits for readers: less than the server lets anybody wait before it looks for deadlocks."""

SWAP_PATIENCE_S: Final = 60.0
MOST_DIFFERENCES: Final = 20
_KINDS: Final = {str: "text", int: "int8", bool: "bool", datetime: "timestamptz", date: "date", UUID: "uuid"}

Told = Callable[[str, int, int], object]
"""Is told how it goes: the stage, how much of it is done, and of how much."""


class CannotRebuild(Refusal):
    """An event cannot be folded, or somebody else is at it."""


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild did: how many positions it came through, and how many rows there are."""

    names: Sequence[str]
    position: int
    rows: Mapping[str, int]
    resumed: bool
    took_s: float
    skipped: Sequence[Skipped]


@dataclass(frozen=True)
class Difference:
    """A row that is not what a replay gives; none where one side has no such row."""

    table: str
    key: Mapping[str, Any]
    live: Mapping[str, Any] | None
    replay: Mapping[str, Any] | None


@dataclass(frozen=True)
class Verified:
    """Whether the live tables of a projection, at a position, are what a replay gives."""

    name: str
    position: int
    rows: Mapping[str, int]
    checksums: Mapping[str, tuple[str, str]]
    differences: Sequence[Difference]
    skipped: Sequence[Skipped]

    @property
    def ok(self) -> bool:
        """Whether they are."""
        return all(live == replay for live, replay in self.checksums.values())


def _silent(*_: object) -> None:
    return


def rebuild(
    database_url: str, log: Log, projections: Sequence[Projection], told: Told = _silent, processes: int | None = None
) -> Rebuilt:
    """Make read models anew and swap them in; one that was broken off goes on where it was.

    Raises:
        CannotRebuild: an event cannot be folded, or somebody else makes one of them anew at this moment.
    """
    begun, names = time.monotonic(), [projection.name for projection in projections]
    with _worker(database_url) as conn, ExitStack() as stack:
        _alone(conn, SHADOW, projections)
        stack.callback(_release, conn)
        fresh = [projection for projection in projections if not _goes_on(conn, SHADOW, projection)]
        _begin(conn, SHADOW, fresh, head_of(conn))
        _fill(database_url, conn, log, SHADOW, projections, told, processes)
        for done, projection in enumerate(projections):
            told("indexes", done, len(projections))
            _index(conn, SHADOW, projection)
        position, rows = 0, dict[str, int]()
        for done, projection in enumerate(projections):
            told("the rest, and the swap", done, len(projections))
            position = _take_place(conn, log, projection)
            rows |= {table.TABLE: _count(conn, table) for table in projection.tables}
        told("the rest, and the swap", len(projections), len(projections))
        left_out = [skip for projection in projections for skip in skipped(conn, projection.name)]
    return Rebuilt(names, position, rows, len(fresh) < len(projections), time.monotonic() - begun, left_out)


def verify(
    database_url: str, log: Log, projection: Projection, told: Told = _silent, processes: int | None = None
) -> Verified:
    """Replay a read model from nothing, and compare it with the live one at a position where that stood meanwhile.

    Raises:
        CannotRebuild: an event cannot be folded, or somebody else verifies it at this moment.
    """
    with _worker(database_url) as conn, ExitStack() as stack:
        _alone(conn, SCRATCH, [projection])
        stack.callback(_release, conn)
        stack.callback(_forget, conn, SCRATCH, projection)
        _begin(conn, SCRATCH, [projection], position_of(conn, projection.name))
        _fill(database_url, conn, log, SCRATCH, [projection], told, processes)
        _index(conn, SCRATCH, projection)
        told("compared", 0, 1)
        with conn.transaction():
            # One snapshot for both sides: the live tables and their position stand still in it, and nobody waits.
            conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            position = position_of(conn, projection.name)
            while catch_up(conn, log, projection, schema=SCRATCH, upto=position)[1]:
                continue
            sums = {t.TABLE: (_checksum(conn, "read", t), _checksum(conn, SCRATCH, t)) for t in projection.tables}
            differences = [d for t in projection.tables if len({*sums[t.TABLE]}) > 1 for d in _differences(conn, t)]
            rows = {table.TABLE: _count(conn, table) for table in projection.tables}
            left_out = skipped(conn, projection.name)
        told("compared", 1, 1)
    return Verified(projection.name, position, rows, sums, differences, left_out)


@contextmanager
def _worker(database_url: str) -> Iterator[Connection[DictRow]]:
    """A connection for long work: its statements may take their time, and what is lost of it is done again."""
    with connect(database_url) as conn:
        conn.execute(
            "SELECT set_config('statement_timeout', '0', false), set_config('synchronous_commit', 'off', false), "
            "set_config('idle_in_transaction_session_timeout', '0', false)"
        )
        yield conn


def _alone(conn: Connection[DictRow], place: str, projections: Sequence[Projection]) -> None:
    for projection in projections:
        if not only_one(conn, f"rebuild {place} {projection.name}"):
            raise CannotRebuild(
                f"Somebody else is replaying {projection.name} at this moment; wait until that is done."
            )


def _release(conn: Connection[DictRow]) -> None:
    if not conn.closed:
        conn.execute("SELECT pg_advisory_unlock_all()")


# --- beginning, or going on


def _fingerprint(projection: Projection) -> str:
    """Of all that the rows of a projection depend on."""
    source = inspect.getsource(sys.modules[projection.fold.__module__])
    columns = [table.columns() for table in projection.tables]
    return hashlib.sha256(f"{source}{columns}".encode()).hexdigest()


def _goes_on(conn: Connection[DictRow], place: str, projection: Projection) -> bool:
    """Whether this code has begun already; what another code has begun does not count."""
    query = "SELECT fingerprint FROM projection.rebuilds WHERE place = %s AND name = %s"
    row = conn.execute(query, (place, projection.name)).fetchone()
    return row is not None and row["fingerprint"] == _fingerprint(projection)


def _begin(conn: Connection[DictRow], place: str, projections: Sequence[Projection], upto: int) -> None:
    """Make the empty tables, and part the accounts."""
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


def _forget(conn: Connection[DictRow], place: str, projection: Projection) -> None:
    if conn.closed:
        return
    with conn.transaction():
        for table in projection.tables:
            conn.execute("SELECT projection.drop_table(%s, %s)", (place, table.TABLE))
        conn.execute("DELETE FROM projection.rebuilds WHERE place = %s AND name = %s", (place, projection.name))
        drop_position(conn, position_name(projection, place))


# --- part by part


def _fill(  # noqa: PLR0917 - what it takes
    database_url: str,
    conn: Connection[DictRow],
    log: Log,
    place: str,
    projections: Sequence[Projection],
    told: Told,
    processes: int | None,
) -> None:
    """Do all parts that are left, in this process or in several."""
    names = [projection.name for projection in projections]
    done, of = _progress(conn, place, names)
    told("accounts", done, of)
    count = processes or (1 if of - done <= ALONE_EVENTS * len(names) else min(4, os.cpu_count() or 1))
    if count == 1:
        while _do_part(conn, log, place, projections):
            told("accounts", *_progress(conn, place, names))
        return
    with ProcessPoolExecutor(count, get_context("spawn"), _die_with_the_parent) as pool:
        working: set[Future[None]] = {pool.submit(_do_parts, database_url, place, names) for _ in range(count)}
        while working:
            ended, working = wait(working, timeout=0.2)
            told("accounts", *_progress(conn, place, names))
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
    gc.set_threshold(200_000, 20, 20)  # rows and events live for as long as a part, and have no cycles
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _do_parts(database_url: str, place: str, names: Sequence[str]) -> None:
    """What a worker process does."""
    projections = [projection_named(name) for name in names]
    with postgres_log(database_url, pool_size=1) as log, _worker(database_url) as conn:
        while _do_part(conn, log, place, projections):
            continue


def _do_part(conn: Connection[DictRow], log: Log, place: str, projections: Sequence[Projection]) -> bool:
    """Do one part that nobody is doing, for all projections that lack it. False where there is none."""
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
    """What the accounts of a part come to: each account is folded by itself, and its events forgotten."""
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
    """The events of a part's accounts that one of the projections reads; bodies where one of them asks for them."""
    condition, topics_read = read_by(projections)
    query = (
        "SELECT stream AS originator_id, version AS originator_version, topic, "  # noqa: S608 - constants of ours
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
        cursor.itersize = PAGE
        yield from cursor.execute(query.encode(), parameters, binary=True)


# --- writing


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
    """Copy rows to the tables that are being made, in PostgreSQL's binary format."""
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


def _index(conn: Connection[DictRow], place: str, projection: Projection) -> None:
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
                    f"{projection.name} cannot be made by account: two accounts have the same row of {table.TABLE}."
                ) from error
        conn.execute(
            "UPDATE projection.rebuilds SET indexed = true WHERE place = %s AND name = %s", (place, projection.name)
        )


# --- the swap


def _take_place(conn: Connection[DictRow], log: Log, projection: Projection) -> int:
    """Project the rest, and put the new tables in the place of the live ones. Gives the position that they show."""
    deadline = time.monotonic() + SWAP_PATIENCE_S
    pause_s = 0.05
    while True:
        position = position_of(conn, position_name(projection, SHADOW))
        while head_of(conn) - position > NEAR:
            position, _ = catch_up(conn, log, projection, schema=SHADOW)
        try:
            return _swapped(conn, log, projection)
        except psycopg.errors.LockNotAvailable:
            if time.monotonic() > deadline:
                raise CannotRebuild(
                    f"{projection.name} is made anew, but somebody has been reading its tables for "
                    f"{SWAP_PATIENCE_S:g} s; run the rebuild again, and it goes on from here."
                ) from None
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)


def _swapped(conn: Connection[DictRow], log: Log, projection: Projection) -> int:
    with conn.transaction():
        conn.execute(f"SET LOCAL lock_timeout = {SWAP_LOCK_MS}")
        conn.execute("SET LOCAL synchronous_commit = on")
        locked_position(conn, projection)  # from here to the commit the live projection waits
        while catch_up(conn, log, projection, schema=SHADOW)[1]:
            continue
        position = position_of(conn, position_name(projection, SHADOW))
        conn.execute("SELECT projection.take_place(%s)", ([table.TABLE for table in projection.tables],))
        move_position(conn, projection.name, position)
        drop_position(conn, position_name(projection, SHADOW))
        conn.execute("DELETE FROM projection.rebuilds WHERE place = %s AND name = %s", (SHADOW, projection.name))
        passed(conn, projection.name, position)
    return position


# --- comparing


def _count(conn: Connection[DictRow], table: type[Row]) -> int:
    query = sql.SQL("SELECT count(*) AS n FROM {}").format(Shape.of(table).table)
    row = conn.execute(query).fetchone()
    assert row is not None
    return int(row["n"])


def _checksum(conn: Connection[DictRow], schema: str, table: type[Row]) -> str:
    """Of all rows, whatever their order: the sum of the two halves of each one's MD5, and how many there are."""
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
        most=sql.Literal(MOST_DIFFERENCES),
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
