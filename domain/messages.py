"""Base types of every command, event and refusal of the domain."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Generic, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, StringConstraints, ValidationError

Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,99}$")]
"""An id, ours or a caller's: 1 to 100 letters and digits, with ``. _ : -`` inside."""

Text = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")
]
"""One line of human text: 1 to 200 characters, no control characters."""


class Message(BaseModel):
    """An immutable value that forbids unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Event(Message):
    """A fact, in the past tense. ``TOPIC`` is its stored name; it is pinned, so the class can be moved or renamed."""

    TOPIC: ClassVar[str]


class Command(Message):
    """A request, in the imperative. ``at`` is when it arrived (UTC), so that a retry decides the same."""

    at: AwareDatetime


class Refusal(Exception):
    """A command breaks a rule. The text is one sentence: what is wrong and what would be right."""

    @property
    def code(self) -> str:
        """The reason in ``snake_case``, stable for machines."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()


C = TypeVar("C")
S = TypeVar("S")
E = TypeVar("E")


def what_is_wrong(error: ValidationError) -> str:
    """Describe a message's validation errors by location, without repeating its values, which may be personal data."""
    issues = error.errors(include_url=False, include_input=False, include_context=False)
    said = ((".".join(map(str, issue["loc"])) or "the whole", issue["msg"]) for issue in issues)
    return "; ".join(f"{place}: {sentence[:1].lower()}{sentence[1:]}" for place, sentence in said)


@dataclass(frozen=True)
class Decider(Generic[C, S, E]):
    """One kind of aggregate: its initial state, its decisions, and how events change it.

    ``decide(command, state)`` returns the new events: none if the command was already done. It raises a `Refusal` if
    the command breaks a rule. ``evolve(state, event)`` returns the next state and never refuses, so that yesterday's
    history loads after a rule is tightened. ``personal`` means that the state holds personal data, so it is stored in
    the log only, where erasure of the person makes it unreadable.
    """

    category: str
    initial: S
    decide: Callable[[C, S], list[E]]
    evolve: Callable[[S, E], S]
    personal: bool = False

    def stream(self, aggregate_id: str) -> str:
        """The stream id of one aggregate in the log."""
        return f"{self.category}-{aggregate_id}"
