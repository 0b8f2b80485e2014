"""Given what happened, when somebody wishes for something, then this follows.

given(ORDER, requested, placed).when(capture).then(captured)
given(ORDER, requested, placed).when(capture).losing_to(cancel).then(set_aside)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Generic, TypeVar

from domain.messages import Command, Decider, Event, Message, Refusal

C = TypeVar("C", bound=Command)
S = TypeVar("S")
E = TypeVar("E", bound=Event)
M = TypeVar("M", bound=Message)


def given(decider: Decider[C, S, E], *history: E) -> Given[C, S, E]:
    """An aggregate with its history."""
    return Given(decider, reduce(decider.evolve, history, decider.initial))


def but(message: M, **changes: object) -> M:
    """The same message with other values, validated anew."""
    return type(message).model_validate({**dict(message), **changes})


def assert_storable(events: Iterable[Event]) -> None:
    """Stored as JSON and loaded again, each event is what it was."""
    for event in events:
        assert type(event).model_validate_json(event.model_dump_json()) == event


@dataclass(frozen=True)
class Given(Generic[C, S, E]):
    """An aggregate in a state."""

    decider: Decider[C, S, E]
    state: S

    def when(self, command: C) -> When[C, S, E]:
        """What the aggregate decides."""
        try:
            events = self.decider.decide(command, self.state)
        except Refusal as refusal:
            return When(self, command, [], refusal)
        assert_storable(events)
        return When(self, command, events, None)


@dataclass(frozen=True)
class When(Generic[C, S, E]):
    """What was decided. Every ``then`` gives the aggregate after it, so that a story can go on."""

    given: Given[C, S, E]
    command: C
    events: list[E]
    refusal: Refusal | None

    def losing_to(self, winner: C) -> When[C, S, E]:
        """What is decided where another command, accepted on the same state, was stored first.

        This is what the log's retry does after a conflict. Both commands have to be acceptable by themselves, for
        else there is nothing to win.
        """
        won = self.given.when(winner)
        assert self.events, f"{self.command!r} is no rival: it changes nothing by itself ({self.refusal})"
        assert won.events, f"{winner!r} is no rival: it changes nothing by itself ({won.refusal})"
        return won.after.when(self.command)

    def then(self, *expected: E) -> Given[C, S, E]:
        """Exactly these events, in this order."""
        assert self.refusal is None, f"refused: {self.refusal!r}"
        assert self.events == list(expected)
        return self.after

    def then_nothing(self) -> Given[C, S, E]:
        """It was done already."""
        return self.then()

    def then_refused(self, reason: type[Refusal], *, saying: str) -> Given[C, S, E]:
        """A rule says no, and the sentence says what was wrong."""
        assert self.refusal is not None, f"not refused, but decided: {self.events!r}"
        assert type(self.refusal) is reason
        assert saying in str(self.refusal)
        assert str(self.refusal).endswith(".")
        return self.given

    @property
    def after(self) -> Given[C, S, E]:
        """The aggregate after what was decided, whatever it was."""
        decider = self.given.decider
        return Given(decider, reduce(decider.evolve, self.events, self.given.state))
