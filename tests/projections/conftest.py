"""One database for the read models' tables, emptied for each test; the log in front of them is in memory."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any, Protocol

import psycopg
import pytest
from psycopg import Connection, sql
from psycopg.conninfo import make_conninfo

from infra.postgres import connect

pytest.register_assert_rewrite("tests.projections.given")


class Server(Protocol):
    """The server's own address, as `tests.conftest.Places` has it."""

    @property
    def database_url(self) -> str: ...


@pytest.fixture(scope="session")
def tables_url(places: Server, template: str) -> Iterator[str]:
    """A migrated database that these tests share."""
    name = f"tables_{secrets.token_hex(4)}"
    with psycopg.connect(places.database_url, autocommit=True) as conn:
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        conn.execute(create.format(sql.Identifier(name), sql.Identifier(template)))
        # Here processes die, and no machine does: nothing is proved by waiting for the disk.
        conn.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(sql.Identifier(name)))
        yield make_conninfo(places.database_url, dbname=name)
        conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def tables(tables_url: str) -> Iterator[Connection[Any]]:
    """A connection as the program's role, to empty tables."""
    with connect(tables_url) as conn:
        empty(conn)
        yield conn


def empty(conn: Connection[Any]) -> None:
    """Take every row out of the read models, and their positions."""
    names = conn.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'read'").fetchall()
    with conn.transaction():
        for row in names:
            conn.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier("read", row["table_name"])))
