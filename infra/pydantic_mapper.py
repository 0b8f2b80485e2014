"""Events to stored bytes and back: validated pydantic models behind the eventsourcing library's `Mapper`.

The library's own mapper does not validate; this one goes from bytes to a validated model in one step (`validate_json`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Generic, TypeVar
from uuid import NAMESPACE_URL, UUID, uuid5

from eventsourcing.domain import DomainEventProtocol
from eventsourcing.persistence import JSONTranscoder, Mapper, Notification, StoredEvent
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from domain.messages import Event
from infra.topics import topics

EventT = TypeVar("EventT", bound=Event)
EVENT_IDS = uuid5(NAMESPACE_URL, "urn:trunkline:event")


class UnreadableEvent(Exception):
    """A stored event that this program cannot read: an unknown topic, or a state that is not of its topic's shape."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Who caused a change, and why: what is recorded beside every event.

    Attributes:
        actor: role and name, for example ``distributor:dora`` or ``system:reactions``.
        correlation_id: the same for all that follows from one wish.
        causation_id: the event, or the message, that led to this one directly; none for a first wish.
    """

    actor: str
    correlation_id: str
    causation_id: str | None = None


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event with its place in the log, and the record of who caused it.

    ``position`` is 0 where the event was read as part of its stream rather than of the whole log.
    """

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
        return uuid5(EVENT_IDS, f"{self.stream}/{self.version}")


class _Envelope(BaseModel, Generic[EventT]):
    """What `state` holds: the event, and its record."""

    # What is wrong is reported to many more than may see what stands there.
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    account_id: str | None
    actor: str
    correlation_id: str
    causation_id: str | None
    recorded_at: AwareDatetime
    event: EventT


@cache
def _envelope(topic: str) -> type[_Envelope[Any]]:
    event = topics().get(topic)
    if event is None:
        raise UnreadableEvent(f"the topic {topic!r} is not one that this version of Trunkline knows")
    return _Envelope[event]  # type: ignore[valid-type]  # the class comes from the registry


class PydanticMapper(Mapper[str]):
    """The library's mapper, for events that are pydantic models."""

    def __init__(self) -> None:
        super().__init__(transcoder=JSONTranscoder())
        topics()

    def to_stored_event(self, domain_event: DomainEventProtocol[str]) -> StoredEvent:
        """The bytes of a `Recorded` event."""
        assert isinstance(domain_event, Recorded)
        cause = domain_event.cause
        envelope = _envelope(domain_event.event.TOPIC)(
            account_id=domain_event.account_id,
            actor=cause.actor,
            correlation_id=cause.correlation_id,
            causation_id=cause.causation_id,
            recorded_at=domain_event.recorded_at,
            event=domain_event.event,
        )
        return StoredEvent(
            originator_id=domain_event.stream,
            originator_version=domain_event.version,
            topic=domain_event.event.TOPIC,
            state=envelope.model_dump_json().encode(),
        )

    def to_domain_event(self, stored_event: StoredEvent) -> Recorded:
        """The event of some bytes.

        Raises:
            UnreadableEvent: names the stream, the version, and what is wrong.
        """
        try:
            envelope = _envelope(stored_event.topic).model_validate_json(stored_event.state)
        except (UnreadableEvent, ValidationError) as error:
            where = f"{stored_event.originator_id} version {stored_event.originator_version}"
            raise UnreadableEvent(f"Event {where} cannot be read: {error}") from error
        return Recorded(
            stream=str(stored_event.originator_id),
            version=stored_event.originator_version,
            event=envelope.event,
            account_id=envelope.account_id,
            cause=Cause(envelope.actor, envelope.correlation_id, envelope.causation_id),
            recorded_at=envelope.recorded_at,
            position=stored_event.id if isinstance(stored_event, Notification) else 0,
        )
