"""The shapes that every command, event and refusal of the domain has."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Generic, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, StringConstraints, ValidationError

Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,99}$")]
"""An id of ours or of a service that calls us: 1 to 100 letters, digits, and ``. _ : -`` inside."""

Text = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")
]
"""One line that a person wrote: 1 to 200 characters, none of them a control character."""


class Message(BaseModel):
    """A value that never changes and admits no field it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Event(Message):
    """A fact, in the past tense. ``TOPIC`` is its stored name, pinned: to move or rename the class changes nothing."""

    TOPIC: ClassVar[str]


class Command(Message):
    """A wish, in the imperative. ``at`` is when it arrived (UTC), so that deciding it again gives the same answer."""

    at: AwareDatetime


class Refusal(Exception):
    """A command that breaks a rule. Its text is one sentence: what was wrong, and what would be right."""

    @property
    def code(self) -> str:
        """The reason as ``snake_case``, stable for machines."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()


C = TypeVar("C")
S = TypeVar("S")
E = TypeVar("E")


def what_is_wrong(error: ValidationError) -> str:
    """What a message has that it may not have, or lacks: place by place, without repeating what stood there."""
    issues = error.errors(include_url=False, include_input=False, include_context=False)
    said = ((".".join(map(str, issue["loc"])) or "the whole", issue["msg"]) for issue in issues)
    return "; ".join(f"{place}: {sentence[:1].lower()}{sentence[1:]}" for place, sentence in said)


@dataclass(frozen=True)
class Decider(Generic[C, S, E]):
    """One kind of aggregate: where it starts, what it decides, how it changes.

    ``decide(command, state)`` gives the new events: none where the command was done already; it raises a `Refusal`
    where a rule says no. ``evolve(state, event)`` gives the next state and never refuses, so that a rule that is
    tightened tomorrow leaves yesterday's history loadable. ``personal`` says that the state holds personal data, so it
    is kept nowhere but in the log: there it vanishes when its person is erased.
    """

    category: str
    initial: S
    decide: Callable[[C, S], list[E]]
    evolve: Callable[[S, E], S]
    personal: bool = False

    def stream(self, aggregate_id: str) -> str:
        """The id of one aggregate's stream in the log."""
        return f"{self.category}-{aggregate_id}"
