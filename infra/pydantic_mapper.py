"""Events to rows of the log and back: validated pydantic models behind the eventsourcing library's `Mapper`.

The library's own mapper does not validate; this one goes from bytes to a validated model in one step (`validate_json`).
Personal fields are sealed on the way in, under the key of whose they are, and opened on the way out (`infra.sealing`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple, cast
from uuid import UUID

from eventsourcing.domain import DomainEventProtocol
from eventsourcing.persistence import JSONTranscoder, Mapper, StoredEvent
from pydantic import ValidationError
from pydantic_core import from_json, to_json, to_jsonable_python

from domain.messages import Event
from domain.personal import ERASED, SEALED, Personal, person_id, personal_fields
from infra.person_keys import PersonKeys
from infra.recorder import LogRow, as_notifications, event_id
from infra.sealing import DoesNotOpen, Place, is_sealed, person_of, seal, unseal
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


class _Reader(NamedTuple):
    """What reads the states of a topic: as they are stored, or as the fields of their JSON."""

    stored: Callable[[bytes], Event]
    fields: Callable[[dict[str, Any]], Event]


@cache
def _reader(topic: str) -> _Reader:
    if topic in UPCASTS:
        today, upcast = UPCASTS[topic]
        read = _reader(today).fields
        return _Reader(lambda state: read(upcast(_fields(state))), lambda fields: read(upcast(fields)))
    event = topics().get(topic)
    if event is None:
        raise UnreadableEvent(f"the topic {topic!r} is not one that this version of Trunkline knows{_known(topic)}")
    validator = event.__pydantic_validator__  # what model_validate_json calls, without its toll
    return _Reader(validator.validate_json, validator.validate_python)


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


_personal = cache(personal_fields)
"""Found once a class: an event without personal fields pays for nothing but the question."""


@cache
def _personal_topics() -> frozenset[str]:
    return frozenset(topic for topic, event in topics().items() if _personal(event))


class PydanticMapper(Mapper[str]):
    """The library's mapper, for events that are pydantic models.

    Args:
        keys: those of the persons whose data the events hold; none, for who may not see them: they read as ``[sealed]``
            then, and nothing personal can be written.
    """

    def __init__(self, keys: PersonKeys | None) -> None:
        super().__init__(transcoder=JSONTranscoder())
        self._keys = keys
        topics()

    def to_stored_event(self, domain_event: DomainEventProtocol[str]) -> StoredEvent:
        """The row of a `Recorded` event, by the library's name."""
        return as_notifications([self.row(cast("Recorded", domain_event))])[0]

    def to_domain_event(self, stored_event: StoredEvent) -> Recorded:
        """The event of a row, by the library's name."""
        return self.recorded(LogRow.of_stored(stored_event))

    def row(self, recorded: Recorded) -> LogRow:
        """The row of an event.

        Raises:
            WrongSetting: it holds personal data, and the master key is missing, or wrong.
            ValueError: it holds personal data, and does not say whose.
        """
        return LogRow(
            originator_id=recorded.stream,
            originator_version=recorded.version,
            topic=recorded.event.TOPIC,
            state=self._state(recorded),
            id=recorded.position,
            recorded_at=recorded.recorded_at,
            account_id=recorded.account_id,
            correlation_id=recorded.cause.correlation_id,
            causation_id=recorded.cause.causation_id,
            actor=recorded.cause.actor,
        )

    def recorded(self, row: LogRow) -> Recorded:
        """The event of a row; see `all_recorded`."""
        return self.all_recorded([row])[0]

    def all_recorded(self, rows: Sequence[LogRow]) -> list[Recorded]:
        """The events of rows. The keys of all of them are asked for at once.

        Raises:
            UnreadableEvent: names the stream, the version, the position, and what is wrong; repeats nothing of it.
            WrongSetting: a key of theirs stands, and the master key is missing, or wrong.
        """
        personal = _personal_topics()
        sealed = {n: found for n, row in enumerate(rows) if row.topic in personal and (found := _sealed(row))}
        if not sealed:
            return [_recorded(row) for row in rows]
        persons = {person for found in sealed.values() for person in found.persons()}
        keys = self._keys.standing(persons) if self._keys else None
        return [_recorded(row, sealed.get(n), keys) for n, row in enumerate(rows)]

    def _state(self, recorded: Recorded) -> bytes:
        """The JSON of an event, with its personal fields sealed - or erased, where by now the person is."""
        event = recorded.event
        personal = _personal(type(event))
        if not personal:
            return event.model_dump_json().encode()
        fields = event.model_dump(mode="json")
        for name, mark in personal.items():
            receiver = getattr(event, mark.receiver)
            if recorded.account_id is None or receiver is None:
                raise ValueError(f"{event.TOPIC} holds personal data, its {name}, and does not say whose they are.")
            if self._keys is None:
                raise ValueError(f"{event.TOPIC} holds personal data, its {name}, and there are no keys to seal them.")
            person = person_id(recorded.account_id, receiver)
            key = self._keys.made(person)
            if key is None:
                fields[name] = to_jsonable_python(mark.erased)
            else:
                place = Place(person, recorded.stream, recorded.version, event.TOPIC, name)
                fields[name] = seal(to_json(fields[name]), key, place)
        return to_json(fields)


@dataclass(frozen=True, slots=True)
class _Sealed:
    """The JSON of a row that has sealed fields, and the names of these."""

    fields: dict[str, Any]
    names: list[str]

    def persons(self) -> list[str]:
        """Whose they are; what is not sealed as it has to be is nobody's, and is told of when it is opened."""
        named = [self.fields[name].get("person") for name in self.names]
        return [person for person in named if isinstance(person, str)]

    def opened(self, row: LogRow, keys: Mapping[str, bytes] | None) -> dict[str, Any]:
        """The fields as they were before they were sealed; where a key is missing, erased.

        Raises:
            UnreadableEvent: a field does not open.
        """
        fields = dict(self.fields)
        personal = _personal(topics()[row.topic])
        for name in self.names:
            try:
                fields[name] = self._opened(row, name, personal[name], keys)
            except DoesNotOpen as error:
                raise UnreadableEvent(f"{name}: {error}") from error
        return fields

    def _opened(self, row: LogRow, name: str, mark: Personal, keys: Mapping[str, bytes] | None) -> object:
        value = self.fields[name]
        person = person_of(value)
        # Another name in its place would make it look erased. Rows of the library's own tools know no account.
        if row.account_id is not None and person != person_id(row.account_id, str(self.fields.get(mark.receiver))):
            raise DoesNotOpen("it is sealed as another person's")
        if keys is None:
            return from_json(to_json(mark.erased).replace(ERASED.encode(), SEALED.encode()))
        key = keys.get(person)
        if key is None:
            return to_jsonable_python(mark.erased)
        return from_json(unseal(value, key, Place(person, row.originator_id, row.originator_version, row.topic, name)))


def _sealed(row: LogRow) -> _Sealed | None:
    """The sealed fields of a row; none where its fields are plain, or its JSON is none, which the model will say."""
    try:
        fields = from_json(row.state)
    except ValueError:
        return None
    if not isinstance(fields, dict):
        return None
    names = [name for name in _personal(topics()[row.topic]) if is_sealed(fields.get(name))]
    return _Sealed(fields, names) if names else None


def _recorded(row: LogRow, sealed: _Sealed | None = None, keys: Mapping[str, bytes] | None = None) -> Recorded:
    stream, version, topic, state, position, recorded_at, account_id, correlation_id, causation_id, actor = row
    try:
        reader = _reader(topic)
        event = reader.fields(sealed.opened(row, keys)) if sealed else reader.stored(state)
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
