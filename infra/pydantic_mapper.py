"""Events to rows of the log and back: validated pydantic models behind the eventsourcing library's `Mapper`.

The library's own mapper does not validate; this one goes from bytes to a validated model in one step (`validate_json`).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple, cast
from uuid import UUID

from eventsourcing.domain import DomainEventProtocol
from eventsourcing.persistence import JSONTranscoder, Mapper, StoredEvent
from pydantic import ValidationError
from pydantic_core import from_json, to_json

from domain.messages import Event
from infra.recorder import LogRow, as_notifications, event_id
from infra.topics import topics
from infra.upcasts import UPCASTS


class UnreadableEvent(Exception):
    """A stored event that this program cannot read: an unknown topic, or a state that is not of its topic's shape."""


class Cause(NamedTuple):
    """Who caused a change, and why: what is recorded beside every event.

    Attributes:
        actor: role and name, for example ``distributor:dora`` or ``system:reactions``.
        correlation_id: the same for all that follows from one wish.
        causation_id: the event, or the message, that led to this one directly; none for a first wish.
    """

    actor: str
    correlation_id: str
    causation_id: str | None = None


class Recorded(NamedTuple):
    """An event with its place in the log, and the record of who caused it. ``position`` is 0 before it is appended."""

    stream: str
    version: int
    event: Event
    account_id: str | None
    cause: Cause
    recorded_at: datetime
    position: int = 0

    @property
    def originator_id(self) -> str:
        """The stream, by the library's name."""
        return self.stream

    @property
    def originator_version(self) -> int:
        """The version, by the library's name."""
        return self.version

    @property
    def event_id(self) -> UUID:
        """The event's own id: it follows from its place in its stream, so it is the same wherever it is computed."""
        return event_id(self.stream, self.version)


@cache
def _reader(topic: str) -> Callable[[bytes], Event]:
    """What reads the states of a topic."""
    if topic in UPCASTS:
        today, upcast = UPCASTS[topic]
        read = _reader(today)
        return lambda state: read(to_json(upcast(_fields(state))))
    event = topics().get(topic)
    if event is None:
        raise UnreadableEvent(f"the topic {topic!r} is not one that this version of Trunkline knows{_known(topic)}")
    return event.model_validate_json


def _fields(state: bytes) -> dict[str, Any]:
    fields = from_json(state)
    if not isinstance(fields, dict):
        raise UnreadableEvent("the state is no JSON object")
    return fields


def _known(topic: str) -> str:
    """Which versions of it are known, where it may be one from the future."""
    name = topic.rpartition(".")[0]
    versions = sorted(known.rpartition(".")[2] for known in (*topics(), *UPCASTS) if known.rpartition(".")[0] == name)
    return f"; it knows {' and '.join(versions)} of it, so a later version wrote this" if versions else ""


class PydanticMapper(Mapper[str]):
    """The library's mapper, for events that are pydantic models."""

    def __init__(self) -> None:
        super().__init__(transcoder=JSONTranscoder())
        topics()

    def to_stored_event(self, domain_event: DomainEventProtocol[str]) -> StoredEvent:
        """The row of a `Recorded` event, by the library's name."""
        return as_notifications([self.row(cast("Recorded", domain_event))])[0]

    def to_domain_event(self, stored_event: StoredEvent) -> Recorded:
        """The event of a row, by the library's name."""
        return self.recorded(LogRow.of_stored(stored_event))

    def row(self, recorded: Recorded) -> LogRow:
        """The row of an event."""
        return LogRow(
            originator_id=recorded.stream,
            originator_version=recorded.version,
            topic=recorded.event.TOPIC,
            state=recorded.event.model_dump_json().encode(),
            id=recorded.position,
            recorded_at=recorded.recorded_at,
            account_id=recorded.account_id,
            correlation_id=recorded.cause.correlation_id,
            causation_id=recorded.cause.causation_id,
            actor=recorded.cause.actor,
        )

    def recorded(self, row: LogRow) -> Recorded:
        """The event of a row.

        Raises:
            UnreadableEvent: names the stream, the version, the position, and what is wrong; repeats nothing of it.
        """
        stream, version, topic, state, position, recorded_at, account_id, correlation_id, causation_id, actor = row
        try:
            event = _reader(topic)(state)
        except (UnreadableEvent, ValueError) as error:
            where = f"{stream} version {version}, at position {position},"
            raise UnreadableEvent(f"Event {where} cannot be read: {_said(error)}") from None
        cause = Cause(actor, correlation_id, causation_id)
        return Recorded(stream, version, event, account_id, cause, recorded_at, position)


def _said(error: UnreadableEvent | ValueError) -> str:
    """What is wrong, without what stands there: it is reported to many more than may see that."""
    if not isinstance(error, ValidationError):
        return str(error)
    issues = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, issue['loc'])) or 'the whole'}: {issue['msg']}" for issue in issues)
