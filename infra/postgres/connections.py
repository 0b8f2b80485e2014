"""PostgreSQL: the roles that work on it, and connections with limits of ours."""

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
    "tcp_user_timeout": 25_000,
}
"""What holds on every connection, as libpq's parameters: the encoding, for we pack texts ourselves, and whatever the
environment says; and what tells our side, in seconds, that there is nobody any more - in milliseconds, where something
was sent that nobody confirms, for then nothing asks whether the other side is there."""

OWNER_SETTING: Final = "TRUNKLINE_OWNER_URL"
CHANNEL = "events"
GATHER_NEWS_S = 0.005
_USUAL = {"host": "localhost", "port": "5432", "dbname": ""}
logger = logging.getLogger(__name__)


class DatabaseUnavailable(Exception):
    """The database cannot be reached or used. The text names the setting and the reason, and never the password."""


def session(role: str) -> str:
    """The options of a connection that works as ``role``, whatever the database's own defaults are.

    What is acknowledged is on the disk. And its limits, so that nobody holds up the others for long.

    Nor does who has lost its power, or its network, and so never closed its connection: what it was the only one to
    do is somebody else's after 25 s.
    """
    return (
        f"-c role={role} -c timezone=UTC -c synchronous_commit=on -c default_transaction_read_only=off "
        r"-c default_transaction_isolation=read\ committed -c lock_timeout=5s -c statement_timeout=60s "
        "-c idle_in_transaction_session_timeout=30s "
        "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3 -c tcp_user_timeout=25s"
    )


def connect(database_url: str, role: str = PROJECTOR) -> Connection[DictRow]:
    """A connection as a role, in autocommit, with rows as dicts.

    Raises:
        DatabaseUnavailable: names the setting.
    """
    with named(database_url):
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
    with named(owner_url, OWNER_SETTING):
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


@contextmanager
def named(database_url: str, setting: str = "TRUNKLINE_DATABASE_URL") -> Iterator[None]:
    """Say `DatabaseUnavailable`, with the name of the setting, where the library raises an error of its own."""
    try:
        yield
    except psycopg.Error as error:
        where = whereabouts(database_url)
        if where is None:
            raise DatabaseUnavailable(
                f"{setting} is no PostgreSQL address; write postgresql://user:password@host:port/database, "
                "with %2F for / and %40 for @ in the password."
            ) from None  # the library's error repeats what stands there
        reason = " ".join(str(error).split())
        if 'role "trunkline_' in reason:  # of ours, and there is none: nobody has migrated yet
            reason += "; TRUNKLINE_OWNER_URL and trunkline migrate make it"
        raise DatabaseUnavailable(f"{setting} ({where}) does not serve: {reason}") from error


def whereabouts(database_url: str) -> str | None:
    """Host, port and database of an address; none where one of them may be a piece of the password."""
    try:
        parts = psycopg.conninfo.conninfo_to_dict(database_url)
    except psycopg.Error:
        return None
    host, port, name = (str(parts.get(key, usual)) for key, usual in _USUAL.items())
    return f"{host}:{port}/{name}" if port.replace(",", "").isdecimal() and "@" not in host + name else None


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
