"""PostgreSQL: privileges of the program's roles, refused addresses, positions, and exclusive processes."""

from __future__ import annotations

import asyncio
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Event
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import InsufficientPrivilege

import infra.postgres.connections
import infra.postgres.migrate
from infra.event_log.log import Change
from infra.event_log.postgres_recorder import postgres_log
from infra.event_log.recorder import StoredDocument
from infra.postgres.connections import (
    AUDITOR,
    PROJECTOR,
    WRITER,
    DatabaseUnavailable,
    connect,
    connected_aside,
    only_one,
)
from infra.postgres.migrate import migrate
from infra.postgres.positions import move_position, position_of
from infra.postgres.roles import admit
from infra.recorded import Cause
from tests.support.databases import MASTER_KEY, PROGRAM, ServerAddresses, as_program, fresh_database
from tests.support.examples import NOW, opened, requested


@pytest.fixture
def empty_database(servers: ServerAddresses) -> Iterator[str]:
    """A database that was never migrated."""
    with fresh_database(servers) as url:
        yield url


@pytest.fixture(scope="module")
def written(servers: ServerAddresses, template: str) -> Iterator[str]:
    """The owner's address of a database with two events and a document, which no test can change."""
    with fresh_database(servers, template) as url, postgres_log(as_program(url), master_key=MASTER_KEY) as log:
        log.append(
            [Change("account-acme", 0, [opened]), Change("order-order-1", 0, [requested])],
            account_id="acme",
            cause=Cause("distributor:dora", "wish-1"),
            at=NOW,
            documents=[StoredDocument("d0c", "application/pdf", b"%PDF-1.7 ACME")],
        )
        yield url


@pytest.fixture(scope="module", params=[WRITER, PROJECTOR, AUDITOR])
def program(written: str, request: pytest.FixtureRequest) -> Iterator[Connection[Any]]:
    """A connection with one of the program's roles."""
    with connect(as_program(written), request.param) as conn:
        yield conn


@pytest.fixture(scope="module")
def owner(written: str) -> Iterator[Connection[Any]]:
    """A connection of the owner of the tables, who has all privileges on them."""
    with psycopg.connect(written, autocommit=True) as conn:
        yield conn


def contents(conn: Connection[Any]) -> list[Any]:
    return conn.execute("SELECT * FROM log.events ORDER BY position").fetchall()


# --- least privilege -----------------------------------------------------------------------------------------------

TAMPERING = pytest.mark.parametrize(
    "statement",
    [
        "UPDATE log.events SET state = 'forged'",
        "UPDATE log.events SET position = position + 10 WHERE stream = 'account-acme'",
        "UPDATE log.events SET topic = topic WHERE false",
        "DELETE FROM log.events",
        "DELETE FROM log.events WHERE position = 2",
        "TRUNCATE log.events",
        "MERGE INTO log.events USING (VALUES (1)) AS one ON true WHEN MATCHED THEN DELETE",
        "INSERT INTO log.events SELECT * FROM log.events ON CONFLICT (position) DO UPDATE SET state = 'forged'",
        "UPDATE log.documents SET content = 'forged'",
        "DELETE FROM log.documents",
        "TRUNCATE log.documents",
        "UPDATE log.history SET topic = 'forged'",
        "DELETE FROM log.history",
    ],
)


@TAMPERING
def test_the_program_cannot_change_stored_events_or_documents(program: Connection[Any], statement: str) -> None:
    before = contents(program)
    with pytest.raises(InsufficientPrivilege, match="permission denied"):  # so the trigger does not even run
        program.execute(statement.encode())
    assert contents(program) == before
    assert len(before) == 2


@TAMPERING
def test_the_owner_of_the_tables_cannot_change_stored_events_or_documents(
    owner: Connection[Any], statement: str
) -> None:
    before = contents(owner)
    with pytest.raises(InsufficientPrivilege, match="is append-only"):
        owner.execute(statement.encode())
    assert contents(owner) == before


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE log.aside (id int)",
        "CREATE TABLE read.aside (id int)",
        "CREATE TABLE public.aside (id int)",
        "CREATE SCHEMA aside",
        "CREATE VIEW read.aside AS SELECT 1",
        "CREATE FUNCTION log.aside() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "DROP TABLE log.events",
        "DROP TRIGGER only_added_to ON log.events",
        "ALTER TABLE log.events DISABLE TRIGGER only_added_to",
        "ALTER TABLE read.orders ADD COLUMN aside int",
        "SET session_replication_role = replica",
        "INSERT INTO log.events SELECT * FROM log.events",
        "UPDATE log.head SET position = 0",
        "DELETE FROM log.inbox",
        "INSERT INTO public.trunkline_migrations (name) VALUES ('0003_forged.sql')",
        "TRUNCATE read.orders",
        "CREATE ROLE aside",
        "ALTER SYSTEM SET fsync = off",
        "COPY log.events TO PROGRAM 'cat'",
    ],
)
def test_the_program_cannot_do_what_only_the_owner_may(program: Connection[Any], statement: str) -> None:
    with pytest.raises(InsufficientPrivilege):
        program.execute(statement.encode())


def test_the_program_has_exactly_the_privileges_that_it_needs(owner: Connection[Any]) -> None:
    relations = owner.execute(
        "SELECT oid::regclass::text AS name, oid FROM pg_class WHERE relkind IN ('r', 'v', 'm', 'p', 'f') "
        "AND relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace, "
        "'pg_toast'::regnamespace)"
    ).fetchall()
    kinds = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER", "MAINTAIN")
    may: dict[str, dict[str, set[str]]] = {WRITER: {}, PROJECTOR: {}, AUDITOR: {}, PROGRAM["user"]: {}}
    for role, found in may.items():
        for name, oid in relations:
            query = "SELECT kind FROM unnest(%s::text[]) AS kind WHERE has_table_privilege(%s, %s::oid, kind)"
            if kinds_of := {kind for (kind,) in owner.execute(query, (list(kinds), role, oid))}:
                found[name] = kinds_of

    read = {"SELECT"}
    assert may.pop(PROGRAM["user"]) == {}  # the login has no privileges of its own
    ours = {name: kinds_of for name, kinds_of in may[PROJECTOR].items() if name.startswith("read.")}
    every = {"SELECT", "INSERT", "UPDATE", "DELETE"}
    working = dict.fromkeys(("projection.parked", "projection.rebuilds", "projection.rebuild_parts"), every)
    working["projection.skipped"] = {"SELECT", "INSERT"}
    assert set(map(frozenset, ours.values())) == {frozenset({"SELECT", "INSERT", "UPDATE", "DELETE"})}
    reports = {name for name, _ in relations if name.startswith("reporting.")}
    assert may == {
        WRITER: dict.fromkeys(
            ("log.events", "log.head", "log.inbox", "log.documents", "log.tracking", "trunkline_migrations"), read
        )
        | {"log.person_keys": {"SELECT", "INSERT"}, "log.snapshots": {"SELECT", "INSERT", "UPDATE"}},
        PROJECTOR: dict.fromkeys(("log.events", "log.head", "log.history"), read) | ours | working,
        AUDITOR: dict.fromkeys(("log.events", "log.head", "log.history", *ours, *working, *reports), read),
    }


@pytest.mark.parametrize("role", [WRITER, PROJECTOR, AUDITOR, PROGRAM["user"]])
def test_no_role_of_the_program_is_a_superuser_or_may_become_one(owner: Connection[Any], role: str) -> None:
    row = owner.execute(
        "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls, rolinherit AND rolcanlogin, "
        "ARRAY(SELECT roleid::regrole::text FROM pg_auth_members WHERE member = pg_roles.oid ORDER BY 1) "
        "FROM pg_roles WHERE rolname = %s",
        (role,),
    ).fetchone()
    roles = [AUDITOR, PROJECTOR, WRITER] if role == PROGRAM["user"] else []
    assert row == (False, False, False, False, False, False, roles)


def test_a_connection_has_its_role_and_our_timeouts(program: Connection[Any], request: pytest.FixtureRequest) -> None:
    names = ("role", "timezone", "lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
    settings = {name: program.execute("SELECT current_setting(%s) AS it", (name,)).fetchone() for name in names}
    role = request.node.callspec.params["program"]
    assert [found and found["it"] for found in settings.values()] == [role, "UTC", "5s", "1min", "30s"]


def test_neither_side_waits_forever_for_a_dead_peer(program: Connection[Any]) -> None:
    names = ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout")
    theirs = [program.execute("SELECT current_setting(%s) AS it", (name,)).fetchone() for name in names]
    assert [found and found["it"] for found in theirs] == ["10", "5", "3", "25000"]
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
    with socket.socket(fileno=os.dup(program.fileno())) as ours:
        assert [ours.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [10, 5, 3, 25_000]


@pytest.mark.parametrize("role", [WRITER, PROJECTOR, AUDITOR])
def test_commits_are_flushed_whatever_the_defaults_of_the_database_are(owner_url: str, role: str) -> None:
    with psycopg.connect(owner_url, autocommit=True) as owner:
        for setting in ("synchronous_commit TO off", "default_transaction_isolation TO serializable"):
            owner.execute(f"ALTER DATABASE {owner.info.dbname} SET {setting}".encode())
    with connect(as_program(owner_url), role) as conn:
        names = ("synchronous_commit", "transaction_isolation", "transaction_read_only")
        found = [conn.execute("SELECT current_setting(%s) AS it", (name,)).fetchone() for name in names]
    assert [row and row["it"] for row in found] == ["on", "read committed", "off"]


def test_a_login_with_too_many_privileges_is_refused_with_the_reason(written: str, owner: Connection[Any]) -> None:
    with pytest.raises(DatabaseUnavailable, match=r"logs in as .*, who is a superuser: .*TRUNKLINE_OWNER_URL"):
        open_log(written)
    with augustus(written, owner) as url:
        open_log(url)
        owner.execute("GRANT DELETE ON log.events TO augustus")
        with pytest.raises(
            DatabaseUnavailable,
            match=r"logs in as augustus, who may write to log\.events without its functions: the program",
        ):
            open_log(url)


@contextmanager
def augustus(written: str, owner: Connection[Any]) -> Iterator[str]:
    """Create a login with the program's roles. Yields its address, and drops it at the end."""
    owner.execute("CREATE ROLE augustus LOGIN NOINHERIT PASSWORD 'gloop'")
    owner.execute("CREATE ROLE slugworth")
    try:
        for role in (WRITER, PROJECTOR, AUDITOR):
            owner.execute(f"GRANT {role} TO augustus".encode())
        yield make_conninfo(written, user="augustus", password="gloop")  # noqa: S106 - not a real one
    finally:
        owner.execute("DROP OWNED BY augustus, slugworth")
        owner.execute("DROP ROLE augustus, slugworth")


@pytest.mark.parametrize(
    ("granted", "why"),
    [
        ("ALTER ROLE slugworth SUPERUSER; GRANT slugworth TO augustus", "may become slugworth, which is a superuser"),
        (
            "ALTER ROLE slugworth CREATEROLE; GRANT slugworth TO augustus",
            "become slugworth, which may create roles",
        ),
        ("ALTER ROLE augustus CREATEROLE", "may create roles and grant them"),
        ("ALTER ROLE augustus REPLICATION", "may replicate"),
        ("GRANT pg_write_all_data TO augustus", "may become pg_write_all_data, which may write to log"),
        ("GRANT pg_execute_server_program TO slugworth; GRANT slugworth TO augustus", "may write files of the server"),
        ("GRANT UPDATE (actor) ON log.events TO augustus", "may write to log.events without its functions"),
        (
            "GRANT INSERT ON log.events TO slugworth; GRANT slugworth TO augustus",
            "may become slugworth, which may write",
        ),
        ("GRANT UPDATE ON log.head TO augustus", "may write to log.head without its functions"),
        ("GRANT DELETE ON log.person_keys TO augustus", "may write to log.person_keys without its functions"),
        ("GRANT CREATE ON SCHEMA log TO augustus", "may create tables in the schema of the log"),
    ],
)
def test_every_privilege_that_could_rewrite_history_is_found_also_through_other_roles(
    written: str, owner: Connection[Any], granted: str, why: str
) -> None:
    with augustus(written, owner) as url:
        owner.execute(granted.encode())
        with pytest.raises(DatabaseUnavailable, match="logs in as augustus, who ") as refused:
            open_log(url)
    assert why in str(refused.value)


def test_the_owner_is_refused_as_the_login_of_the_program(empty_database: str) -> None:
    migrate(empty_database)
    with pytest.raises(DatabaseUnavailable, match=r"names .*, who is (a superuser|the owner); name a login"):
        admit(empty_database, make_conninfo(empty_database, password=""))
    with psycopg.connect(empty_database) as owner:
        inherits = owner.execute("SELECT rolinherit FROM pg_roles WHERE rolname = current_user").fetchone()
    assert inherits == (True,)


def test_a_login_keeps_its_password_if_the_address_has_none(written: str, owner: Connection[Any]) -> None:
    with augustus(written, owner) as url:
        admit(written, make_conninfo(url, password=""))
        open_log(url)


def test_no_log_opens_if_the_unsafe_functions_of_the_library_are_enabled(
    written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTGRES_ENABLE_DB_FUNCTIONS", "y")
    with pytest.raises(DatabaseUnavailable, match=r"POSTGRES_ENABLE_DB_FUNCTIONS is set, .* unset it"):
        open_log(as_program(written))


def test_a_person_can_read_the_log_with_sql(written: str) -> None:
    with connect(as_program(written), AUDITOR) as auditor:
        found = auditor.execute(
            "SELECT position, stream, version, topic, actor, state->>'account_id' AS account "
            "FROM log.history ORDER BY position"
        )
    assert [tuple(row.values()) for row in found] == [
        (1, "account-acme", 1, "account.AccountOpened.v1", "distributor:dora", "acme"),
        (2, "order-order-1", 1, "order.ExpansionRequested.v1", "distributor:dora", "acme"),
    ]


# --- addresses -----------------------------------------------------------------------------------------------------

PASSWORD = "0mpa/l00mpa"  # noqa: S105 - not a real one
QUOTED = "0mpa%2Fl00mpa"


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def open_log(url: str) -> None:
    with postgres_log(url):
        pass


ENTRY_POINTS = pytest.mark.parametrize(
    "entry_point", [connect, migrate, open_log], ids=["connect", "migrate", "postgres_log"]
)


def refusal(entry_point: Callable[[str], object], url: str) -> str:
    """Return the refusal of an address. Neither it nor its traceback has a part of the password."""
    with pytest.raises(DatabaseUnavailable) as caught:
        entry_point(url)
    message, full_traceback = str(caught.value), "".join(traceback.format_exception(caught.value))
    assert message.startswith("TRUNKLINE_OWNER_URL " if entry_point is migrate else "TRUNKLINE_DATABASE_URL ")
    assert "\n" not in message
    for piece in (PASSWORD, QUOTED, "0mpa", "l00mpa"):
        assert piece not in full_traceback
    return message


@pytest.mark.parametrize("database_url", ["hidden-word", "postgresql://127.0.0.1:5432/factory"])
def test_an_address_without_a_login_is_refused(servers: ServerAddresses, database_url: str) -> None:
    with pytest.raises(DatabaseUnavailable, match=r"^TRUNKLINE_DATABASE_URL (is not a PostgreSQL|names no user)"):
        admit(servers.database_url, database_url)


@ENTRY_POINTS
def test_a_wrong_password_is_refused_and_not_repeated(
    servers: ServerAddresses, entry_point: Callable[[str], object]
) -> None:
    at = conninfo_to_dict(servers.database_url)
    where = f"{at['host']}:{at['port']}"
    message = refusal(entry_point, f"postgresql://{at['user']}:{QUOTED}@{where}/{at['dbname']}")
    assert f"({where}/{at['dbname']})" in message
    assert "password authentication failed" in message


@ENTRY_POINTS
def test_a_port_without_a_server_is_named(entry_point: Callable[[str], object]) -> None:
    port = unused_port()
    message = refusal(entry_point, f"postgresql://wonka:{QUOTED}@127.0.0.1:{port}/factory")
    assert f"(127.0.0.1:{port}/factory) is unavailable" in message
    assert "Connection refused" in message


@ENTRY_POINTS
def test_a_database_that_does_not_exist_is_named(
    servers: ServerAddresses, entry_point: Callable[[str], object]
) -> None:
    message = refusal(entry_point, make_conninfo(servers.database_url, dbname="factory"))
    assert 'database "factory" does not exist' in message


@ENTRY_POINTS
@pytest.mark.parametrize(
    "url",
    [
        "0mpa",
        f"mysql://wonka:{QUOTED}@127.0.0.1:1/factory",
        f"postgresql://wonka:{QUOTED}@127.0.0.1:five/factory",
        f"postgresql://wonka:{QUOTED}@[::1/factory",
        f"postgresql://wonka:{QUOTED}%zz@127.0.0.1:1/factory",
        f"postgresql://127.0.0.1:1/factory?passwort={QUOTED}",
        "postgresql://wonka:l00mpa",
        f"postgresql://wonka:{PASSWORD}@127.0.0.1:1/factory",
        f"postgresql://wonka:5432/{PASSWORD}@127.0.0.1:1/factory",
        "postgresql://wonka:x@0mpa@127.0.0.1:1/factory",
        f"host=127.0.0.1 password={QUOTED} port",
    ],
)
def test_an_invalid_address_is_refused_and_not_repeated(entry_point: Callable[[str], object], url: str) -> None:
    assert "is not a PostgreSQL address; write postgresql://user:password@host:port/database" in refusal(
        entry_point, url
    )


# --- positions and exclusive processes -----------------------------------------------------------------------------


def test_a_position_is_0_until_it_is_moved(database_url: str) -> None:
    with connect(database_url) as conn:
        assert position_of(conn, "orders") == 0
        move_position(conn, "orders", 7)
        move_position(conn, "relay", 3)
        move_position(conn, "orders", 9)
        assert (position_of(conn, "orders"), position_of(conn, "relay")) == (9, 3)


def test_cancelling_while_connecting_leaks_no_connection(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connecting, cancelled, connections = Event(), Event(), SimpleQueue[Connection[Any]]()

    def connect_slowly(url: str) -> Connection[Any]:
        connecting.set()
        assert cancelled.wait(10)
        connections.put(conn := connect(url))
        return conn

    async def connect_and_be_cancelled() -> None:
        task = asyncio.create_task(connected_aside(database_url).__aenter__())
        await asyncio.to_thread(connecting.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        cancelled.set()

    monkeypatch.setattr(infra.postgres.connections, "connect", connect_slowly)
    asyncio.run(connect_and_be_cancelled())
    conn = connections.get(timeout=30)
    deadline = time.monotonic() + 10
    while not conn.closed:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_of_two_connections_is_exclusive_until_it_closes(database_url: str) -> None:
    with connect(database_url) as second:
        with connect(database_url) as first:
            assert only_one(first, "relay")
            assert not only_one(second, "relay")
            assert only_one(second, "projection orders")
        deadline = time.monotonic() + 10
        while not only_one(second, "relay"):  # the server takes a moment to notice
            assert time.monotonic() < deadline
