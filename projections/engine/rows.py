"""Rows of read models: how folds see and change them, and how they are read from and written to tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar, Final, TypeVar

from psycopg import Connection, sql
from psycopg.rows import DictRow, class_row
from pydantic_core import to_json

LIVE: Final = "read"


class Row:
    """A row of a table of a read model: a dataclass whose fields are the columns, in order.

    Attributes:
        TABLE: the name of the table, in the schema ``read``.
        KEY: the columns of the primary key.
        PARTITION: the column by which the events of the projection are partitioned.
    """

    TABLE: ClassVar[str]
    KEY: ClassVar[tuple[str, ...]]
    PARTITION: ClassVar[str]

    @classmethod
    def columns(cls) -> list[str]:
        """Return the names of the columns."""
        return [field.name for field in fields(cls)]  # type: ignore[arg-type]  # every row class is a dataclass

    def key(self) -> tuple[object, ...]:
        """Return the values of the primary key."""
        return tuple([getattr(self, column) for column in self.KEY])

    def values(self) -> tuple[object, ...]:
        """Return the values of all columns, in order."""
        return tuple(vars(self).values())


R = TypeVar("R", bound=Row)


class Rows:
    """The rows of one partition, as a fold sees and changes them."""

    def __init__(self) -> None:
        self._rows: dict[type[Row], dict[tuple[object, ...], Row]] = {}
        self._stored: dict[type[Row], dict[tuple[object, ...], tuple[object, ...]]] = {}

    def of(self, table: type[R]) -> list[R]:
        """Return all rows of a table, in the order of their insertion."""
        return list(self._rows.get(table, {}).values())  # type: ignore[arg-type]  # each table holds its own rows

    def get(self, table: type[R], *key: object) -> R | None:
        """Return a row by its primary key, or None."""
        return self._rows.get(table, {}).get(key)  # type: ignore[return-value]  # as above

    def put(self, row: R) -> R:
        """Add a row, replacing one with the same key."""
        self._rows.setdefault(type(row), {})[row.key()] = row
        return row

    def delete(self, row: Row) -> None:
        """Delete a row."""
        del self._rows[type(row)][row.key()]

    def found(self, row: Row) -> None:
        """Add a row that was loaded from the table."""
        key = row.key()
        self._rows.setdefault(type(row), {})[key] = row
        self._stored.setdefault(type(row), {})[key] = row.values()

    def changed(self, table: type[Row]) -> list[Row]:
        """Return the rows that differ from those in the table."""
        stored = self._stored.get(table, {})
        return [row for key, row in self._rows.get(table, {}).items() if stored.get(key) != row.values()]

    def gone(self, table: type[Row]) -> list[tuple[object, ...]]:
        """Return the keys of rows that were loaded from the table and then deleted."""
        rows = self._rows.get(table, {})
        return [key for key in self._stored.get(table, {}) if key not in rows]


def stored(conn: Connection[Any], table: type[R], schema: str = LIVE, **equal: Any) -> list[R]:  # noqa: ANN401 - any value
    """Return the rows whose columns have these values (for a list: one of them), ordered by key."""
    asked = tuple((column, isinstance(value, list)) for column, value in equal.items())
    query = _select_query(Shape.of(table, schema), asked)
    cursor = conn.cursor(row_factory=class_row(table), binary=True)
    return cursor.execute(query, list(equal.values()), prepare=True).fetchall()


def upsert_rows(conn: Connection[DictRow], table: type[Row], rows: Sequence[Row], schema: str) -> None:
    """Insert rows, or update those whose keys exist."""
    # As fast as jsonb, arrays, or COPY to a temporary table, and one statement.
    if rows:
        conn.execute(_upsert_query(Shape.of(table, schema)), (to_json(rows).decode(),), prepare=True)


def delete_rows(conn: Connection[DictRow], table: type[Row], keys: Sequence[tuple[object, ...]], schema: str) -> None:
    """Delete rows by their keys."""
    if keys:
        rows = [dict(zip(table.KEY, key, strict=True)) for key in keys]
        conn.execute(_delete_query(Shape.of(table, schema)), (to_json(rows).decode(),), prepare=True)


@dataclass(frozen=True)
class Shape:
    """The names that queries on a table need."""

    schema: str
    name: str
    column_names: tuple[str, ...]
    key_names: tuple[str, ...]

    @classmethod
    def of(cls, table: type[Row], schema: str = LIVE) -> Shape:
        """Return the shape of a table."""
        return cls(schema, table.TABLE, tuple(table.columns()), table.KEY)

    @property
    def table(self) -> sql.Identifier:
        """The qualified name of the table."""
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
