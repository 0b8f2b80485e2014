"""One database for these tests; its log and read model tables are emptied before each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import Connection, sql
from psycopg.conninfo import conninfo_to_dict

from infra.event_log.log import Log
from infra.postgres.connections import connect
from infra.recorded import event_id
from tests.support.databases import ServerAddresses, as_program, fresh_database

Lay = Callable[[Log], Log]


@pytest.fixture(scope="session")
def tables_owner_url(servers: ServerAddresses, template: str) -> Iterator[str]:
    """A migrated database shared by these tests, with its owner's login."""
    with fresh_database(servers, template) as owner_url:
        name = sql.Identifier(str(conninfo_to_dict(owner_url)["dbname"]))
        with psycopg.connect(owner_url, autocommit=True) as conn:
            # Only processes die here, never a machine, so waiting for the disk would prove nothing.
            conn.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(name))
        yield owner_url


@pytest.fixture(scope="session")
def tables_url(tables_owner_url: str) -> str:
    """The same, with the application's login."""
    return as_program(tables_owner_url)


@pytest.fixture(scope="session")
def tables_owner(tables_owner_url: str) -> Iterator[Connection[Any]]:
    """A connection as the owner, who may put anything into the log."""
    with psycopg.connect(tables_owner_url, autocommit=True) as conn:
        yield conn


@pytest.fixture
def tables(tables_url: str, tables_owner: Connection[Any]) -> Iterator[Connection[Any]]:
    """A connection with the application's role to empty tables and an empty log."""
    empty(tables_owner)
    with connect(tables_url) as conn:
        yield conn


@pytest.fixture
def lay(tables: Connection[Any], tables_owner: Connection[Any]) -> Lay:
    """Copy the events that are missing from the database's log from an in-memory log."""
    return lambda memory: laid(tables_owner, memory)


def laid(owner: Connection[Any], memory: Log) -> Log:
    """Copy the events that are missing from a database's log from an in-memory log, and return the latter."""
    found = owner.execute("SELECT position FROM log.head").fetchone()
    assert found is not None
    rows: Any = memory._recorder.select_notifications(found[0], 10**9, inclusive_of_start=False)
    with owner.transaction():
        with owner.cursor().copy(
            "COPY log.events (position, stream, version, topic, state, recorded_at, account_id, event_id, "
            "correlation_id, causation_id, actor, hash) FROM STDIN"
        ) as copy:
            for row in rows:
                place = (row.id, row.originator_id, row.originator_version, row.topic, row.state, row.recorded_at)
                an_id = event_id(row.originator_id, row.originator_version)
                copy.write_row(
                    (*place, row.account_id, an_id, row.correlation_id, row.causation_id, row.actor, bytes(32))
                )
        owner.execute("UPDATE log.head SET position = %s", (memory.head(),))
    return memory


def empty(owner: Connection[Any]) -> None:
    """Empty the log, the read models and their bookkeeping."""
    with owner.transaction():
        owner.execute("ALTER TABLE log.events DISABLE TRIGGER only_added_to")
        owner.execute("DELETE FROM log.events")
        owner.execute("ALTER TABLE log.events ENABLE TRIGGER only_added_to")
        owner.execute("UPDATE log.head SET position = 0")
        for schema, name in owner.execute(
            "SELECT table_schema, table_name FROM information_schema.tables "
            "WHERE table_schema IN ('read', 'projection') AND table_type = 'BASE TABLE'"
        ).fetchall():
            owner.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(schema, name)))
        for schema, name in owner.execute(
            "SELECT table_schema, table_name FROM information_schema.tables WHERE table_schema IN ('shadow', 'scratch')"
        ).fetchall():
            owner.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(schema, name)))
