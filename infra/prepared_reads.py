"""A read that is asked all day, the shortest way that psycopg has: prepared statements of libpq, at once.

A cursor's ``execute`` takes three times as long as the server does for a row by its key. What is lost is what a cursor
does besides: this takes texts as parameters, blocks while it waits, and prepares by a name of the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import psycopg
from psycopg import Connection
from psycopg.adapt import Transformer
from psycopg.pq import ExecStatus, Format, TransactionStatus

T = TypeVar("T")
_prepared: WeakKeyDictionary[Connection[Any], set[bytes]] = WeakKeyDictionary()


def read_prepared(
    conn: Connection[Any], name: bytes, query: bytes, texts: Sequence[str], row: Callable[[Sequence[Any]], T]
) -> list[T]:
    """The rows of a query with parameters ``$1``, ``$2``, all of them texts.

    Raises:
        psycopg.Error: as a cursor does.
    """
    if not conn.autocommit and conn.info.transaction_status is TransactionStatus.IDLE:
        conn.execute("")  # a transaction has to begin, as it would for any other statement
    with conn.lock:
        pgconn = conn.pgconn
        known = _prepared.setdefault(conn, set())
        if name not in known:
            _checked(conn, pgconn.prepare(name, query, [25] * len(texts)), ExecStatus.COMMAND_OK)
            known.add(name)
        result = pgconn.exec_prepared(name, [text.encode() for text in texts], None, Format.BINARY)
    _checked(conn, result, ExecStatus.TUPLES_OK)
    loader = Transformer(conn)
    loader.set_pgresult(result)
    return loader.load_rows(0, result.ntuples, row)


def _checked(conn: Connection[Any], result: Any, wanted: ExecStatus) -> None:  # noqa: ANN401 - libpq's
    if result.status != wanted:
        raise psycopg.errors.error_from_result(result, encoding=conn.info.encoding)
