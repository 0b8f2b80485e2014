"""Commands as messages: authenticate, authorise, handle, answer.

A message that is wrong in any way is answered with a refusal that says why. If it names no reply subject, the refusal
is raised, and the message goes to the dead letters. Only failures on our side are retried.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pydantic import ValidationError
from pydantic_core import from_json

from domain.messages import Message, Refusal, what_is_wrong
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
from handlers.requests import MalformedCommand, parse
from infra.payments.provider import Checkout, PaymentNotApproved, PaymentProviderError, PaymentProviderRefused
from infra.settings import Sender

COMMAND_BYTES_MAX: Final = 64 * 1024
ANSWERABLE = re.compile(r"(_INBOX|trunkline\.replies)(\.[A-Za-z0-9_-]+)+")
"""The allowed reply subjects. If any were allowed, a sender could make us publish events in our name."""


class CommandTooLarge(Refusal):
    """The message is larger than a command may be."""


class UnknownCommandType(Refusal):
    """No command has this type and version."""


class ForeignAccount(Refusal):
    """The sender may not act for this account."""


class Unanswerable(PermanentFailure):
    """A refusal that cannot be answered: the message names no reply subject."""


@dataclass(frozen=True)
class Incoming:
    """A message as received. ``stored_at`` is when the broker stored it, by its clock."""

    subject: str
    headers: Mapping[str, str]
    body: bytes
    stored_at: datetime

    @property
    def reply(self) -> str:
        """The reply subject; empty if the sender wants no answer, or names a subject that is not allowed."""
        wanted = self.headers.get(REPLY_HEADER, "")
        return wanted if ANSWERABLE.fullmatch(wanted) else ""


@dataclass(frozen=True)
class Answer:
    """The answer to a command, and its subject; an empty subject if the sender wants none."""

    subject: str
    body: bytes
    command: str
    """The name of the command, for metrics; ``unknown`` if there is none of that name."""
    outcome: str


def deal_with(incoming: Incoming, dependencies: Dependencies, senders: Sequence[Sender]) -> Answer:
    """Handle the command of a message, once, and return its answer.

    Raises:
        Unanswerable: it was refused, and names no reply subject.
        Exception: something that the command needs is unavailable; the message is to be redelivered.
    """
    event: CommandEvent | None = None
    try:
        sender = _sender(incoming, senders)
        event = _event(incoming)
        accepted = _accepted(event, dependencies, sender)
    except Refusal as refusal:
        return _refused(incoming, dependencies, event, refusal)
    return Answer(incoming.reply, _answer(dependencies, event, accepted), _name(event), "accepted")


def _sender(incoming: Incoming, senders: Sequence[Sender]) -> Sender:
    if len(incoming.body) > COMMAND_BYTES_MAX:
        raise CommandTooLarge(
            f"The message has {len(incoming.body)} bytes; a command may have at most {COMMAND_BYTES_MAX}."
        )
    reply = incoming.headers.get(REPLY_HEADER, "")
    return authenticate(senders, incoming.headers, subject=incoming.subject, reply=reply, body=incoming.body)


def _event(incoming: Incoming) -> CommandEvent:
    try:
        event = CommandEvent.model_validate_json(incoming.body)
    except ValidationError as error:
        raise MalformedCommand(f"The message is not a CloudEvent of a command: {what_is_wrong(error)}.") from None
    if event.type != incoming.subject:
        raise MalformedCommand(f"The type of the message is {event.type}; send it to that subject.")
    check_fresh(event.time, incoming.stored_at)
    return event


def _accepted(event: CommandEvent, dependencies: Dependencies, sender: Sender) -> Accepted:
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
    return parse(kind, event.data, dependencies.clock.now())


class PaymentRefused(Refusal):
    """The payment provider refused."""


def refused_by_provider(error: PaymentProviderError) -> PaymentRefused:
    """Return the refusal for an error of the provider."""
    return PaymentRefused(f"The payment provider refused: {str(error).rstrip('.')}.")


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
    """Return the account that a message names, to keep its order; None if it names none or cannot be read."""
    if len(body) > COMMAND_BYTES_MAX:
        return None
    try:
        account_id = from_json(body)["data"]["account_id"]
    except (ValueError, KeyError, TypeError):
        return None
    return account_id if isinstance(account_id, str) else None
