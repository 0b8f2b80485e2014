"""Unit of work: load several aggregates, decide, and append all decisions in one commit or not at all."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeVar, cast

from domain.messages import Decider, Event, Refusal
from infra.event_log.log import Change, Log, VersionConflict
from infra.event_log.recorder import InboxEntry, StoredDocument
from infra.event_log.snapshots import load_aggregate
from infra.event_log.state_cache import CachedState
from infra.recorded import Cause, Recorded

C = TypeVar("C")
S = TypeVar("S")
E = TypeVar("E", bound=Event)


class UnitOfWork:
    """The decisions of one handler. Each aggregate is loaded once, and its state shows decisions at once.

    Args:
        log: the log to load from and append to. use_cache: start from cached states without reading the log. The append
        checks their versions; without an append,
            the log is read after all. Only for handlers that decide and append: one that also calls the outside world
            has to know the current state before.
    """

    def __init__(self, log: Log, *, use_cache: bool = False) -> None:
        self._log = log
        self._use_cache = use_cache
        self._cached: set[str] = set()
        self._states: dict[str, Any] = {}
        self._versions: dict[str, int] = {}
        self._accounts: dict[str, str | None] = {}
        self._decided: dict[str, list[Event]] = {}
        self._deciders: dict[str, Decider[Any, Any, Any]] = {}
        self._documents: list[StoredDocument] = []

    def state(self, decider: Decider[C, S, E], aggregate_id: str) -> S:
        """Return the state of an aggregate, with the decisions of this unit of work so far."""
        stream = decider.stream(aggregate_id)
        if stream not in self._states:
            recent = self._log.recent.get(stream) if self._use_cache else None
            if recent:
                self._cached.add(stream)
            else:
                recent = load_aggregate(decider, stream, self._log)
            self._begin(decider, stream, recent)
        return cast("S", self._states[stream])

    def begin(self, decider: Decider[C, S, E], aggregate_id: str) -> None:
        """Start a new aggregate without loading it. The append fails if it exists."""
        self.begin_at(decider, aggregate_id, CachedState(0, decider.initial, None))

    def begin_at(self, decider: Decider[C, S, E], aggregate_id: str, base: CachedState) -> None:
        """Start from the state that a commit in progress will leave. The append fails if it did not."""
        self._begin(decider, decider.stream(aggregate_id), base)

    def _begin(self, decider: Decider[Any, Any, Any], stream: str, base: CachedState) -> None:
        self._states[stream] = base.state
        self._versions[stream] = base.version
        self._accounts[stream] = base.account_id
        self._deciders[stream] = decider

    def resulting(self, decider: Decider[C, S, E], aggregate_id: str) -> CachedState:
        """Return the state that the commit of this unit of work will leave."""
        stream = decider.stream(aggregate_id)
        state = self.state(decider, aggregate_id)
        version = self._versions[stream] + len(self._decided.get(stream, ()))
        return CachedState(version, state, self._accounts[stream])

    def account_of(self, decider: Decider[C, S, E], aggregate_id: str) -> str | None:
        """Return the account of the first event of an aggregate."""
        self.state(decider, aggregate_id)
        return self._accounts[decider.stream(aggregate_id)]

    def do(self, decider: Decider[C, S, E], aggregate_id: str, command: C) -> list[E]:
        """Decide a command; its events wait for `commit`.

        Raises:
            domain.messages.Refusal: a rule forbids it.
            infra.event_log.log.VersionConflict: the cached state is stale; do the whole unit of work again.
        """
        stream = decider.stream(aggregate_id)
        state = self.state(decider, aggregate_id)
        try:
            events = decider.decide(command, state)
        except Refusal:
            self._verify_cached()
            raise
        if not events:
            self._verify_cached()
        for event in events:
            state = decider.evolve(state, event)
        self._states[stream] = state
        self._decided.setdefault(stream, []).extend(events)
        return events

    def _verify_cached(self) -> None:
        """Check cached states against the log: a command without events skips the version check of an append."""
        while self._cached:
            stream = self._cached.pop()
            if load_aggregate(self._deciders[stream], stream, self._log).version != self._versions[stream]:
                raise VersionConflict(f"The stream {stream} has moved on.")

    def keep(self, document: StoredDocument) -> None:
        """Store a document in the commit."""
        self._documents.append(document)

    def commit(
        self, *, account_id: str | None, cause: Cause, at: datetime, received: InboxEntry | None = None
    ) -> list[Recorded]:
        """Append all decisions, and record their message in the inbox. Does nothing if there is neither.

        Raises:
            infra.event_log.log.VersionConflict: another writer was faster; do the whole unit of work again.
            infra.event_log.recorder.AlreadyHandled, MessageIdReused: the inbox knows the message.
        """
        changes = [Change(stream, self._versions[stream], events) for stream, events in self._decided.items() if events]
        try:
            recorded = self._log.append(
                changes, account_id=account_id, cause=cause, at=at, documents=self._documents, received=received
            )
        except VersionConflict:
            for stream in self._cached & self._decided.keys():
                load_aggregate(self._deciders[stream], stream, self._log)
            raise
        for change in changes:
            self._cache(change, account_id)
        return recorded

    def _cache(self, change: Change, account_id: str | None) -> None:
        if not self._deciders[change.stream].personal:
            account = self._accounts[change.stream] if change.expected_version else account_id
            version = change.expected_version + len(change.events)
            self._log.recent.keep(change.stream, CachedState(version, self._states[change.stream], account))
