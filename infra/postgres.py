"""PostgreSQL: the roles that work on it, connections with limits of ours, and numbered migrations."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from importlib.resources import files
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import Final, LiteralString

import psycopg
from psycopg import Connection, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import DictRow, dict_row

WRITER: Final = "trunkline_writer"
"""Adds to the log and reads it, and cannot change or delete an event."""

PROJECTOR: Final = "trunkline_projector"
"""Reads the log, and writes the read models."""

AUDITOR: Final = "trunkline_auditor"
"""Reads the log and the read models; the keys of personal data are not for it, nor are the documents."""

LINE: Final[dict[str, str | int]] = {
    "client_encoding": "utf8",
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
"""What holds on every connection, as libpq's parameters: the encoding, for we pack texts ourselves, and whatever the
environment says; and what tells our side, in seconds, that there is nobody any more."""

OWNER_SETTING: Final = "TRUNKLINE_OWNER_URL"
MIGRATION_LOCK = 7_286_131
CHANNEL = "events"
GATHER_NEWS_S = 0.005
NEVER_SET = "POSTGRES_ENABLE_DB_FUNCTIONS"
"""A setting of the eventsourcing library under which appends take no lock, and readers lose events."""
_USUAL = {"host": "localhost", "port": "5432", "dbname": ""}
logger = logging.getLogger(__name__)


class DatabaseUnavailable(Exception):
    """The database cannot be reached or used. The text names the setting and the reason, and never the password."""


def session(role: str) -> str:
    """The options of a connection that works as ``role``: its limits, so that nobody holds up the others for long.

    Nor does who has lost its power, or its network, and so never closed its connection: what it was the only one to
    do is somebody else's after 25 s.
    """
    return (
        f"-c role={role} -c timezone=UTC -c lock_timeout=5s -c statement_timeout=60s "
        "-c idle_in_transaction_session_timeout=30s "
        "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
    )


def connect(database_url: str, role: str = PROJECTOR) -> Connection[DictRow]:
    """A connection as a role, in autocommit, with rows as dicts.

    Raises:
        DatabaseUnavailable: names the setting.
    """
    with _named(database_url):
        where = make_conninfo(database_url, options=session(role), **LINE)
        conn = psycopg.connect(where, autocommit=True, row_factory=dict_row)
        set_right(conn)
        return conn


def set_right(conn: Connection[DictRow]) -> None:
    """Keep time as we do. PGTZ and PGDATESTYLE of the environment come before what a connection asks for."""
    said = conn.info.parameter_status
    if said("TimeZone") != "UTC" or not (said("DateStyle") or "").startswith("ISO"):
        conn.execute("SELECT set_config('TimeZone', 'UTC', false), set_config('DateStyle', 'ISO', false)")


def owning(owner_url: str) -> Connection[DictRow]:
    """A connection of the database's owner, in autocommit, with rows as dicts.

    Raises:
        DatabaseUnavailable: names the setting.
    """
    with _named(owner_url, OWNER_SETTING):
        return psycopg.connect(make_conninfo(owner_url, **LINE), autocommit=True, row_factory=dict_row)


@asynccontextmanager
async def connected_aside(database_url: str) -> AsyncIterator[Connection[DictRow]]:
    """As `connect`, without holding up the event loop; closed also where whoever waits is cancelled meanwhile."""
    thread = ThreadPoolExecutor(1)
    connecting = thread.submit(connect, database_url)
    thread.shutdown(wait=False)
    try:
        conn = await asyncio.wrap_future(connecting)
    except asyncio.CancelledError:
        connecting.add_done_callback(_close)
        raise
    with conn:
        yield conn


def _close(connecting: Future[Connection[DictRow]]) -> None:
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().close()


def wary(database_url: str) -> None:
    """See that the program can work there, and cannot do what nobody should.

    Raises:
        DatabaseUnavailable: it cannot be reached; or the program's login could change or delete what happened; or the
            library's unsafe functions are switched on.
    """
    if os.environ.get(NEVER_SET):
        raise DatabaseUnavailable(
            f"{NEVER_SET} is set: with it appends take no lock, and readers lose events. Unset it, and start again."
        )
    with _named(database_url), connect(database_url, WRITER) as conn:
        known = {row["name"] for row in conn.execute("SELECT name FROM public.trunkline_migrations")}
        if missing := _scripts().keys() - known:
            raise DatabaseUnavailable(
                f"TRUNKLINE_DATABASE_URL ({_where(database_url)}) lacks {', '.join(sorted(missing))}; set "
                "TRUNKLINE_OWNER_URL, and run trunkline migrate."
            )
        found = conn.execute(_TOO_MUCH).fetchone()
    if found and found["why"]:
        raise DatabaseUnavailable(
            f"TRUNKLINE_DATABASE_URL ({_where(database_url)}) logs in as {found['login']}, who {found['why']}: whoever "
            "runs the program could rewrite history. Give that address as TRUNKLINE_OWNER_URL, and as "
            "TRUNKLINE_DATABASE_URL the same server with a login of its own; trunkline migrate makes it."
        )


_TOO_MUCH: LiteralString = """
    SELECT session_user AS login,
           CASE WHEN r.rolsuper THEN 'is a superuser'
                WHEN r.rolreplication THEN 'may replicate'
                WHEN pg_has_role(session_user, c.relowner, 'MEMBER') THEN 'owns the log'
                WHEN has_table_privilege(session_user, c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE, TRIGGER')
                THEN 'may write to the log past its chain' END AS why
      FROM pg_roles AS r, pg_class AS c
     WHERE r.rolname = session_user AND c.oid = 'log.events'::regclass
"""


@contextmanager
def _named(database_url: str, setting: str = "TRUNKLINE_DATABASE_URL") -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        where = _where(database_url)
        if where is None:
            raise DatabaseUnavailable(
                f"{setting} is no PostgreSQL address; write postgresql://user:password@host:port/database, "
                "with %2F for / and %40 for @ in the password."
            ) from None  # the library's error repeats what stands there
        reason = " ".join(str(error).split())
        if 'role "trunkline_' in reason:  # of ours, and there is none: nobody has migrated yet
            reason += "; TRUNKLINE_OWNER_URL and trunkline migrate make it"
        raise DatabaseUnavailable(f"{setting} ({where}) does not serve: {reason}") from error


def _where(database_url: str) -> str | None:
    """Host, port and database of an address; none where one of them may be a piece of the password."""
    try:
        parts = psycopg.conninfo.conninfo_to_dict(database_url)
    except psycopg.Error:
        return None
    host, port, name = (str(parts.get(key, usual)) for key, usual in _USUAL.items())
    return f"{host}:{port}/{name}" if port.replace(",", "").isdecimal() and "@" not in host + name else None


def _scripts() -> dict[str, bytes]:
    folder = files("infra").joinpath("migrations")
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.name.endswith(".sql")}
    return dict(sorted(found.items()))


def migrate(owner_url: str) -> list[str]:
    """Bring the schema up to date, as its owner; several may do so at once, and one does it. Gives the files applied.

    Raises:
        DatabaseUnavailable: the database cannot be reached, or its user may not create what is needed.
    """
    applied = []
    with _named(owner_url, OWNER_SETTING), psycopg.connect(make_conninfo(owner_url, **LINE)) as conn:
        conn.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
        conn.execute(
            "CREATE TABLE IF NOT EXISTS public.trunkline_migrations "
            "(name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        known = {name for (name,) in conn.execute("SELECT name FROM public.trunkline_migrations")}
        for name, script in _scripts().items():
            if name not in known:
                conn.execute(script)
                conn.execute("INSERT INTO public.trunkline_migrations (name) VALUES (%s)", (name,))
                applied.append(name)
        conn.execute(sql.SQL("GRANT SELECT ON public.trunkline_migrations TO {}").format(sql.Identifier(WRITER)))
    return applied


def program_login(owner_url: str) -> str:
    """An address for the program beside the owner's, with a login of its own and a new password; see `admit`."""
    at = conninfo_to_dict(owner_url)
    return f"postgresql://trunkline_service:{secrets.token_hex(24)}@{at['host']}:{at['port']}/{at['dbname']}"


def admit(owner_url: str, database_url: str) -> None:
    """Make the login that ``database_url`` names, with its password, and let it work as the program's roles.

    Of itself it may do nothing: each connection takes on the role of what it is for.

    Raises:
        DatabaseUnavailable: the database cannot be reached, its owner may not make logins, or ``database_url`` names
            none.
    """
    with _named(database_url):
        login = conninfo_to_dict(database_url)
    if not login.get("user"):
        raise DatabaseUnavailable("TRUNKLINE_DATABASE_URL names no user: it says which login the program is to have.")
    with _named(owner_url, OWNER_SETTING), psycopg.connect(make_conninfo(owner_url, **LINE)) as conn:
        conn.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
        name, given = str(login["user"]), str(login.get("password", ""))
        known = conn.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,)).fetchone()
        # What is sent is the verifier, so that no log of the server's has the password.
        verifier = conn.pgconn.encrypt_password(given.encode(), name.encode(), b"scram-sha-256").decode()
        conn.execute(
            sql.SQL("{} ROLE {} LOGIN NOINHERIT PASSWORD {}").format(
                sql.SQL("ALTER" if known else "CREATE"), sql.Identifier(name), sql.Literal(verifier)
            )
        )
        for role in (WRITER, PROJECTOR, AUDITOR):
            conn.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(role), sql.Identifier(name)))


@contextmanager
def listening(database_url: str, tell: Callable[[], None]) -> Iterator[None]:
    """Tell of each notification, on a connection of its own that is made anew when it breaks.

    Notifications are a hint: whoever waits also looks by itself, so one that is lost costs half a second. Those that
    come together are told once: under load there are a thousand a second, and each would wake everybody.
    """
    stopped = threading.Event()
    stop, stopping = Pipe()

    def listen() -> None:
        while not stopped.is_set():
            try:
                with connect(database_url, WRITER) as conn:
                    conn.execute(f"LISTEN {CHANNEL}")
                    while not stopped.is_set():
                        if list(conn.notifies(timeout=0)):
                            tell()
                        stopped.wait(GATHER_NEWS_S)
                        wait([conn.fileno(), stopping])
            except (psycopg.Error, DatabaseUnavailable) as error:
                logger.warning("listening for news broke off and begins anew: %s", error)
                stopped.wait(1)

    thread = threading.Thread(target=listen, name="log-news", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        stop.send_bytes(b"")
        thread.join()
        stop.close()
        stopping.close()


def only_one(conn: Connection[DictRow], name: str) -> bool:
    """Try to become the only one, over all processes, that does ``name``; for as long as the connection lives."""
    row = conn.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0)) AS ours", (name,)).fetchone()
    return bool(row and row["ours"])


def position_of(conn: Connection[DictRow], name: str) -> int:
    """How far the projection (or the relay) of a name has come; 0 where it has not begun."""
    row = conn.execute("SELECT position FROM read.positions WHERE name = %s", (name,)).fetchone()
    return row["position"] if row else 0


def move_position(conn: Connection[DictRow], name: str, position: int) -> None:
    """Record how far the projection (or the relay) of a name has come."""
    conn.execute(
        "INSERT INTO read.positions (name, position) VALUES (%s, %s) "
        "ON CONFLICT (name) DO UPDATE SET position = excluded.position",
        (name, position),
    )
