"""Handle a command: authorise, decide, append; replay the answer of a repeated message; retry on a conflict."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import Any

from domain.messages import Message, Refusal
from handlers.commands import COMMANDS, NO_OUTSIDE_EFFECTS, Entry
from handlers.context import Actor, NotPermitted, RequestContext, Role, retry_on_conflict
from handlers.dependencies import Dependencies
from infra import tracing
from infra.event_log.log import VersionConflict
from infra.event_log.recorder import AlreadyHandled, InboxEntry


@dataclass(frozen=True)
class Outcome:
    """What came of a command: its events, and what its handler returned (or `Entry.replay_answer`)."""

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
    """Handle a command or request; load and decide again if another writer was faster.

    With a ``message_id`` it is idempotent: the same message again returns the events of the first time. A refusal is
    not remembered, because nothing was done: a message that is refused today may be accepted tomorrow.

    Raises:
        domain.messages.Refusal: a rule forbids it, the actor may not ask for it, or the id was used by another message.
    """
    entry = COMMANDS[type(message)]
    received = _inbox_entry(message_id, message) if message_id else None
    with tracing.command(type(message).__name__, correlation_id, {"trunkline.role": actor.role}):
        _check_permission(entry, message, actor)

        def attempt() -> Outcome:
            return _attempt(entry, message, RequestContext(dependencies, actor, correlation_id, causation_id, received))

        try:
            return attempt()
        except VersionConflict:
            with entry.retry_lock:
                return retry_on_conflict(attempt)


def _check_permission(entry: Entry[Any, Any], message: Message, actor: Actor) -> None:
    account_id = getattr(message, "account_id", None)
    if actor.role not in entry.roles or (actor.role is Role.PARTNER and account_id != actor.account_id):
        allowed = ", ".join(sorted(entry.roles))
        raise NotPermitted(f"{actor} may not ask for {type(message).__name__} here; it takes one of: {allowed}.")


def _attempt(entry: Entry[Any, Any], message: Message, context: RequestContext) -> Outcome:
    replayed = partial(_replay, entry, message, context)
    try:
        if entry.handler not in NO_OUTSIDE_EFFECTS and (positions := _handled(context)) is not None:
            return replayed(positions)
        answer = entry.handler(message, context)
        if context.received and not context.committed:
            context.commit(context.work(), getattr(message, "account_id", None))
    except AlreadyHandled as before:
        return replayed(before.positions)
    except Refusal:
        if (positions := _handled(context)) is not None:
            return replayed(positions)  # it was handled before, and is refused now for that reason
        raise
    return Outcome(context, answer)


def _handled(context: RequestContext) -> range | None:
    """Return the positions of the message's events, or None if it was not handled before."""
    return context.dependencies.log.handled(context.received) if context.received else None


def _replay(entry: Entry[Any, Any], message: Message, context: RequestContext, positions: range) -> Outcome:
    log = context.dependencies.log
    context.recorded = log.read(positions.start - 1, limit=len(positions)) if positions else []
    return Outcome(context, entry.replay_answer(message, context) if entry.replay_answer else None)


def _inbox_entry(message_id: str, message: Message) -> InboxEntry:
    """What the inbox records of a message. Its arrival time is not part of it: a copy arrives later."""
    body = f"{type(message).__name__} {message.model_dump_json(exclude={'at'})}"
    return InboxEntry(message_id, hashlib.sha256(body.encode()).digest())
