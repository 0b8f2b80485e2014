"""One commit over several aggregates: load, decide, evolve - and append all that was decided, or nothing."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeVar, cast

from domain.messages import Decider, Event
from infra.log import Change, Log
from infra.pydantic_mapper import Cause, Recorded
from infra.recorder import Kept

C = TypeVar("C")
S = TypeVar("S")
E = TypeVar("E", bound=Event)


class UnitOfWork:
    """What one handler decides. Each aggregate is loaded once; what is decided shows in its state at once."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._states: dict[str, Any] = {}
        self._versions: dict[str, int] = {}
        self._accounts: dict[str, str | None] = {}
        self._decided: dict[str, list[Event]] = {}
        self._documents: list[Kept] = []

    def state(self, decider: Decider[C, S, E], aggregate_id: str) -> S:
        """An aggregate as it stands, with what this unit of work has decided so far."""
        stream = decider.stream(aggregate_id)
        if stream not in self._states:
            state = decider.initial
            recorded = self._log.load(stream)
            for fact in recorded:
                state = decider.evolve(state, cast("E", fact.event))
            self._states[stream] = state
            self._versions[stream] = len(recorded)
            self._accounts[stream] = recorded[0].account_id if recorded else None
        return cast("S", self._states[stream])

    def account_of(self, decider: Decider[C, S, E], aggregate_id: str) -> str | None:
        """The account that an aggregate's first event was recorded for."""
        self.state(decider, aggregate_id)
        return self._accounts[decider.stream(aggregate_id)]

    def do(self, decider: Decider[C, S, E], aggregate_id: str, command: C) -> list[E]:
        """Decide a command; its events wait for `commit`.

        Raises:
            domain.messages.Refusal: a rule says no.
        """
        stream = decider.stream(aggregate_id)
        state = self.state(decider, aggregate_id)
        events = decider.decide(command, state)
        for event in events:
            state = decider.evolve(state, event)
        self._states[stream] = state
        self._decided.setdefault(stream, []).extend(events)
        return events

    def keep(self, document: Kept) -> None:
        """Keep a document in the commit."""
        self._documents.append(document)

    def commit(self, *, account_id: str | None, cause: Cause, at: datetime) -> list[Recorded]:
        """Append what was decided; nothing where nothing was.

        Raises:
            infra.log.VersionConflict: somebody else was faster; do the whole unit of work again.
        """
        changes = [Change(stream, self._versions[stream], events) for stream, events in self._decided.items() if events]
        return self._log.append(changes, account_id=account_id, cause=cause, at=at, documents=self._documents)
