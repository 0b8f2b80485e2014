"""Handle a command: authorise, decide, append; replay the answer of a repeated message; retry on a conflict."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from domain.messages import Message, Refusal
from handlers.commands import COMMANDS, DECIDED_ALONE
from handlers.context import Actor, Desk, NotPermitted, Role, again
from handlers.dependencies import House
from infra import tracing
from infra.event_log.log import VersionConflict
from infra.event_log.recorder import AlreadyHandled, Received


@dataclass(frozen=True)
class Outcome:
    """What came of a request: its events, and what the handler answers (see there, and `Entry.again`)."""

    desk: Desk
    answer: Any


def handle(
    message: Message,
    house: House,
    actor: Actor,
    *,
    correlation_id: str,
    causation_id: str | None = None,
    message_id: str | None = None,
) -> Outcome:
    """Do what a message asks; where somebody else was faster, load and decide again.

    With a ``message_id``, it is done once: the same message again gives the events of the first time. A refusal is not
    remembered, for nothing was done: what is refused today may be asked again tomorrow.

    Raises:
        domain.messages.Refusal: a rule says no, the actor may not ask for this, or the id is another message's.
    """
    with tracing.wish(type(message).__name__, correlation_id, {"trunkline.role": actor.role}):
        return _handled(message, house, actor, correlation_id, causation_id, message_id)


def _handled(
    message: Message, house: House, actor: Actor, correlation_id: str, causation_id: str | None, message_id: str | None
) -> Outcome:
    entry = COMMANDS[type(message)]
    account_id = getattr(message, "account_id", None)
    if actor.role not in entry.roles or (actor.role is Role.PARTNER and account_id != actor.account_id):
        allowed = ", ".join(sorted(role for role in entry.roles))
        raise NotPermitted(f"{actor} may not ask for {type(message).__name__} here; it takes one of: {allowed}.")

    received = _received(message_id, message) if message_id else None

    def as_before(desk: Desk, positions: range) -> Outcome:
        desk.recorded = house.log.read(positions.start - 1, limit=len(positions)) if positions else []
        return Outcome(desk, entry.again(message, desk) if entry.again else None)

    def once() -> Outcome:
        desk = Desk(house, actor, correlation_id, causation_id, received)
        try:
            if (
                received
                and entry.handler not in DECIDED_ALONE
                and (positions := house.log.handled(received)) is not None
            ):
                return as_before(desk, positions)
            answer = entry.handler(message, desk)
            if received and not desk.committed:
                desk.commit(desk.work(), account_id)
        except AlreadyHandled as before:
            return as_before(desk, before.positions)
        except Refusal:
            if received and (positions := house.log.handled(received)) is not None:
                return as_before(desk, positions)  # it was done, and is refused now because it was
            raise
        return Outcome(desk, answer)

    try:
        return once()
    except VersionConflict:
        with entry.queue:
            return again(once)


def _received(message_id: str, message: Message) -> Received:
    """What the inbox keeps of a message. The time of its arrival is no part of it: a copy arrives later."""
    body = f"{type(message).__name__} {message.model_dump_json(exclude={'at'})}"
    return Received(message_id, hashlib.sha256(body.encode()).digest())
