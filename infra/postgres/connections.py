"""Connections to PostgreSQL, with roles, timeouts and keepalives."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import Final

import psycopg
from psycopg import Connection
from psycopg.conninfo import make_conninfo
from psycopg.rows import DictRow, dict_row

WRITER: Final = "trunkline_writer"
"""May append to the log and read it, and cannot change or delete an event."""

PROJECTOR: Final = "trunkline_projector"
"""May read the log, and write the read models."""

AUDITOR: Final = "trunkline_auditor"
"""May read the log and the read models, but neither the keys of personal data nor documents."""

CONNECTION_PARAMETERS: Final[dict[str, str | int]] = {
    "client_encoding": "utf8",
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
"""Parameters of libpq for every connection: the encoding, because we pack texts ourselves, whatever the environment
says; and keepalives (in seconds) that detect a dead peer. The timeout for unacknowledged data is in milliseconds: while
data is
in flight, the kernel sends no keepalives."""

OWNER_SETTING: Final = "TRUNKLINE_OWNER_URL"
CHANNEL = "events"
COALESCE_S = 0.005
_DEFAULTS = {"host": "localhost", "port": "5432", "dbname": ""}
logger = logging.getLogger(__name__)


class DatabaseUnavailable(Exception):
    """The database cannot be reached or used. The text names the setting and the reason, never the password."""


def session(role: str) -> str:
    """Return the options of a connection that works as ``role``, whatever the defaults of the database are.

    Acknowledged commits are on disk. Timeouts keep one connection from blocking the others. A client that lost its
    power or network is dropped after 25 s, so that another process can take over its locks.
    """
    return (
        f"-c role={role} -c timezone=UTC -c synchronous_commit=on -c default_transaction_read_only=off "
        r"-c default_transaction_isolation=read\ committed -c lock_timeout=5s -c statement_timeout=60s "
        "-c idle_in_transaction_session_timeout=30s "
        "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3 -c tcp_user_timeout=25s"
    )


def connect(database_url: str, role: str = PROJECTOR) -> Connection[DictRow]:
    """Return a connection as a role, in autocommit, with rows as dicts.

    Raises:
        DatabaseUnavailable: names the setting.
    """
    with named(database_url):
        where = make_conninfo(database_url, options=session(role), **CONNECTION_PARAMETERS)
        conn = psycopg.connect(where, autocommit=True, row_factory=dict_row)
        normalise_time(conn)
        return conn


def normalise_time(conn: Connection[DictRow]) -> None:
    """Set time zone and date style: PGTZ and PGDATESTYLE in the environment override connection options."""
    status = conn.info.parameter_status
    if status("TimeZone") != "UTC" or not (status("DateStyle") or "").startswith("ISO"):
        conn.execute("SELECT set_config('TimeZone', 'UTC', false), set_config('DateStyle', 'ISO', false)")


def owning(owner_url: str) -> Connection[DictRow]:
    """Return a connection of the owner of the database, in autocommit, with rows as dicts.

    Raises:
        DatabaseUnavailable: names the setting.
    """
    with named(owner_url, OWNER_SETTING):
        return psycopg.connect(make_conninfo(owner_url, **CONNECTION_PARAMETERS), autocommit=True, row_factory=dict_row)


@asynccontextmanager
async def connected_aside(database_url: str) -> AsyncIterator[Connection[DictRow]]:
    """Connect as `connect` does, without blocking the event loop. A cancelled caller leaks no connection."""
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


@contextmanager
def named(database_url: str, setting: str = "TRUNKLINE_DATABASE_URL") -> Iterator[None]:
    """Raise errors of the library as `DatabaseUnavailable`, with the name of the setting."""
    try:
        yield
    except psycopg.Error as error:
        where = whereabouts(database_url)
        if where is None:
            raise DatabaseUnavailable(
                f"{setting} is not a PostgreSQL address; write postgresql://user:password@host:port/database, "
                "with %2F for / and %40 for @ in the password."
            ) from None  # the error of the library quotes the address
        reason = " ".join(str(error).split())
        if 'role "trunkline_' in reason:  # a role of ours is missing: nobody has migrated yet
            reason += "; TRUNKLINE_OWNER_URL and trunkline migrate create it"
        raise DatabaseUnavailable(f"{setting} ({where}) is unavailable: {reason}") from error


def whereabouts(database_url: str) -> str | None:
    """Return host, port and database of an address, or None if one of them may be part of the password."""
    try:
        parts = psycopg.conninfo.conninfo_to_dict(database_url)
    except psycopg.Error:
        return None
    host, port, name = (str(parts.get(key, usual)) for key, usual in _DEFAULTS.items())
    return f"{host}:{port}/{name}" if port.replace(",", "").isdecimal() and "@" not in host + name else None


@contextmanager
def listening(database_url: str, notify: Callable[[], None]) -> Iterator[None]:
    """Call ``notify`` for notifications, on a connection of its own that is reopened when it breaks.

    Notifications are hints: waiters also poll, so a lost one costs half a second. Those that arrive together are
    coalesced: under load there are a thousand a second, and each would wake all waiters.
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
                            notify()
                        stopped.wait(COALESCE_S)
                        wait([conn.fileno(), stopping])
            except (psycopg.Error, DatabaseUnavailable) as error:
                logger.warning("listening for notifications failed and restarts: %s", error)
                stopped.wait(1)

    thread = threading.Thread(target=listen, name="log-listener", daemon=True)
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
    """Try to become the only process that does ``name``, for as long as the connection lives."""
    row = conn.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0)) AS acquired", (name,)).fetchone()
    return bool(row and row["acquired"])
