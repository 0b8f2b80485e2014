"""How the log becomes tables: in batches, each row with its position in one transaction.

A projection says which rows an event touches (its *partition*) and how it changes them (its *fold*). The engine loads
the rows of a batch's partitions once, folds in plain Python, writes what changed in one statement a table, and moves
the projection's position in the same transaction: so a crash loses nothing and repeats nothing. The very same fold over
the log, in memory, shows any read model as of any moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from psycopg import Connection, sql
from psycopg.rows import DictRow, class_row
from pydantic_core import to_json

from domain.messages import Event
from infra.log import Log
from infra.postgres import move_position, position_of
from infra.pydantic_mapper import Recorded

BATCH = 500
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
        return tuple(getattr(self, column) for column in self.KEY)


R = TypeVar("R", bound=Row)


class Rows:
    """The rows of one partition, as a fold sees and changes them."""

    def __init__(self) -> None:
        self._rows: dict[type[Row], dict[tuple[object, ...], Row]] = {}
        self._stored: dict[tuple[type[Row], tuple[object, ...]], Row] = {}

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
        self._stored[type(row), row.key()] = copy(self.put(row))

    def changed(self, table: type[Row]) -> list[Row]:
        """The rows that the table does not have as they are."""
        return [row for row in self.of(table) if self._stored.get((table, row.key())) != row]

    def gone(self, table: type[Row]) -> list[Row]:
        """The rows that the table has, and that are no more."""
        rows = self._rows.get(table, {})
        return [row for (kind, key), row in self._stored.items() if kind is table and key not in rows]


Fold = Callable[[Rows, Recorded], None]


@dataclass(frozen=True)
class Projection:
    """One read model: its tables, the events it reads, and how they change its rows.

    ``partition`` gives the value of the partition column that an event of ``events`` concerns; ``fold`` changes the
    rows of that partition. It never reads a clock and never asks another table, so folding again gives the same rows.
    """

    name: str
    tables: tuple[type[Row], ...]
    events: tuple[type[Event], ...]
    partition: Callable[[Recorded], PartitionKey]
    fold: Fold

    def folded(self, history: Iterable[Recorded]) -> Rows:
        """All rows after ``history``, in memory."""
        partitions: dict[PartitionKey, Rows] = {}
        for recorded in history:
            if isinstance(recorded.event, self.events):
                self.fold(partitions.setdefault(self.partition(recorded), Rows()), recorded)
        everything = Rows()
        for rows in partitions.values():
            for table in self.tables:
                for row in rows.of(table):
                    everything.put(row)
        return everything

    def as_of(self, log: Log, account_id: str, position: int) -> Rows:
        """The rows of an account as they were when the log had come to ``position``."""
        return self.folded(event for event in log.history(upto=position) if event.account_id == account_id)


def catch_up(conn: Connection[DictRow], log: Log, projection: Projection, batch: int = BATCH) -> tuple[int, int]:
    """Project the next events, at most ``batch``, in one transaction.

    Gives the position that the projection has come to, and how many events there were.
    """
    with conn.transaction():
        position = position_of(conn, projection.name)
        events = log.read(position, limit=batch)
        if events:
            project(conn, projection, events)
            position = events[-1].position
            move_position(conn, projection.name, position)
    return position, len(events)


def project(conn: Connection[DictRow], projection: Projection, events: Sequence[Recorded]) -> None:
    """Fold ``events`` into the projection's tables, in the transaction that is open."""
    touched = [(projection.partition(e), e) for e in events if isinstance(e.event, projection.events)]
    if not touched:
        return
    partitions = _loaded(conn, projection, list(dict.fromkeys(key for key, _ in touched)))
    for key, recorded in touched:
        projection.fold(partitions[key], recorded)
    for table in projection.tables:
        _delete(conn, table, [row for rows in partitions.values() for row in rows.gone(table)])
        _upsert(conn, table, [row for rows in partitions.values() for row in rows.changed(table)])


def _loaded(conn: Connection[DictRow], projection: Projection, keys: list[PartitionKey]) -> Mapping[PartitionKey, Rows]:
    partitions = {key: Rows() for key in keys}
    for table in projection.tables:
        for row in stored(conn, table, **{table.PARTITION: keys}):
            partitions[getattr(row, table.PARTITION)].found(row)
    return partitions


def stored(conn: Connection[Any], table: type[R], **equal: object) -> list[R]:
    """The rows of a table whose columns equal these values (or one of the values, where a list is given), by key."""
    where = [
        sql.SQL("{} = ANY(%s)" if isinstance(value, list) else "{} = %s").format(sql.Identifier(column))
        for column, value in equal.items()
    ]
    query = sql.SQL("SELECT {columns} FROM {table} WHERE {where} ORDER BY {key}").format(
        columns=_columns(table),
        table=_table(table),
        where=sql.SQL(" AND ").join(where) if where else sql.SQL("true"),
        key=sql.SQL(", ").join(map(sql.Identifier, table.KEY)),
    )
    return conn.cursor(row_factory=class_row(table)).execute(query, list(equal.values())).fetchall()


def _upsert(conn: Connection[DictRow], table: type[Row], rows: list[Row]) -> None:
    if not rows:
        return
    key = sql.SQL(", ").join(map(sql.Identifier, table.KEY))
    query = sql.SQL(
        "INSERT INTO {table} ({columns}) SELECT {columns} FROM jsonb_populate_recordset(null::{table}, %s::jsonb) "
        "ON CONFLICT ({key}) DO UPDATE SET {changes}"
    ).format(
        table=_table(table),
        columns=_columns(table),
        key=key,
        changes=sql.SQL(", ").join(
            sql.SQL("{c} = excluded.{c}").format(c=sql.Identifier(column)) for column in table.columns()
        ),
    )
    conn.execute(query, (to_json(rows).decode(),))


def _delete(conn: Connection[DictRow], table: type[Row], rows: list[Row]) -> None:
    if not rows:
        return
    key = sql.SQL(", ").join(map(sql.Identifier, table.KEY))
    query = sql.SQL(
        "DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM jsonb_populate_recordset(null::{table}, %s::jsonb))"
    ).format(table=_table(table), key=key)
    conn.execute(query, (to_json(rows).decode(),))


def _table(table: type[Row]) -> sql.Identifier:
    return sql.Identifier("read", table.TABLE)


def _columns(table: type[Row]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, table.columns()))
