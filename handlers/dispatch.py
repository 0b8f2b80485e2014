"""Handle a command: authorise, decide, append; replay the answer of a repeated message; retry on a conflict."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from domain.messages import Message, Refusal
from handlers.commands import COMMANDS, NO_OUTSIDE_EFFECTS
from handlers.context import Actor, NotPermitted, RequestContext, Role, retry_on_conflict
from handlers.dependencies import Dependencies
from infra import tracing
from infra.event_log.log import VersionConflict
from infra.event_log.recorder import AlreadyHandled, InboxEntry


@dataclass(frozen=True)
class Outcome:
    """What came of a request: its events, and what the handler answers (see there, and `Entry.replay_answer`)."""

    context: RequestContext
    answer: Any


def handle(
    message: Message,
    dependencies: Dependencies,
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
    with tracing.command(type(message).__name__, correlation_id, {"trunkline.role": actor.role}):
        return _handled(message, dependencies, actor, correlation_id, causation_id, message_id)


def _handled(
    message: Message,
    dependencies: Dependencies,
    actor: Actor,
    correlation_id: str,
    causation_id: str | None,
    message_id: str | None,
) -> Outcome:
    entry = COMMANDS[type(message)]
    account_id = getattr(message, "account_id", None)
    if actor.role not in entry.roles or (actor.role is Role.PARTNER and account_id != actor.account_id):
        allowed = ", ".join(sorted(role for role in entry.roles))
        raise NotPermitted(f"{actor} may not ask for {type(message).__name__} here; it takes one of: {allowed}.")

    received = _received(message_id, message) if message_id else None

    def as_before(context: RequestContext, positions: range) -> Outcome:
        context.recorded = dependencies.log.read(positions.start - 1, limit=len(positions)) if positions else []
        return Outcome(context, entry.replay_answer(message, context) if entry.replay_answer else None)

    def once() -> Outcome:
        context = RequestContext(dependencies, actor, correlation_id, causation_id, received)
        try:
            if (
                received
                and entry.handler not in NO_OUTSIDE_EFFECTS
                and (positions := dependencies.log.handled(received)) is not None
            ):
                return as_before(context, positions)
            answer = entry.handler(message, context)
            if received and not context.committed:
                context.commit(context.work(), account_id)
        except AlreadyHandled as before:
            return as_before(context, before.positions)
        except Refusal:
            if received and (positions := dependencies.log.handled(received)) is not None:
                return as_before(context, positions)  # it was done, and is refused now because it was
            raise
        return Outcome(context, answer)

    try:
        return once()
    except VersionConflict:
        with entry.retry_lock:
            return retry_on_conflict(once)


def _received(message_id: str, message: Message) -> InboxEntry:
    """What the inbox keeps of a message. The time of its arrival is no part of it: a copy arrives later."""
    body = f"{type(message).__name__} {message.model_dump_json(exclude={'at'})}"
    return InboxEntry(message_id, hashlib.sha256(body.encode()).digest())
