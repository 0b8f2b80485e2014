"""Given past events, when a command is decided, then these events follow.

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
    """A copy of a message with other values, validated again."""
    return type(message).model_validate({**dict(message), **changes})


def assert_storable(events: Iterable[Event]) -> None:
    """Check that each event survives storage as JSON, and return the events as loaded."""
    for event in events:
        assert type(event).model_validate_json(event.model_dump_json()) == event


@dataclass(frozen=True)
class Given(Generic[C, S, E]):
    """An aggregate in a state."""

    decider: Decider[C, S, E]
    state: S

    def when(self, command: C) -> When[C, S, E]:
        """Decide a command."""
        try:
            events = self.decider.decide(command, self.state)
        except Refusal as refusal:
            return When(self, command, [], refusal)
        assert_storable(events)
        return When(self, command, events, None)


@dataclass(frozen=True)
class When(Generic[C, S, E]):
    """The outcome of a command. Every ``then`` returns the aggregate after it, so that a story can continue."""

    given: Given[C, S, E]
    command: C
    events: list[E]
    refusal: Refusal | None

    def losing_to(self, winner: C) -> When[C, S, E]:
        """The outcome if another command, accepted on the same state, was committed first.

        This is what the log's retry does after a conflict. Both commands must be acceptable by themselves; otherwise
        there is no race.
        """
        won = self.given.when(winner)
        assert self.events, f"{self.command!r} cannot race: it changes nothing by itself ({self.refusal})"
        assert won.events, f"{winner!r} cannot race: it changes nothing by itself ({won.refusal})"
        return won.after.when(self.command)

    def then(self, *expected: E) -> Given[C, S, E]:
        """Expect exactly these events, in this order."""
        assert self.refusal is None, f"refused: {self.refusal!r}"
        assert self.events == list(expected)
        return self.after

    def then_nothing(self) -> Given[C, S, E]:
        """Expect no events: the command was already done."""
        return self.then()

    def then_refused(self, reason: type[Refusal], *, saying: str) -> Given[C, S, E]:
        """Expect a refusal whose sentence contains ``saying``."""
        assert self.refusal is not None, f"not refused, but decided: {self.events!r}"
        assert type(self.refusal) is reason
        assert saying in str(self.refusal)
        assert str(self.refusal).endswith(".")
        return self.given

    @property
    def after(self) -> Given[C, S, E]:
        """The aggregate after the outcome, whatever it was."""
        decider = self.given.decider
        return Given(decider, reduce(decider.evolve, self.events, self.given.state))
