"""Prepared statements: repeated executions decode like the first, and no statement keeps a connection alive."""

from __future__ import annotations

import gc
import weakref
from datetime import UTC, datetime

from infra.postgres.connections import connect
from infra.postgres.prepared import Statement, ask

ECHO = Statement(b"echo", b"SELECT $1::text AS value, $2::timestamptz AS at, $3::int8 AS n")


def test_a_repeated_execution_is_decoded_like_the_first(database_url: str) -> None:
    moment = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
    with connect(database_url) as conn:
        for text, number in (("Wonka Süßwaren", 7), ("", 2**62)):
            parameters = [text.encode(), moment.isoformat().encode(), str(number).encode()]
            assert ask(conn, ECHO, parameters, tuple) == [(text, moment, number)]
        assert ask(conn, ECHO, [None, None, None], tuple) == [(None, None, None)]


def test_a_closed_connection_with_prepared_statements_is_garbage_collected(database_url: str) -> None:
    with connect(database_url) as conn:
        ask(conn, ECHO, [None, None, None], tuple)
    reference = weakref.ref(conn)
    del conn
    gc.collect()
    assert reference() is None
