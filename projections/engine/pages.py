"""Keyset pagination: the next page starts after the last row of this one, however many rows are added meanwhile.

A cursor names that row. It is opaque, and valid only for the query that returned it, with the same filters and order.
"""

from __future__ import annotations

import binascii
import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, LiteralString, TypeVar, get_type_hints

from psycopg import Connection, sql
from psycopg.rows import class_row
from pydantic_core import from_json, to_json

from domain.messages import Refusal
from projections.engine.rows import Row, Shape

PAGE_SIZE: Final = 50
PAGE_SIZE_MAX: Final = 1_000
R = TypeVar("R", bound=Row)


class BadCursor(Refusal):
    """The cursor does not belong to this query."""


class FilterCannotBe(Refusal):
    """A filter that nothing can match, or that is incomplete."""


@dataclass(frozen=True)
class Page(Generic[R]):
    """Some rows, and the cursor of the next page, or None if this is the last."""

    rows: Sequence[R]
    next: str | None


Condition = tuple[LiteralString, object]
"""A comparison with one placeholder, and its value."""


def page(
    conn: Connection[Any],
    table: type[R],
    conditions: Sequence[Condition],
    order: tuple[str, ...],
    *,
    newest_first: bool = False,
    cursor: str | None = None,
    size: int = PAGE_SIZE,
) -> Page[R]:
    """Return the rows after the cursor that meet all conditions. The last columns of ``order`` are the key.

    Raises:
        BadCursor: it is not a cursor of this query.
        FilterCannotBe: the page size is out of range.
    """
    if not 1 <= size <= PAGE_SIZE_MAX:
        raise FilterCannotBe(f"A page has 1 to {PAGE_SIZE_MAX} rows, not {size}.")
    question = hashlib.sha256(to_json([table.TABLE, order, newest_first, conditions])).digest()
    query, values = _query(table, conditions, order, newest_first, None if cursor is None else _read(cursor, question))
    rows = conn.cursor(row_factory=class_row(table), binary=True).execute(query, [*values, size + 1]).fetchall()
    more = len(rows) > size
    rows = rows[:size]
    return Page(rows, _written([getattr(rows[-1], column) for column in order], question) if more else None)


def _query(
    table: type[Row],
    conditions: Sequence[Condition],
    order: tuple[str, ...],
    newest_first: bool,
    after: list[object] | None,
) -> tuple[sql.Composed, list[object]]:
    shape, hints = Shape.of(table), get_type_hints(table)
    where: list[sql.Composable] = [sql.SQL(text) for text, _ in conditions]
    values = [value for _, value in conditions]
    if after is not None:
        kinds = {str: sql.SQL("%s::text"), int: sql.SQL("%s::bigint")}
        where.append(
            sql.SQL("({}) {} ({})").format(
                sql.SQL(", ").join(map(sql.Identifier, order)),
                sql.SQL("<" if newest_first else ">"),
                sql.SQL(", ").join(kinds.get(hints[column], sql.SQL("%s::timestamptz")) for column in order),
            )
        )
        values += after
    direction = sql.SQL(" DESC" if newest_first else "")
    query = sql.SQL("SELECT {columns} FROM {table} WHERE {where} ORDER BY {order} LIMIT %s").format(
        columns=shape.columns,
        table=shape.table,
        where=sql.SQL(" AND ").join(where) if where else sql.SQL("true"),
        order=sql.SQL(", ").join(sql.Identifier(column) + direction for column in order),
    )
    return query, values


def _written(values: list[object], question: bytes) -> str:
    text = to_json(values)
    checksum = hashlib.sha256(question + text).digest()[:8]
    return urlsafe_b64encode(checksum + text).decode().rstrip("=")


def _read(cursor: str, question: bytes) -> list[object]:
    try:
        content = urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
    except (UnicodeEncodeError, binascii.Error, ValueError):
        content = b""
    checksum, text = content[:8], content[8:]
    if not text or checksum != hashlib.sha256(question + text).digest()[:8]:
        raise BadCursor(
            "The cursor does not belong to this query; leave it out for the first page, and continue with the cursor "
            "that comes with it."
        )
    values: list[object] = from_json(text)
    return values
