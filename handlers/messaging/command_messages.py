"""Commands that come as messages: who sent them, whether they may, what came of them, and the answer.

Whatever is wrong with a message, it is answered with a refusal that says why; what cannot be answered is raised, and
goes to the dead letters. Only what fails for reasons of our own is tried again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pydantic import ValidationError
from pydantic_core import from_json

from domain.messages import Command, Message, Refusal, what_is_wrong
from handlers.context import Actor, Role
from handlers.contract.commands import (
    REPLY_HEADER,
    Accepted,
    AnswerEvent,
    CommandEvent,
    OpenedCheckout,
    Refused,
    offered,
)
from handlers.dependencies import Dependencies
from handlers.dispatch import handle
from handlers.messaging.redelivery import PermanentFailure
from handlers.messaging.senders import authenticate, check_fresh
from infra.payments.provider import Checkout, PaymentNotApproved, PaymentProviderError, PaymentProviderRefused
from infra.settings import Sender

COMMAND_BYTES_MAX: Final = 64 * 1024
ANSWERABLE = re.compile(r"(_INBOX|trunkline\.replies)(\.[A-Za-z0-9_-]+)+")
"""Where answers go. Were it anywhere, a sender could have us publish events in our name."""


class CommandTooLarge(Refusal):
    """The message is larger than a command has to be."""


class MalformedCommand(Refusal):
    """The message is not what it has to be."""


class UnknownCommandType(Refusal):
    """There is no command of this type and version."""


class ForeignAccount(Refusal):
    """The sender may not act for this account."""


class Unanswerable(PermanentFailure):
    """The outcome was a refusal, and the message does not say where to send it."""


@dataclass(frozen=True)
class Incoming:
    """A message as it came. ``stored_at`` is when the broker took it, by the broker's clock."""

    subject: str
    headers: Mapping[str, str]
    body: bytes
    stored_at: datetime

    @property
    def reply(self) -> str:
        """Where the sender wants the answer; empty where it wants none, or says no place that answers go to."""
        wanted = self.headers.get(REPLY_HEADER, "")
        return wanted if ANSWERABLE.fullmatch(wanted) else ""


@dataclass(frozen=True)
class Answer:
    """What is to be sent back, and where to; nowhere, where nobody asked."""

    subject: str
    body: bytes
    command: str
    """The name of the command, for figures; ``unknown`` where there is none of that name."""
    outcome: str


def deal_with(incoming: Incoming, dependencies: Dependencies, senders: Sequence[Sender]) -> Answer:
    """Do what a message asks, once, and say what came of it.

    Raises:
        Unanswerable: it was refused, and nobody can be told.
        Exception: something that the command needs is away; it is to be delivered again.
    """
    event: CommandEvent | None = None
    try:
        sender = _sender(incoming, senders)
        event = _event(incoming)
        accepted = _done(event, dependencies, sender)
    except Refusal as refusal:
        return _refused(incoming, dependencies, event, refusal)
    return Answer(incoming.reply, _answer(dependencies, event, accepted), _name(event), "accepted")


def _sender(incoming: Incoming, senders: Sequence[Sender]) -> Sender:
    if len(incoming.body) > COMMAND_BYTES_MAX:
        raise CommandTooLarge(f"The message has {len(incoming.body)} bytes; a command has at most {COMMAND_BYTES_MAX}.")
    reply = incoming.headers.get(REPLY_HEADER, "")
    return authenticate(senders, incoming.headers, subject=incoming.subject, reply=reply, body=incoming.body)


def _event(incoming: Incoming) -> CommandEvent:
    try:
        event = CommandEvent.model_validate_json(incoming.body)
    except ValidationError as error:
        raise MalformedCommand(f"The message is no CloudEvent of a command: {what_is_wrong(error)}.") from None
    if event.type != incoming.subject:
        raise MalformedCommand(f"The message says that it is a {event.type}; send it to that subject.")
    check_fresh(event.time, incoming.stored_at)
    return event


def _done(event: CommandEvent, dependencies: Dependencies, sender: Sender) -> Accepted:
    message = _message(event, dependencies)
    account_id = getattr(message, "account_id", None)
    if not sender.may_act_for(account_id):
        whose = f"for the account {account_id}" if account_id else "without naming an account"
        raise ForeignAccount(f"{sender.name} may not act {whose}; its accounts are: {_listed(sender.accounts)}.")
    try:
        outcome = handle(
            message,
            dependencies,
            Actor(Role(sender.role), sender.name, account_id),
            correlation_id=event.correlationid or event.id,
            causation_id=event.id,
            message_id=f"command:{sender.name}:{event.id}",
        )
    except (PaymentProviderRefused, PaymentNotApproved) as error:
        raise refused_by_provider(error) from error
    opened = outcome.answer
    return Accepted(
        positions=tuple(recorded.position for recorded in outcome.context.recorded),
        checkout=OpenedCheckout(**opened.model_dump()) if isinstance(opened, Checkout) else None,
    )


def _message(event: CommandEvent, dependencies: Dependencies) -> Message:
    kind = offered().get(event.type)
    if kind is None:
        raise UnknownCommandType(f"There is no command {event.type}; the commands are {_listed(offered())}.")
    fields = event.data
    if issubclass(kind, Command):
        if "at" in fields:
            raise MalformedCommand("The time of a command is when it arrives; leave out its field at.")
        fields = {**fields, "at": dependencies.clock.now()}
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise MalformedCommand(f"{kind.__name__} cannot be read: {what_is_wrong(error)}.") from None


class PaymentRefused(Refusal):
    """The payment provider will not do this."""


def refused_by_provider(error: PaymentProviderError) -> PaymentRefused:
    """The refusal that a provider's no amounts to."""
    return PaymentRefused(f"The payment provider will not do this: {str(error).rstrip('.')}.")


def _refused(incoming: Incoming, dependencies: Dependencies, event: CommandEvent | None, refusal: Refusal) -> Answer:
    if not incoming.reply:
        raise Unanswerable(f"{refusal.code}: {refusal}") from refusal
    body = _answer(dependencies, event, Refused(code=refusal.code, sentence=str(refusal)))
    return Answer(incoming.reply, body, _name(event), refusal.code)


def _name(event: CommandEvent | None) -> str:
    kind = offered().get(event.type) if event else None
    return kind.__name__ if kind else "unknown"


def _answer(dependencies: Dependencies, event: CommandEvent | None, outcome: Accepted | Refused) -> bytes:
    answer = AnswerEvent(
        id=f"answer:{event.id if event else 'unread'}",
        subject=event.type if event else "",
        time=dependencies.clock.now(),
        correlationid=event.correlationid or event.id if event else None,
        causationid=event.id if event else None,
        data=outcome,
    )
    return answer.model_dump_json(exclude_none=True).encode()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def account_named(body: bytes) -> str | None:
    """The account that a message speaks of, for keeping its order; none where it names none, or cannot be read."""
    if len(body) > COMMAND_BYTES_MAX:
        return None
    try:
        account_id = from_json(body)["data"]["account_id"]
    except (ValueError, KeyError, TypeError):
        return None
    return account_id if isinstance(account_id, str) else None
