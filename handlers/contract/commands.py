"""The messages of commands, and of the answers to them.

The ``data`` of a command is the command of `handlers.commands` without its time, which is that of its arrival.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from domain.messages import Message
from handlers.commands import COMMANDS
from handlers.context import Role
from infra.broker.nats import COMMAND_SUBJECTS

REPLY_HEADER = "Trunkline-Reply"
MESSAGE_IDS = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,200}$")]


@cache
def offered() -> dict[str, type[Message]]:
    """Return the commands that may be sent from outside, by the type of their message."""
    kinds = [kind for kind, entry in COMMANDS.items() if entry.roles - {Role.SYSTEM}]
    return {f"{COMMAND_SUBJECTS}.{kind.__name__}": kind for kind in sorted(kinds, key=lambda kind: kind.__name__)}


class CommandEvent(BaseModel):
    """The envelope of a command: CloudEvents 1.0. Unknown extensions are ignored."""

    model_config = ConfigDict(frozen=True)

    specversion: Literal["1.0"] = Field(description="The version of CloudEvents.")
    id: MESSAGE_IDS = Field(description="The idempotency key: a command is handled once for each id of a sender.")
    source: Annotated[str, StringConstraints(min_length=1, max_length=200)] = Field(description="The sender.")
    type: str = Field(max_length=200, description="The command; the same as the subject in NATS.")
    time: AwareDatetime = Field(description="When it was sent; it must reach the broker within five minutes.")
    datacontenttype: Literal["application/json"] = Field("application/json", description="The format of data.")
    correlationid: MESSAGE_IDS | None = Field(
        None, description="Shared by everything that follows from one command; by default the id of the command."
    )
    data: dict[str, Any] = Field(description="The command itself; see its type.")


class OpenedCheckout(BaseModel):
    """Where the customer pays, in a browser. After that, send CompleteCheckout with its id."""

    checkout_id: str
    approve_url: str


class Accepted(BaseModel):
    """The command was handled, now or before: the positions of its events, none if it changed nothing."""

    outcome: Literal["accepted"] = "accepted"
    positions: tuple[int, ...]
    checkout: OpenedCheckout | None = Field(
        None, description="Of CheckOut, if the order waits for a payment at the provider."
    )


class Refused(BaseModel):
    """The command was refused. The code is stable; the sentence is for people."""

    outcome: Literal["refused"] = "refused"
    code: str
    sentence: str


class AnswerEvent(BaseModel):
    """The envelope of an answer: CloudEvents 1.0."""

    specversion: Literal["1.0"] = Field("1.0", description="The version of CloudEvents.")
    id: str = Field(description="The id of the answer, derived from that of the command.")
    source: Literal["urn:trunkline:commands"] = Field("urn:trunkline:commands", description="The sender of the answer.")
    type: Literal["trunkline.answers.v1"] = Field("trunkline.answers.v1", description="An answer.")
    subject: str = Field(description="The type of the command; empty if it could not be read.")
    time: AwareDatetime = Field(description="When it was answered.")
    datacontenttype: Literal["application/json"] = Field("application/json", description="The format of data.")
    correlationid: str | None = Field(None, description="The correlation id of the command.")
    causationid: str | None = Field(None, description="The id of the command; null if it could not be read.")
    data: Accepted | Refused = Field(description="The outcome.", discriminator="outcome")
