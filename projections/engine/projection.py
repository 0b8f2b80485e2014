"""How the log becomes tables: in batches, each row with its position in one transaction.

A projection says which rows an event touches (its *partition*) and how it changes them (its *fold*). The engine reads a
batch of the log, loads the rows of its partitions once, folds in plain Python, writes what changed in one statement a
table, and moves the projection's position, all in one transaction: so a crash loses nothing and repeats nothing. The
very same fold over the log, in memory, shows any read model as of any moment.

The tables stand in the schema ``read``; those that are being made anew stand in another one, with a position of their
own (`projections.maintenance.rebuild`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property
from typing import Any, ClassVar, Final, TypeVar

from psycopg import Connection, sql
from psycopg.rows import DictRow, class_row
from pydantic_core import to_json

from domain.messages import Event
from infra.event_log.log import Log
from infra.event_log.recorder import LogRow
from infra.event_log.topics import topics
from infra.event_log.upcasts import UPCASTS, stored_topics, topic_today
from infra.postgres.positions import move_position, position_of
from infra.recorded import Cause, Recorded

BATCH = 5_000
"""How many events that it reads a projection takes into one transaction, at most."""

SPAN = 200_000
"""How many positions it passes at most in one transaction, where few of them are of events that it reads."""

LIVE: Final = "read"
LAST: Final = 2**62
PartitionKey = str | int


class Row:
    """One row of a read model's table: a dataclass whose fields are the columns, in their order.

    Attributes:
        TABLE: the table's name, in the schema ``read``.
        KEY: the columns of the primary key.
        PARTITION: the column that the projection's events are partitioned by.
    """

    TABLE: ClassVar[str]
    KEY: ClassVar[tuple[str, ...]]
    PARTITION: ClassVar[str]

    @classmethod
    def columns(cls) -> list[str]:
        """The names of the columns."""
        return [field.name for field in fields(cls)]  # type: ignore[arg-type]  # every row class is a dataclass

    def key(self) -> tuple[object, ...]:
        """The values of the primary key."""
        return tuple([getattr(self, column) for column in self.KEY])

    def values(self) -> tuple[object, ...]:
        """The values of all columns, in their order."""
        return tuple(vars(self).values())


R = TypeVar("R", bound=Row)


class Rows:
    """The rows of one partition, as a fold sees and changes them."""

    def __init__(self) -> None:
        self._rows: dict[type[Row], dict[tuple[object, ...], Row]] = {}
        self._stored: dict[type[Row], dict[tuple[object, ...], tuple[object, ...]]] = {}

    def of(self, table: type[R]) -> list[R]:
        """All rows of a table, in the order in which they came."""
        return list(self._rows.get(table, {}).values())  # type: ignore[arg-type]  # each table holds its own rows

    def get(self, table: type[R], *key: object) -> R | None:
        """A row by its primary key."""
        return self._rows.get(table, {}).get(key)  # type: ignore[return-value]  # as above

    def put(self, row: R) -> R:
        """Add a row; it takes the place of one with the same key."""
        self._rows.setdefault(type(row), {})[row.key()] = row
        return row

    def delete(self, row: Row) -> None:
        """Take a row away."""
        del self._rows[type(row)][row.key()]

    def found(self, row: Row) -> None:
        """Add a row as the table has it, and remember it so."""
        key = row.key()
        self._rows.setdefault(type(row), {})[key] = row
        self._stored.setdefault(type(row), {})[key] = row.values()

    def changed(self, table: type[Row]) -> list[Row]:
        """The rows that the table does not have as they are."""
        stored = self._stored.get(table, {})
        return [row for key, row in self._rows.get(table, {}).items() if stored.get(key) != row.values()]

    def gone(self, table: type[Row]) -> list[tuple[object, ...]]:
        """The keys of the rows that the table has, and that are no more."""
        rows = self._rows.get(table, {})
        return [key for key in self._stored.get(table, {}) if key not in rows]


Fold = Callable[[Rows, Recorded], None]


@dataclass(frozen=True)
class Projection:
    """One read model: its tables, the events it reads, and how they change its rows.

    ``partition`` gives the value of the partition column that an event of ``events`` concerns; ``fold`` changes the
    rows of that partition. It never reads a clock and never asks another table, so folding again gives the same rows.
    A partition belongs to one account, as do all events that concern it. Where ``bodies`` is false, the fold looks at
    what is recorded beside an event and at its topic, so that no body is read. Where each event has a row ``alone``,
    there is nothing to be loaded before it.
    """

    name: str
    tables: tuple[type[Row], ...]
    events: tuple[type[Event], ...]
    partition: Callable[[Recorded], PartitionKey]
    fold: Fold
    bodies: bool = True
    alone: bool = False

    @cached_property
    def topics(self) -> frozenset[str]:
        """The topics of the events that it reads, and those of their retired shapes."""
        return frozenset(stored_topics(topic for topic, event in topics().items() if issubclass(event, self.events)))

    @cached_property
    def categories(self) -> frozenset[str]:
        """What its topics begin with. A topic there that this program does not know may be one that it should read."""
        return frozenset(topic.partition(".")[0] for topic in self.topics)

    @cached_property
    def kinds(self) -> frozenset[type[Event]]:
        """The classes of the events that it reads."""
        return frozenset(event for event in topics().values() if issubclass(event, self.events))

    def folded(self, history: Iterable[Recorded], skipped: Collection[int] = ()) -> Rows:
        """All rows after ``history``, in memory, but for what the positions of ``skipped`` would have done."""
        everything = Rows()
        for rows in self.partitions(history, skipped).values():
            for table in self.tables:
                for row in rows.of(table):
                    everything.put(row)
        return everything

    def partitions(self, history: Iterable[Recorded], skipped: Collection[int] = ()) -> dict[PartitionKey, Rows]:
        """The same, partition by partition."""
        partitions: dict[PartitionKey, Rows] = {}
        kinds, partition, fold = self.kinds, self.partition, self.fold
        for recorded in history:
            if type(recorded.event) in kinds and recorded.position not in skipped:
                fold(partitions.setdefault(partition(recorded), Rows()), recorded)
        return partitions

    def as_of(self, log: Log, account_id: str, position: int, skipped: Collection[int] = ()) -> Rows:
        """The rows of an account as they were when the log had come to ``position``."""
        return self.folded(log.of_account(account_id, upto=position), skipped)


def catch_up(
    conn: Connection[DictRow],
    log: Log,
    projection: Projection,
    batch: int = BATCH,
    schema: str = LIVE,
    upto: int = LAST,
) -> tuple[int, int]:
    """Project the next events up to a position, at most ``batch`` of those that it reads, in one transaction.

    The log is read in that transaction too, and where it ends, before that: so what is passed over is there, and read.
    Gives the position that the projection has come to, and how many it has passed.
    """
    with conn.pipeline(), conn.transaction():  # what is written, and the commit, go out together
        before, head = _bounds(conn, projection, schema)
        position = min(head, before + SPAN, upto)
        if position <= before:
            return before, 0
        rows = _next_rows(conn, projection, before, position, batch)
        if len(rows) == batch:
            position = rows[-1]["id"]
        project(conn, projection, decoded(log, projection, rows), schema)
        move_position(conn, position_name(projection, schema), position)
    return position, position - before


def position_name(projection: Projection, schema: str = LIVE) -> str:
    """The name of a projection's position in ``read.positions``."""
    return projection.name if schema == LIVE else f"{schema}.{projection.name}"


def _bounds(conn: Connection[DictRow], projection: Projection, schema: str) -> tuple[int, int]:
    """How far a projection has come, as `locked_position` says it; and where the log ends, seen no later than that."""
    row = conn.execute(_BOUNDS, (position_name(projection, schema),), prepare=True).fetchone()
    if row is None:
        return locked_position(conn, projection, schema), head_of(conn)
    return int(row["position"]), int(row["head"])


_BOUNDS: Final = (
    "SELECT p.position, h.position AS head FROM read.positions AS p, log.head AS h WHERE p.name = %s FOR UPDATE OF p"
)


def locked_position(conn: Connection[DictRow], projection: Projection, schema: str = LIVE) -> int:
    """How far a projection has come; nobody else moves it before this transaction ends."""
    name = position_name(projection, schema)
    query = "SELECT position FROM read.positions WHERE name = %s FOR UPDATE"
    if (row := conn.execute(query, (name,)).fetchone()) is None:
        conn.execute("INSERT INTO read.positions (name, position) VALUES (%s, 0) ON CONFLICT DO NOTHING", (name,))
        row = conn.execute(query, (name,)).fetchone()
    assert row is not None
    return int(row["position"])


def head_of(conn: Connection[Any]) -> int:
    """The position of the last event of the log, as this connection sees it."""
    row = conn.execute("SELECT position FROM log.head").fetchone()
    assert row is not None
    return int(row["position"])


def log_columns(projection: Projection) -> str:
    """The columns of the log that a projection needs, as `LogRow` names them."""
    state = "state" if projection.bodies else "''::bytea AS state"
    return (
        f"stream AS originator_id, version AS originator_version, topic, {state}, position AS id, "
        "recorded_at, account_id, correlation_id, causation_id, actor"
    )


def _next_rows(
    conn: Connection[DictRow], projection: Projection, after: int, upto: int, limit: int
) -> list[dict[str, Any]]:
    """The next rows of the log that a projection reads. What it was told to skip is none of them."""
    condition, topics_read = read_by([projection])
    query = (
        f"SELECT {log_columns(projection)} FROM log.events "  # noqa: S608 - ours
        f"WHERE position > %(after)s AND position <= %(upto)s AND {condition} "
        "AND position <> ALL (ARRAY(SELECT s.position FROM projection.skipped AS s WHERE s.name = %(name)s)) "
        "ORDER BY position LIMIT %(limit)s"
    )
    parameters = {"after": after, "upto": upto, "name": projection.name, "limit": limit, **topics_read}
    return conn.cursor(binary=True).execute(query.encode(), parameters, prepare=True).fetchall()


def read_by(projections: Sequence[Projection]) -> tuple[str, Mapping[str, list[str]]]:
    """The condition on rows of the log that one of these has to deal with, and its parameters.

    Those of a topic that nobody here knows are among them, where it may be theirs: a later version wrote it, and who
    went past it would be wrong from then on.
    """
    if any(projection.events == (Event,) for projection in projections):
        return "true", {}
    condition = "(topic = ANY(%(read)s) OR topic <> ALL(%(known)s) AND split_part(topic, '.', 1) = ANY(%(categories)s))"
    return condition, {
        "read": sorted(frozenset[str]().union(*(projection.topics for projection in projections))),
        "known": sorted([*topics(), *UPCASTS]),
        "categories": sorted(frozenset[str]().union(*(projection.categories for projection in projections))),
    }


def next_row(conn: Connection[DictRow], projection: Projection) -> LogRow | None:
    """The next event that a projection has to deal with, undecoded."""
    rows = _next_rows(conn, projection, position_of(conn, projection.name), LAST, 1)
    return LogRow(**rows[0]) if rows else None


def decoded(log: Log, projection: Projection, rows: Iterable[dict[str, Any]]) -> Iterator[Recorded]:
    """The events of rows; where the projection reads no bodies, without theirs."""
    if projection.bodies:
        return (log.decoded(LogRow(**row)) for row in rows)
    return map(bodiless, rows)


def bodiless(row: Mapping[str, Any]) -> Recorded:
    """The event of a row whose body was not read."""
    return Recorded(
        row["originator_id"],
        row["originator_version"],
        without_body(row["topic"]),
        row["account_id"],
        Cause(row["actor"], row["correlation_id"], row["causation_id"]),
        row["recorded_at"],
        row["id"],
    )


@cache
def without_body(topic: str) -> Event:
    """An event of which nothing but the topic is known.

    Raises:
        LookupError: nobody knows the topic.
    """
    known = topics().get(topic_today(topic))
    if known is None:
        raise LookupError(f"the topic {topic!r} is not one that this version of Trunkline knows")
    return known.model_construct()


def project(conn: Connection[DictRow], projection: Projection, events: Iterable[Recorded], schema: str = LIVE) -> None:
    """Fold ``events`` into the projection's tables, in the transaction that is open."""
    partition, kinds = projection.partition, projection.kinds
    touched = [(partition(e), e) for e in events if type(e.event) in kinds]
    if not touched:
        return
    partitions = _loaded(conn, projection, list({key: None for key, _ in touched}), schema)
    for key, recorded in touched:
        projection.fold(partitions[key], recorded)
    for table in projection.tables:
        _delete(conn, table, [key for rows in partitions.values() for key in rows.gone(table)], schema)
        _upsert(conn, table, [row for rows in partitions.values() for row in rows.changed(table)], schema)


def _loaded(
    conn: Connection[DictRow], projection: Projection, keys: list[PartitionKey], schema: str
) -> Mapping[PartitionKey, Rows]:
    partitions = {key: Rows() for key in keys}
    for table in () if projection.alone else projection.tables:
        for row in stored(conn, table, schema, **{table.PARTITION: keys}):
            partitions[getattr(row, table.PARTITION)].found(row)
    return partitions


def stored(conn: Connection[Any], table: type[R], schema: str = LIVE, **equal: Any) -> list[R]:  # noqa: ANN401 - any value
    """The rows of a table whose columns equal these values (or one of the values, where a list is given), by key."""
    asked = tuple((column, isinstance(value, list)) for column, value in equal.items())
    query = _select_query(Shape.of(table, schema), asked)
    cursor = conn.cursor(row_factory=class_row(table), binary=True)
    return cursor.execute(query, list(equal.values()), prepare=True).fetchall()


def _upsert(conn: Connection[DictRow], table: type[Row], rows: Sequence[Row], schema: str) -> None:
    # Of the ways to hand over many rows (jsonb, json, arrays, COPY to a temporary table) this one is as fast as any,
    # and takes one statement.
    if rows:
        conn.execute(_upsert_query(Shape.of(table, schema)), (to_json(rows).decode(),), prepare=True)


def _delete(conn: Connection[DictRow], table: type[Row], keys: Sequence[tuple[object, ...]], schema: str) -> None:
    if keys:
        rows = [dict(zip(table.KEY, key, strict=True)) for key in keys]
        conn.execute(_delete_query(Shape.of(table, schema)), (to_json(rows).decode(),), prepare=True)


@dataclass(frozen=True)
class Shape:
    """What a query has to know of a table."""

    schema: str
    name: str
    column_names: tuple[str, ...]
    key_names: tuple[str, ...]

    @classmethod
    def of(cls, table: type[Row], schema: str = LIVE) -> Shape:
        """The shape of a table of rows."""
        return cls(schema, table.TABLE, tuple(table.columns()), table.KEY)

    @property
    def table(self) -> sql.Identifier:
        """The table's name."""
        return sql.Identifier(self.schema, self.name)

    @property
    def columns(self) -> sql.Composed:
        """Its columns."""
        return sql.SQL(", ").join(map(sql.Identifier, self.column_names))

    @property
    def key(self) -> sql.Composed:
        """The columns of its key."""
        return sql.SQL(", ").join(map(sql.Identifier, self.key_names))


@cache
def _select_query(shape: Shape, asked: tuple[tuple[str, bool], ...]) -> bytes:
    where = [
        sql.SQL("{} = ANY(%s)" if one_of else "{} = %s").format(sql.Identifier(column)) for column, one_of in asked
    ]
    query = sql.SQL("SELECT {columns} FROM {table} WHERE {where} ORDER BY {key}").format(
        columns=shape.columns,
        table=shape.table,
        where=sql.SQL(" AND ").join(where) if where else sql.SQL("true"),
        key=shape.key,
    )
    return query.as_bytes()


@cache
def _upsert_query(shape: Shape) -> bytes:
    query = sql.SQL(
        "INSERT INTO {table} ({columns}) SELECT {columns} FROM json_populate_recordset(null::{table}, %s::json) "
        "ON CONFLICT ({key}) DO UPDATE SET {changes}"
    ).format(
        table=shape.table,
        columns=shape.columns,
        key=shape.key,
        changes=sql.SQL(", ").join(
            sql.SQL("{c} = excluded.{c}").format(c=sql.Identifier(column)) for column in shape.column_names
        ),
    )
    return query.as_bytes()


@cache
def _delete_query(shape: Shape) -> bytes:
    query = sql.SQL(
        "DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM json_populate_recordset(null::{table}, %s::json))"
    ).format(table=shape.table, key=shape.key)
    return query.as_bytes()
