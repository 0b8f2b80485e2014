"""The messages of commands, and of the answers to them.

A command's ``data`` is the command as `handlers.commands` knows it, without its time: that is when it arrives.
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
    """The commands that somebody outside may send, by the type of their message."""
    kinds = [kind for kind, entry in COMMANDS.items() if entry.roles - {Role.SYSTEM}]
    return {f"{COMMAND_SUBJECTS}.{kind.__name__}": kind for kind in sorted(kinds, key=lambda kind: kind.__name__)}


class CommandEvent(BaseModel):
    """The envelope of a command: CloudEvents 1.0. Extensions that we do not know are passed over."""

    model_config = ConfigDict(frozen=True)

    specversion: Literal["1.0"] = Field(description="The version of CloudEvents.")
    id: MESSAGE_IDS = Field(description="Makes the command safe to repeat: under one id of a sender, it is done once.")
    source: Annotated[str, StringConstraints(min_length=1, max_length=200)] = Field(description="Who wishes.")
    type: str = Field(max_length=200, description="What is wished; the same as the subject in NATS.")
    time: AwareDatetime = Field(description="When it was sent; it has to reach the broker within five minutes of that.")
    datacontenttype: Literal["application/json"] = Field("application/json", description="How data is written.")
    correlationid: MESSAGE_IDS | None = Field(
        None, description="The same for all that follows from one wish; the id of the command, where not given."
    )
    data: dict[str, Any] = Field(description="What the type says.")


class OpenedCheckout(BaseModel):
    """Where the customer pays: to be opened in a browser. Once back from there, send CompleteCheckout with its id."""

    checkout_id: str
    approve_url: str


class Accepted(BaseModel):
    """The command was done, now or before: these are the positions of its events. None where it changed nothing."""

    outcome: Literal["accepted"] = "accepted"
    positions: tuple[int, ...]
    checkout: OpenedCheckout | None = Field(
        None, description="Of CheckOut, where the order is paid at the provider and waits for that."
    )


class Refused(BaseModel):
    """The command was not done. The code is stable, the sentence is for people."""

    outcome: Literal["refused"] = "refused"
    code: str
    sentence: str


class AnswerEvent(BaseModel):
    """The envelope of an answer: CloudEvents 1.0."""

    specversion: Literal["1.0"] = Field("1.0", description="The version of CloudEvents.")
    id: str = Field(description="The answer's own id: it follows from that of the command.")
    source: Literal["urn:trunkline:commands"] = Field("urn:trunkline:commands", description="Who answers.")
    type: Literal["trunkline.answers.v1"] = Field("trunkline.answers.v1", description="It is an answer.")
    subject: str = Field(description="The type of the command; empty where that could not be read.")
    time: AwareDatetime = Field(description="When it was answered.")
    datacontenttype: Literal["application/json"] = Field("application/json", description="How data is written.")
    correlationid: str | None = Field(None, description="That of the command.")
    causationid: str | None = Field(None, description="The id of the command; none where that could not be read.")
    data: Accepted | Refused = Field(description="The outcome.", discriminator="outcome")
