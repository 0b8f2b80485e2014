"""Test databases: each copied from a migrated template, with connections as owner and as application."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

PROGRAM = {"user": "trunkline_test", "password": secrets.token_hex(16)}
"""The application's login on the servers of this run."""


class ServerAddresses(Protocol):
    """The servers of this run: `tests.support.servers.SessionServers`. The database is only a template."""

    @property
    def database_url(self) -> str: ...
    @property
    def nats_url(self) -> str: ...


MASTER_KEY = bytes(range(32))
"""The default master key of tests; it wraps the keys of personal data."""


def as_program(owner_url: str) -> str:
    """The same database with the application's login."""
    return make_conninfo(owner_url, **PROGRAM)


def as_owner(servers: ServerAddresses, database_url: str) -> str:
    """The same database with its owner's login."""
    return make_conninfo(servers.database_url, dbname=str(conninfo_to_dict(database_url)["dbname"]))


@contextmanager
def fresh_database(servers: ServerAddresses, template: str = "template1") -> Iterator[str]:
    """A temporary database, empty or a copy of a template, with its owner's login."""
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(servers.database_url, autocommit=True) as conn:
        # Of an unlogged copy, creating and dropping take half of the time.
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
        conn.execute(create.format(sql.Identifier(name), sql.Identifier(template)))
        yield make_conninfo(servers.database_url, dbname=name)
        conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
