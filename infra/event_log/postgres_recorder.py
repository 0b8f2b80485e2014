"""The recorder of the log on PostgreSQL, with the interfaces of the eventsourcing library.

Appends go through one writer, in groups (`infra.event_log.group_commit`); reads through a pool of connections. Both use
the role `infra.postgres.connections.WRITER`, which can append to the log and cannot change it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final, Self, TypeVar
from uuid import UUID

import psycopg
from eventsourcing.persistence import (
    ListenNotifySubscription,
    Notification,
    OperationalError,
    ProgrammingError,
    StoredEvent,
    Tracking,
)
from psycopg import Connection, Cursor
from psycopg.rows import BaseRowFactory, DictRow, dict_row
from psycopg_pool import ConnectionPool

from infra.event_log.append import Append
from infra.event_log.group_commit import GroupCommit
from infra.event_log.log import Log
from infra.event_log.notifications import Notifier
from infra.event_log.recorder import InboxEntry, LogRow, Recorder, Snapshot, StoredDocument, as_notifications
from infra.personal_data.postgres_person_keys import PostgresPersonKeys
from infra.postgres.connections import CONNECTION_PARAMETERS, WRITER, connect, listening, normalise_time, session
from infra.postgres.prepared import Statement, ask
from infra.postgres.roles import check_login

_SELECT: Final = (
    "SELECT stream AS originator_id, version AS originator_version, topic, state, position AS id, "
    "recorded_at, account_id, correlation_id, causation_id, actor FROM log.events "
)
_OF_STREAM: Final = Statement(
    b"rows_of_stream", f"{_SELECT} WHERE stream = $1 AND version > $2 ORDER BY version".encode()
)
_AFTER: Final = Statement(
    b"rows", f"{_SELECT} WHERE position > $1 AND position <= $2 ORDER BY position LIMIT $3".encode()
)
_HEAD: Final = Statement(b"head", b"SELECT position FROM log.head")
_HANDLED: Final = Statement(
    b"handled", b"SELECT body_sha256, first_position, last_position FROM log.inbox WHERE message_id = $1"
)
_SNAPSHOT: Final = Statement(
    b"snapshot", b"SELECT stream, version, account_id, shape, state FROM log.snapshots WHERE stream = $1"
)
POOL_WAIT_S = 2.0
_LAST: Final = 2**62
Parameters = dict[str, Any]
T = TypeVar("T")


def _log_row(_cursor: object) -> Callable[[Sequence[Any]], LogRow]:
    return LogRow._make


def _bounds(after: int, limit: int, stop: int | None) -> Parameters:
    return {"after": after, "stop": _LAST if stop is None else stop, "limit": limit}


class PostgresRecorder(Recorder):
    """A recorder on a migrated database.

    Args:
        database_url: the database; its user has to be a member of `WRITER`.
        pool_size: the largest number of concurrent reads.
        master_key: wraps the keys of personal data (see `infra.personal_data.master_keys`); without it, events with
            personal data can be neither written nor read.

    Raises:
        DatabaseUnavailable: names the setting.
    """

    keys: PostgresPersonKeys

    def __init__(self, database_url: str, pool_size: int = 8, master_key: bytes | None = None) -> None:
        check_login(database_url)
        self.notifier = Notifier()
        self._writer = GroupCommit(lambda: connect(database_url, WRITER), self.notifier.notify)
        self._pool = ConnectionPool(
            database_url,
            connection_class=Connection[DictRow],
            kwargs={"row_factory": dict_row, "autocommit": True, "options": session(WRITER), **CONNECTION_PARAMETERS},
            configure=normalise_time,
            min_size=1,
            max_size=pool_size,
            open=True,
            timeout=POOL_WAIT_S,
            reconnect_timeout=2,  # later callers reconnect at once, rather than wait for a backoff
        )
        self.keys = PostgresPersonKeys(self._rows, master_key)
        self._listening = listening(database_url, self.notifier.notify)
        self._listening.__enter__()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close, after the appends that were submitted before."""
        self._writer.close()
        self._listening.__exit__(None, None, None)
        self._pool.close()

    # --- appending

    def insert_events(
        self,
        stored_events: Sequence[StoredEvent],
        received: InboxEntry | None = None,
        documents: Sequence[StoredDocument] = (),
        tracking: Tracking | None = None,
        **_: object,
    ) -> Sequence[int]:
        """Append everything in one commit or nothing. Returns the positions."""
        if not stored_events and received is None and tracking is None:
            return []
        return list(self._writer.append(Append(stored_events, received, documents, tracking)))

    def insert_tracking(self, tracking: Tracking) -> None:
        """Record how far a process application has read."""
        self.insert_events([], tracking=tracking)

    # --- reading

    def _fetched(self, fetch: Callable[[Connection[Any]], list[T]]) -> list[T]:
        """Fetch on a connection of the pool; retry once if that connection is broken."""

        def fetched() -> list[T]:
            with self._pool.connection() as conn:
                return fetch(conn)

        try:
            try:
                return fetched()
            except (psycopg.OperationalError, psycopg.InterfaceError):
                self._pool.check()  # the others of the pool may be broken as well
                return fetched()
        except psycopg.ProgrammingError as error:
            raise ProgrammingError(str(error)) from error
        except psycopg.Error as error:
            raise OperationalError(str(error)) from error

    def _fetch(self, statement: Statement, *parameters: object, row: Callable[[Sequence[Any]], T]) -> list[T]:
        texts = [str(parameter).encode() for parameter in parameters]
        return self._fetched(lambda conn: ask(conn, statement, texts, row))

    def _execute(self, query: str, parameters: Parameters, row_factory: BaseRowFactory[T]) -> list[T]:
        def fetch(conn: Connection[Any]) -> list[T]:
            cursor: Cursor[T] = conn.cursor(binary=True, row_factory=row_factory)
            return cursor.execute(query.encode(), parameters, prepare=True).fetchall()

        return self._fetched(fetch)

    def _select(self, query: str, parameters: Parameters) -> list[LogRow]:
        return self._execute(_SELECT + query, parameters, _log_row)

    def _rows(self, query: str, parameters: Parameters) -> list[DictRow]:
        return self._execute(query, parameters, dict_row)

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[Notification]:
        """See the interface of the library."""
        query = "WHERE stream = %(stream)s AND version > %(gt)s AND version <= %(lte)s ORDER BY version "
        bounds = {"gt": -1 if gt is None else gt, "lte": _LAST if lte is None else lte, "limit": limit or _LAST}
        rows = self._select(
            query + ("DESC LIMIT %(limit)s" if desc else "ASC LIMIT %(limit)s"),
            {"stream": str(originator_id), **bounds},
        )
        return as_notifications(rows)

    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> Sequence[Notification]:
        """See the interface of the library."""
        after = 0 if start is None else start - inclusive_of_start
        if not topics:
            return as_notifications(self.rows(after, limit, stop))
        query = (
            "WHERE position > %(after)s AND position <= %(stop)s AND topic = ANY(%(topics)s) "
            "ORDER BY position LIMIT %(limit)s"
        )
        return as_notifications(self._select(query, {"topics": list(topics), **_bounds(after, limit, stop)}))

    def rows_of_stream(self, stream: str, after: int) -> list[LogRow]:
        """Return the rows of a stream after a version."""
        return self._fetch(_OF_STREAM, stream, after, row=LogRow._make)

    def rows(self, after: int, limit: int, stop: int | None) -> list[LogRow]:
        """Return rows after a position."""
        return self._fetch(_AFTER, after, _LAST if stop is None else stop, limit, row=LogRow._make)

    def rows_of_account(self, account_id: str, after: int, limit: int, stop: int | None) -> list[LogRow]:
        """Return rows of an account after a position."""
        query = (
            "WHERE account_id = %(account)s AND position > %(after)s AND position <= %(stop)s "
            "ORDER BY position LIMIT %(limit)s"
        )
        return self._select(query, {"account": account_id, **_bounds(after, limit, stop)})

    def position_at(self, moment: datetime) -> int:
        """Return the last position recorded at a time or before."""
        query = "SELECT position FROM log.events WHERE recorded_at <= %(moment)s ORDER BY position DESC LIMIT 1"
        rows = self._rows(query, {"moment": moment})
        return rows[0]["position"] if rows else 0

    def max_notification_id(self) -> int | None:
        """Return the last position."""
        ((position,),) = self._fetch(_HEAD, row=tuple)
        return position or None

    def max_tracking_id(self, application_name: str) -> int | None:
        """Return how far a process application has read."""
        query = "SELECT notification_id FROM log.tracking WHERE application_name = %(name)s"
        rows = self._rows(query, {"name": application_name})
        return rows[0]["notification_id"] if rows else None

    def handled(self, received: InboxEntry) -> range | None:
        """Return the positions of the events of a message."""
        for body_sha256, first, last in self._fetch(_HANDLED, received.message_id, row=tuple):
            if body_sha256 != received.body_sha256:
                raise received.reused()
            return range(first, last + 1)
        return None

    def snapshot(self, stream: str) -> Snapshot | None:
        """Return the latest snapshot of a stream."""
        rows = self._fetch(_SNAPSHOT, stream, row=tuple)
        return Snapshot(*rows[0]) if rows else None

    def keep_snapshot(self, snapshot: Snapshot) -> None:
        """Store a snapshot, replacing an older one of its stream."""
        query = (
            "INSERT INTO log.snapshots AS s (stream, version, account_id, shape, state) "
            "VALUES (%(stream)s, %(version)s, %(account_id)s, %(shape)s, %(state)s) "
            "ON CONFLICT (stream) DO UPDATE SET (version, account_id, shape, state, taken_at) = "
            "(excluded.version, excluded.account_id, excluded.shape, excluded.state, now()) RETURNING stream"
        )
        self._rows(query, asdict(snapshot))

    def document(self, sha256: str) -> StoredDocument | None:
        """Return a document by the SHA-256 of its bytes."""
        query = "SELECT sha256, media_type, content FROM log.documents WHERE sha256 = %(sha256)s"
        rows = self._rows(query, {"sha256": sha256})
        return StoredDocument(**rows[0]) if rows else None

    def subscribe(self, gt: int | None = None, topics: Sequence[str] = ()) -> _Subscription:
        """Return a subscription of the library, which listens and also polls."""
        return _Subscription(self, gt, topics)


class _Subscription(ListenNotifySubscription[PostgresRecorder]):
    """Woken by notifications, and every half second: a lost notification costs no more than that."""

    def __init__(self, recorder: PostgresRecorder, gt: int | None, topics: Sequence[str]) -> None:
        super().__init__(recorder=recorder, gt=gt, topics=topics)
        self._ended = threading.Event()
        self._waker = threading.Thread(target=self._wake, name="log-subscription", daemon=True)
        self._waker.start()

    def _wake(self) -> None:
        while not self._ended.is_set():
            self._recorder.notifier.wait_past(self._recorder.notifier.count, timeout_s=0.5)
            self._has_been_notified.set()

    def stop(self) -> None:
        super().stop()
        self._ended.set()


@contextmanager
def postgres_log(database_url: str, pool_size: int = 8, master_key: bytes | None = None) -> Iterator[Log]:
    """Yield the log of a migrated database.

    Raises:
        DatabaseUnavailable: names the setting.
        WrongSetting: the master key is not the one that was used before.
    """
    with PostgresRecorder(database_url, pool_size, master_key) as recorder:
        recorder.keys.prove()
        yield Log(recorder)
