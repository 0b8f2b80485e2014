"""One database for the read models' tables, emptied for each test; the log in front of them is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import Connection, sql
from psycopg.conninfo import conninfo_to_dict

from infra.postgres import connect
from tests.databases import ServerPlaces, as_program, fresh_database

pytest.register_assert_rewrite("tests.projections.given")


@pytest.fixture(scope="session")
def tables_url(places: ServerPlaces, template: str) -> Iterator[str]:
    """A migrated database that these tests share, with the program's login."""
    with fresh_database(places, template) as owner_url:
        name = sql.Identifier(str(conninfo_to_dict(owner_url)["dbname"]))
        with psycopg.connect(owner_url, autocommit=True) as conn:
            # Here processes die, and no machine does: nothing is proved by waiting for the disk.
            conn.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(name))
        yield as_program(owner_url)


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
