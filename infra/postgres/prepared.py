"""Statements that are asked all day, the shortest way that psycopg has: prepared statements of libpq, at once.

A cursor's ``execute`` takes three times as long as the server does for a row by its key, and comes back to Python
often, where other threads are in its way. What is lost is what a cursor does besides: this takes parameters as they go
over the wire, blocks while it waits, and prepares by a name of the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import psycopg
from psycopg import Connection, abc
from psycopg.adapt import Transformer
from psycopg.pq import ExecStatus, Format, TransactionStatus

T = TypeVar("T")
_prepared: WeakKeyDictionary[Connection[Any], dict[bytes, abc.Transformer]] = WeakKeyDictionary()
"""For each statement that a connection has prepared, what reads its rows; after the first time it knows their types.
(It knows no connection, which it would keep. All of ours have UTF-8 and UTC, which it takes for granted.)"""


@dataclass(frozen=True, slots=True)
class Statement:
    """A query by the name under which each connection prepares it, once. Its parameters are ``$1``, ``$2`` and so on.

    ``binary`` says whether they come in PostgreSQL's binary format, or as texts.
    """

    name: bytes
    query: bytes
    binary: bool = False


def ask(
    conn: Connection[Any],
    statement: Statement,
    parameters: Sequence[bytes | None],
    row: Callable[[Sequence[Any]], T],
) -> list[T]:
    """The rows of a statement, each made by ``row``.

    Raises:
        psycopg.Error: as a cursor does.
    """
    if not conn.autocommit and conn.info.transaction_status is TransactionStatus.IDLE:
        conn.execute("")  # a transaction has to begin, as it would for any other statement
    with conn.lock:
        pgconn = conn.pgconn
        prepared = _prepared.setdefault(conn, {})
        if (reader := prepared.get(statement.name)) is None:
            _checked(conn, pgconn.prepare(statement.name, statement.query), ExecStatus.COMMAND_OK)
            reader = prepared[statement.name] = Transformer()
        formats = [Format.BINARY] * len(parameters) if statement.binary else None
        result = pgconn.exec_prepared(statement.name, parameters, formats, Format.BINARY)  # type: ignore[arg-type]  # None is null
        _checked(conn, result, ExecStatus.TUPLES_OK)
        reader.set_pgresult(result)
        return reader.load_rows(0, result.ntuples, row)


def _checked(conn: Connection[Any], result: Any, wanted: ExecStatus) -> None:  # noqa: ANN401 - libpq's
    if result.status == wanted:
        return
    if conn.broken:
        raise psycopg.OperationalError(conn.pgconn.get_error_message())
    raise psycopg.errors.error_from_result(result, encoding=conn.info.encoding)
