"""Prepared statements by libpq directly, for the most frequent queries.

A cursor's ``execute`` takes three times as long as the server needs for a row by its key, and returns to Python often,
where it competes for the GIL. In exchange this does less than a cursor: it takes parameters in wire format, blocks
while it waits, and prepares under a name that the caller gives.
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
"""The reader of rows for each prepared statement of a connection; it learns the column types at the first use.
(It has no reference to the connection, which it would keep alive. It assumes UTF-8 and UTC, which all of ours have.)"""


@dataclass(frozen=True, slots=True)
class Statement:
    """A query, and the name under which each connection prepares it once. Its parameters are ``$1``, ``$2`` and so on.

    ``binary`` says whether they are in the binary format of PostgreSQL or texts.
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
    """Execute a statement. Returns its rows, each converted by ``row``.

    Raises:
        psycopg.Error: as a cursor does.
    """
    if not conn.autocommit and conn.info.transaction_status is TransactionStatus.IDLE:
        conn.execute("")  # start a transaction, as a cursor would
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
