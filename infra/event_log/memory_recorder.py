"""A recorder in memory, for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, cast

from eventsourcing.persistence import IntegrityError, Notification, StoredEvent
from eventsourcing.popo import POPOProcessRecorder

from infra.event_log.notifications import Notifier
from infra.event_log.recorder import (
    AlreadyHandled,
    InboxEntry,
    LogRow,
    Recorder,
    Snapshot,
    StoredDocument,
    as_notifications,
    expected_versions,
)
from infra.personal_data.person_keys import MemoryPersonKeys


class MemoryRecorder(POPOProcessRecorder, Recorder):
    """A recorder in memory, for tests."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = MemoryPersonKeys()
        self.notifier = Notifier()
        self._documents: dict[str, StoredDocument] = {}
        self._inbox: dict[str, tuple[InboxEntry, range]] = {}
        self._snapshots: dict[str, Snapshot] = {}

    def _assert_uniqueness(
        self,
        stored_events: Sequence[StoredEvent],
        received: InboxEntry | None = None,
        **kwargs: Any,  # noqa: ANN401 - passed on
    ) -> None:
        if received is not None and (positions := self.handled(received)) is not None:
            raise AlreadyHandled(positions)
        for stream, version in expected_versions(stored_events).items():
            if version != max(self._stored_events_index.get(stream, ()), default=min(version, 0)):
                raise IntegrityError(f"{stream} is not at version {version}.")
        super()._assert_uniqueness(stored_events, **kwargs)

    def _update_table(
        self,
        stored_events: Sequence[StoredEvent],
        received: InboxEntry | None = None,
        documents: Sequence[StoredDocument] = (),
        **kwargs: Any,  # noqa: ANN401 - passed on
    ) -> Sequence[int] | None:
        first = len(self._stored_events) + 1
        rows = [LogRow.of_stored(event, position) for position, event in enumerate(stored_events, start=first)]
        positions = super()._update_table(as_notifications(rows), **kwargs)
        self._documents.update({document.sha256: document for document in documents})
        if received is not None:
            self._inbox[received.message_id] = (received, range(first, first + len(rows)))
        self.notifier.notify()
        return positions

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
        return as_notifications(self._selected(after, limit, stop, lambda row: not topics or row.topic in topics))

    def rows(self, after: int, limit: int, stop: int | None) -> Sequence[LogRow]:
        """Return rows after a position."""
        return self._selected(after, limit, stop, lambda _: True)

    def rows_of_account(self, account_id: str, after: int, limit: int, stop: int | None) -> Sequence[LogRow]:
        """Return rows of an account after a position."""
        return self._selected(after, limit, stop, lambda row: row.account_id == account_id)

    def position_at(self, moment: datetime) -> int:
        """Return the last position recorded at a time or before."""
        return max((row.id for row in self._selected(0, 2**62, None, lambda row: row.recorded_at <= moment)), default=0)

    def rows_of_stream(self, stream: str, after: int) -> Sequence[LogRow]:
        """Return the rows of a stream after a version."""
        return cast("Sequence[LogRow]", self.select_events(stream, gt=after))

    def _selected(self, after: int, limit: int, stop: int | None, wanted: Callable[[LogRow], bool]) -> list[LogRow]:
        with self._database_lock:
            some = cast("list[LogRow]", self._stored_events[max(after, 0) : stop])
        return [row for row in some if wanted(row)][:limit]

    def handled(self, received: InboxEntry) -> range | None:
        """Return the positions of the events of a message."""
        found, positions = self._inbox.get(received.message_id, (received, None))
        if found != received:
            raise received.reused()
        return positions

    def snapshot(self, stream: str) -> Snapshot | None:
        """Return the latest snapshot of a stream."""
        return self._snapshots.get(stream)

    def keep_snapshot(self, snapshot: Snapshot) -> None:
        """Store a snapshot."""
        self._snapshots[snapshot.stream] = snapshot

    def document(self, sha256: str) -> StoredDocument | None:
        """Return a document by the SHA-256 of its bytes."""
        return self._documents.get(sha256)
