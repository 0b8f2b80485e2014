"""Map events to rows of the log and back: validated pydantic models, with the `Mapper` interface of eventsourcing.

The library's own mapper does not validate; this one turns bytes into a validated model in one step (`validate_json`).
Personal fields are encrypted with the key of their person when written, and decrypted when read
(`infra.personal_data.encryption`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, cast

from eventsourcing.domain import DomainEventProtocol
from eventsourcing.persistence import JSONTranscoder, Mapper, StoredEvent
from pydantic import ValidationError
from pydantic_core import from_json, to_json, to_jsonable_python

from domain.messages import Event
from domain.personal import Personal, person_id, personal_fields
from infra.event_log.recorder import LogRow, as_notifications
from infra.event_log.topics import topics
from infra.event_log.upcasts import UPCASTS, topic_today
from infra.personal_data.encryption import DoesNotOpen, Place, Sealed, seal, unseal
from infra.personal_data.person_keys import PersonKeys
from infra.recorded import Cause, Recorded


class UnreadableEvent(Exception):
    """A stored event that this program cannot read: its topic is unknown, or its state does not match its topic."""


@cache
def _reader(topic: str) -> Callable[[bytes], Event]:
    """Return the function that makes events from the states of a topic."""
    if topic in UPCASTS:
        today, upcast = UPCASTS[topic]
        read = _reader(today)
        return lambda state: read(to_json(upcast(_fields(state))))
    event = topics().get(topic)
    if event is None:
        raise UnreadableEvent(f"the topic {topic!r} is unknown to this version of Trunkline{_known(topic)}")
    return cast("Callable[[bytes], Event]", event.__pydantic_validator__.validate_json)  # model_validate_json, bare


def _fields(state: bytes) -> dict[str, Any]:
    fields = from_json(state)
    if not isinstance(fields, dict):
        raise UnreadableEvent("the state is not a JSON object")
    return fields


def _known(topic: str) -> str:
    """Return which versions of a topic are known, if it may be a later one."""
    name = topic.rpartition(".")[0]
    versions = sorted(known.rpartition(".")[2] for known in (*topics(), *UPCASTS) if known.rpartition(".")[0] == name)
    return f"; it knows {' and '.join(versions)} of it, so a later version wrote this" if versions else ""


_personal = cache(personal_fields)
"""Cached by class: an event without personal fields costs one lookup."""


class PydanticMapper(Mapper[str]):
    """The mapper of the library, for events that are pydantic models.

    Args:
        keys: the keys of personal data. With None, personal fields read as ``[sealed]``, and none can be written.
    """

    def __init__(self, keys: PersonKeys | None) -> None:
        super().__init__(transcoder=JSONTranscoder())
        self._keys = keys
        topics()

    def to_stored_event(self, domain_event: DomainEventProtocol[str]) -> StoredEvent:
        """Return the row of a `Recorded` event (interface of the library)."""
        return as_notifications([self.row(cast("Recorded", domain_event))])[0]

    def to_domain_event(self, stored_event: StoredEvent) -> Recorded:
        """Return the event of a row (interface of the library)."""
        return self.recorded(LogRow.of_stored(stored_event))

    def row(self, recorded: Recorded) -> LogRow:
        """Return the row of an event.

        Raises:
            WrongSetting: it holds personal data, and the master key is missing or wrong.
            ValueError: it holds personal data, and names no person.
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
        """Return the event of a row; see `all_recorded`."""
        return self.all_recorded([row])[0]

    def all_recorded(self, rows: Sequence[LogRow]) -> list[Recorded]:
        """Return the events of rows. The keys of all of them are fetched at once.

        Raises:
            UnreadableEvent: names stream, version, position and the error, and quotes no data.
            WrongSetting: a key of theirs exists, and the master key is missing or wrong.
        """
        sealed = {n: found for n, row in enumerate(rows) if row.topic in _sealable() and (found := _sealed(row))}
        if not sealed:
            return [_recorded(row) for row in rows]
        persons = {value.person for values in sealed.values() for _, value in values}
        keys = self._keys.standing(persons) if self._keys else None
        return [_recorded(row, sealed.get(n, ()), keys) for n, row in enumerate(rows)]

    def _state(self, recorded: Recorded) -> bytes:
        """Return the JSON of an event, with personal fields encrypted, or erased if the person was erased."""
        event = recorded.event
        personal = _personal(type(event))
        if not personal:
            return event.model_dump_json().encode()
        fields = event.model_dump(mode="json")
        for name, mark in personal.items():
            receiver = getattr(event, mark.receiver)
            if recorded.account_id is None or receiver is None:
                raise ValueError(f"{event.TOPIC} has personal data in {name}, but names no person.")
            if self._keys is None:
                raise ValueError(f"{event.TOPIC} has personal data in {name}, but there is no key to encrypt it.")
            person = person_id(recorded.account_id, receiver)
            key = self._keys.made(person)
            if key is None:
                fields[name] = to_jsonable_python(mark.erased)
            else:
                place = Place(person, recorded.stream, recorded.version, event.TOPIC, name)
                fields[name] = seal(to_json(fields[name]), key, place)
        return to_json(fields)


class _Field(NamedTuple):
    """A personal field of a topic: its person, how its ciphertext begins in a state, and what replaces it.

    A state is the output of `to_json`, so an encrypted value is found without parsing the rest.
    """

    name: str
    receiver: str
    begins: bytes
    erased: bytes
    concealed: bytes

    @classmethod
    def of(cls, name: str, mark: Personal) -> _Field:
        """Return the field of a name and its mark."""
        erased = to_json(mark.erased)
        concealed = erased.replace(b"erased", b"sealed")  # never looks erased unless it is known to be
        return cls(name, mark.receiver, b'"%b":{"sealed":' % name.encode(), erased, concealed)


@cache
def _sealable() -> Mapping[str, Sequence[_Field]]:
    """Return the personal fields of each topic that has any; a retired topic has those of its successor."""
    return {
        topic: [_Field.of(name, mark) for name, mark in personal.items()]
        for topic in [*topics(), *UPCASTS]
        if (personal := _personal(topics()[topic_today(topic)]))
    }


def _opened(row: LogRow, field: _Field, sealed: Sealed, keys: Mapping[str, bytes] | None) -> bytes:
    """Return the decrypted JSON of a field, or the value that replaces it if there is no key.

    Raises:
        UnreadableEvent: the ciphertext was not encrypted for this field of this event.
    """
    if keys is None:
        return field.concealed
    if (key := keys.get(sealed.person)) is None:
        return field.erased
    place = Place(sealed.person, row.originator_id, row.originator_version, row.topic, field.name)
    try:
        return unseal(sealed, key, place)
    except DoesNotOpen as error:
        raise UnreadableEvent(f"{field.name}: {error}") from None


def _sealed(row: LogRow) -> list[tuple[_Field, Sealed]]:
    """Return the encrypted values of a row, last one first, so that replacing one does not move the others.

    Raises:
        UnreadableEvent: one of them is malformed.
    """
    values = []
    for field in _sealable()[row.topic]:
        at = row.state.find(field.begins)
        if at < 0:
            continue  # plain text, or a value that the model will refuse
        try:
            values.append((field, Sealed.at(at, row.state)))
        except DoesNotOpen as error:
            raise _unreadable(row, f"{field.name}: {error}") from None
    return sorted(values, key=lambda value: -value[1].begins)


def _recorded(
    row: LogRow, sealed: Sequence[tuple[_Field, Sealed]] = (), keys: Mapping[str, bytes] | None = None
) -> Recorded:
    stream, version, topic, state, position, recorded_at, account_id, correlation_id, causation_id, actor = row
    try:
        for field, value in sealed:
            state = state[: value.begins] + _opened(row, field, value, keys) + state[value.ends :]
        event = _reader(topic)(state)
    except (UnreadableEvent, ValueError) as error:
        raise _unreadable(row, _said(error)) from None
    if account_id is not None:  # rows of the library's own tools have no account
        for field, value in sealed:
            # Otherwise a row with another person's id would look erased.
            if value.person != person_id(account_id, getattr(event, field.receiver)):
                raise _unreadable(row, f"{field.name}: it is encrypted for another person")
    cause = Cause(actor, correlation_id, causation_id)
    return Recorded(stream, version, event, account_id, cause, recorded_at, position)


def _unreadable(row: LogRow, why: str) -> UnreadableEvent:
    where = f"{row.originator_id} version {row.originator_version}, at position {row.id},"
    return UnreadableEvent(f"Event {where} cannot be read: {why}")


def _said(error: UnreadableEvent | ValueError) -> str:
    """Return the error without the data: it is reported to more people than may see the data."""
    if not isinstance(error, ValidationError):
        return str(error)
    issues = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, issue['loc'])) or 'the whole'}: {issue['msg']}" for issue in issues)
