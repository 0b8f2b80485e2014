"""One commit over several aggregates: load, decide, evolve - and append all that was decided, or nothing."""

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
    """What one handler decides. Each aggregate is loaded once; what is decided shows in its state at once.

    Args:
        log: where from, and where to.
        use_cache: begin with what this process remembers of an aggregate, without asking the log whether it has moved
            on. The append finds out; where nothing is to be appended, the log is asked after all. For handlers that do
            nothing but decide and append: who also talks to the outside world has to know what is true before.
    """

    def __init__(self, log: Log, *, use_cache: bool = False) -> None:
        self._log = log
        self._trusting = use_cache
        self._remembered: set[str] = set()
        self._states: dict[str, Any] = {}
        self._versions: dict[str, int] = {}
        self._accounts: dict[str, str | None] = {}
        self._decided: dict[str, list[Event]] = {}
        self._deciders: dict[str, Decider[Any, Any, Any]] = {}
        self._documents: list[StoredDocument] = []

    def state(self, decider: Decider[C, S, E], aggregate_id: str) -> S:
        """An aggregate as it stands, with what this unit of work has decided so far."""
        stream = decider.stream(aggregate_id)
        if stream not in self._states:
            recent = self._log.recent.get(stream) if self._trusting else None
            if recent:
                self._remembered.add(stream)
            else:
                recent = load_aggregate(decider, stream, self._log)
            self._begin(decider, stream, recent)
        return cast("S", self._states[stream])

    def begin(self, decider: Decider[C, S, E], aggregate_id: str) -> None:
        """Begin an aggregate that is not there yet, without asking for it. The append finds out where it is."""
        self.begin_at(decider, aggregate_id, CachedState(0, decider.initial, None))

    def begin_at(self, decider: Decider[C, S, E], aggregate_id: str, standing: CachedState) -> None:
        """Begin with an aggregate as a commit will leave it that is on its way. The append finds out whether it did."""
        self._begin(decider, decider.stream(aggregate_id), standing)

    def _begin(self, decider: Decider[Any, Any, Any], stream: str, standing: CachedState) -> None:
        self._states[stream] = standing.state
        self._versions[stream] = standing.version
        self._accounts[stream] = standing.account_id
        self._deciders[stream] = decider

    def standing(self, decider: Decider[C, S, E], aggregate_id: str) -> CachedState:
        """An aggregate as the commit of this unit of work will leave it."""
        stream = decider.stream(aggregate_id)
        state = self.state(decider, aggregate_id)
        version = self._versions[stream] + len(self._decided.get(stream, ()))
        return CachedState(version, state, self._accounts[stream])

    def account_of(self, decider: Decider[C, S, E], aggregate_id: str) -> str | None:
        """The account that an aggregate's first event was recorded for."""
        self.state(decider, aggregate_id)
        return self._accounts[decider.stream(aggregate_id)]

    def do(self, decider: Decider[C, S, E], aggregate_id: str, command: C) -> list[E]:
        """Decide a command; its events wait for `commit`.

        Raises:
            domain.messages.Refusal: a rule says no.
            infra.event_log.log.VersionConflict: the cached state is stale; do the whole unit of work again.
        """
        stream = decider.stream(aggregate_id)
        state = self.state(decider, aggregate_id)
        try:
            events = decider.decide(command, state)
        except Refusal:
            self._ask_the_log()
            raise
        if not events:
            self._ask_the_log()
        for event in events:
            state = decider.evolve(state, event)
        self._states[stream] = state
        self._decided.setdefault(stream, []).extend(events)
        return events

    def _ask_the_log(self) -> None:
        """What leads to no append is checked by none: so see that what was remembered holds."""
        while self._remembered:
            stream = self._remembered.pop()
            if load_aggregate(self._deciders[stream], stream, self._log).version != self._versions[stream]:
                raise VersionConflict(f"The stream {stream} has moved on.")

    def keep(self, document: StoredDocument) -> None:
        """Keep a document in the commit."""
        self._documents.append(document)

    def commit(
        self, *, account_id: str | None, cause: Cause, at: datetime, received: InboxEntry | None = None
    ) -> list[Recorded]:
        """Append what was decided, and note the message it follows from; nothing where there is neither.

        Raises:
            infra.event_log.log.VersionConflict: somebody else was faster; do the whole unit of work again.
            infra.event_log.recorder.AlreadyHandled, MessageIdReused: the inbox knows the message.
        """
        changes = [Change(stream, self._versions[stream], events) for stream, events in self._decided.items() if events]
        try:
            recorded = self._log.append(
                changes, account_id=account_id, cause=cause, at=at, documents=self._documents, received=received
            )
        except VersionConflict:
            for stream in self._remembered & self._decided.keys():
                load_aggregate(self._deciders[stream], stream, self._log)
            raise
        for change in changes:
            self._remember(change, account_id)
        return recorded

    def _remember(self, change: Change, account_id: str | None) -> None:
        if not self._deciders[change.stream].personal:
            account = self._accounts[change.stream] if change.expected_version else account_id
            version = change.expected_version + len(change.events)
            self._log.recent.keep(change.stream, CachedState(version, self._states[change.stream], account))
