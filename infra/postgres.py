"""PostgreSQL: connections with limits of ours, numbered migrations, and the log's recorder on it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files

import psycopg
from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from psycopg import Connection, Cursor
from psycopg.rows import DictRow, dict_row
from psycopg_pool import ConnectionPool

from infra.log import Kept, Log, News, Recorder

APP_ROLE = "trunkline_app"
"""The role that the program works as; it can read and append to the log, and cannot change or delete an event."""

SESSION = (
    f"-c role={APP_ROLE} -c timezone=UTC -c lock_timeout=5s -c statement_timeout=60s "
    "-c idle_in_transaction_session_timeout=30s"
)
MIGRATION_LOCK = 7_286_131
CHANNEL = "events"
_USUAL = {"host": "localhost", "port": "5432", "dbname": ""}
logger = logging.getLogger(__name__)


class DatabaseUnavailable(Exception):
    """The database cannot be reached or used. The text names the setting and the reason, and never the password."""


def connect(database_url: str) -> Connection[DictRow]:
    """A connection as the program's role, in autocommit, with rows as dicts.

    Raises:
        DatabaseUnavailable: names the setting.
    """
    with _named(database_url):
        return psycopg.connect(database_url, autocommit=True, row_factory=dict_row, connect_timeout=5, options=SESSION)


@contextmanager
def _named(database_url: str) -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        where = _where(database_url)
        if where is None:
            raise DatabaseUnavailable(
                "TRUNKLINE_DATABASE_URL is no PostgreSQL address; write postgresql://user:password@host:port/database, "
                "with %2F for / and %40 for @ in the password."
            ) from None  # the library's error repeats what stands there
        reason = " ".join(str(error).split())
        raise DatabaseUnavailable(f"TRUNKLINE_DATABASE_URL ({where}) does not serve: {reason}") from error


def _where(database_url: str) -> str | None:
    """Host, port and database of an address; none where one of them may be a piece of the password."""
    try:
        parts = psycopg.conninfo.conninfo_to_dict(database_url)
    except psycopg.Error:
        return None
    host, port, name = (str(parts.get(key, usual)) for key, usual in _USUAL.items())
    return f"{host}:{port}/{name}" if port.replace(",", "").isdecimal() and "@" not in host + name else None


def migrate(database_url: str) -> list[str]:
    """Bring the schema up to date; several processes may do so at once, and one does it. Gives the files applied.

    Raises:
        DatabaseUnavailable: the database cannot be reached, or its user may not create what is needed.
    """
    applied = []
    folder = files("infra").joinpath("migrations")
    scripts = sorted((path for path in folder.iterdir() if path.name.endswith(".sql")), key=lambda path: path.name)
    with _named(database_url), psycopg.connect(database_url, connect_timeout=5) as conn:
        conn.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
        conn.execute(
            "CREATE TABLE IF NOT EXISTS public.trunkline_migrations "
            "(name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        known = {name for (name,) in conn.execute("SELECT name FROM public.trunkline_migrations")}
        for script in scripts:
            if script.name not in known:
                conn.execute(script.read_bytes())
                conn.execute("INSERT INTO public.trunkline_migrations (name) VALUES (%s)", (script.name,))
                applied.append(script.name)
    return applied


class _Datastore(PostgresDatastore):
    """The library's datastore on one address, with our limits in place of its defaults."""

    def __init__(self, database_url: str, pool_size: int) -> None:
        super().__init__(dbname="", host="", port="", user="", password="", schema="log", originator_id_type="text")
        self.lock_timeout = 5
        self.pool = ConnectionPool(  # type: ignore[assignment]  # the library's subclass adds nothing that we use
            database_url,
            connection_class=Connection[DictRow],
            kwargs={"row_factory": dict_row, "autocommit": True, "connect_timeout": 5, "options": SESSION},
            min_size=1,
            max_size=pool_size,
            open=False,
            timeout=1,  # the library tries ten times: so long, and not a hundred seconds, does who asks have to wait
            reconnect_timeout=2,  # and whoever asks after that begins anew, rather than wait for pauses that double
        )


class PostgresRecorder(PostgresApplicationRecorder, Recorder):
    """The library's recorder, keeping documents in the transaction of their events."""

    def _insert_events(
        self,
        curs: Cursor[DictRow],
        stored_events: Sequence[StoredEvent],  # noqa: ARG002 - the library's signature
        documents: Sequence[Kept] = (),
        **_: object,
    ) -> None:
        for document in documents:
            curs.execute(
                "INSERT INTO log.documents (sha256, media_type, content) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                (document.sha256, document.media_type, document.content),
            )

    def document(self, sha256: str) -> Kept | None:
        """A document by the SHA-256 of its bytes."""
        with self.datastore.get_connection() as conn:
            found = conn.execute("SELECT * FROM log.documents WHERE sha256 = %s", (sha256,)).fetchone()
        return Kept(found["sha256"], found["media_type"], bytes(found["content"])) if found else None


@contextmanager
def postgres_log(database_url: str, pool_size: int = 8) -> Iterator[Log]:
    """The log in a migrated database, with somebody listening for news.

    Raises:
        DatabaseUnavailable: names the setting.
    """
    connect(database_url).close()  # so that what is wrong is said by name, and not by a pool that gives up
    news = News()
    with _Datastore(database_url, pool_size) as datastore, _listening(database_url, news.tell):
        datastore.pool.open(wait=True, timeout=10)
        yield Log(PostgresRecorder(datastore, events_table_name="events"), news)


@contextmanager
def _listening(database_url: str, tell: Callable[[], None]) -> Iterator[None]:
    """Tell of each notification, on a connection of its own that is made anew when it breaks.

    Notifications are a hint: whoever waits also looks by itself, so one that is lost costs half a second.
    """
    stopped = threading.Event()

    def listen() -> None:
        while not stopped.is_set():
            try:
                with connect(database_url) as conn:
                    conn.execute(f"LISTEN {CHANNEL}")
                    while not stopped.is_set():
                        for _ in conn.notifies(timeout=0.2, stop_after=1):
                            tell()
            except (psycopg.Error, DatabaseUnavailable) as error:
                logger.warning("listening for news broke off and begins anew: %s", error)
                stopped.wait(1)

    thread = threading.Thread(target=listen, name="log-news", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


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
