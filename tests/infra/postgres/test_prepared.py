"""Prepared statements: asked again they read as at first, and they keep no connection that nobody else keeps."""

from __future__ import annotations

import gc
import weakref
from datetime import UTC, datetime

from infra.postgres.connections import connect
from infra.postgres.prepared import Statement, ask

ECHO = Statement(b"echo", b"SELECT $1::text AS said, $2::timestamptz AS at, $3::int8 AS n")


def test_what_is_asked_again_reads_as_at_first(database_url: str) -> None:
    moment = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
    with connect(database_url) as conn:
        for said, number in (("Wonka Süßwaren", 7), ("", 2**62)):
            parameters = [said.encode(), moment.isoformat().encode(), str(number).encode()]
            assert ask(conn, ECHO, parameters, tuple) == [(said, moment, number)]
        assert ask(conn, ECHO, [None, None, None], tuple) == [(None, None, None)]


def test_a_connection_that_was_asked_goes_when_it_is_closed(database_url: str) -> None:
    with connect(database_url) as conn:
        ask(conn, ECHO, [None, None, None], tuple)
    kept = weakref.ref(conn)
    del conn
    gc.collect()
    assert kept() is None
