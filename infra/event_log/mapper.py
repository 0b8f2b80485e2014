"""Events to rows of the log and back: validated pydantic models behind the eventsourcing library's `Mapper`.

The library's own mapper does not validate; this one goes from bytes to a validated model in one step (`validate_json`).
Personal fields are encrypted on the way in, under their person's key, and decrypted on the way out
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
    """A stored event that this program cannot read: an unknown topic, or a state that is not of its topic's shape."""


@cache
def _reader(topic: str) -> Callable[[bytes], Event]:
    """What makes an event of the states of a topic."""
    if topic in UPCASTS:
        today, upcast = UPCASTS[topic]
        read = _reader(today)
        return lambda state: read(to_json(upcast(_fields(state))))
    event = topics().get(topic)
    if event is None:
        raise UnreadableEvent(f"the topic {topic!r} is not one that this version of Trunkline knows{_known(topic)}")
    return cast("Callable[[bytes], Event]", event.__pydantic_validator__.validate_json)  # model_validate_json, bare


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
        sealed = {n: found for n, row in enumerate(rows) if row.topic in _sealable() and (found := _sealed(row))}
        if not sealed:
            return [_recorded(row) for row in rows]
        persons = {value.person for values in sealed.values() for _, value in values}
        keys = self._keys.standing(persons) if self._keys else None
        return [_recorded(row, sealed.get(n, ()), keys) for n, row in enumerate(rows)]

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


class _Field(NamedTuple):
    """A personal field of a topic: whose it is, how it stands in a state where it is sealed, and what stands in for it.

    A state is the bytes that `to_json` made, so a sealed value is found without making objects of all the rest.
    """

    name: str
    receiver: str
    begins: bytes
    erased: bytes
    concealed: bytes

    @classmethod
    def of(cls, name: str, mark: Personal) -> _Field:
        """A field by its name and its mark."""
        erased = to_json(mark.erased)
        concealed = erased.replace(b"erased", b"sealed")  # what is not known to be erased never looks so
        return cls(name, mark.receiver, b'"%b":{"sealed":' % name.encode(), erased, concealed)


@cache
def _sealable() -> Mapping[str, Sequence[_Field]]:
    """The personal fields of each topic that has some; a retired one has those of the topic that it became."""
    return {
        topic: [_Field.of(name, mark) for name, mark in personal.items()]
        for topic in [*topics(), *UPCASTS]
        if (personal := _personal(topics()[topic_today(topic)]))
    }


def _opened(row: LogRow, field: _Field, sealed: Sealed, keys: Mapping[str, bytes] | None) -> bytes:
    """The JSON that was sealed; where the key is missing, that of the value in its place.

    Raises:
        UnreadableEvent: it is not what was sealed there.
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
    """The sealed values of a row, the last one first: what replaces one leaves the others where they are.

    Raises:
        UnreadableEvent: one is not as it has to be.
    """
    values = []
    for field in _sealable()[row.topic]:
        at = row.state.find(field.begins)
        if at < 0:
            continue  # it is plain, or what the model will not take
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
    if account_id is not None:  # rows of the library's own tools have none
        for field, value in sealed:
            # Another name in its place would make it look erased.
            if value.person != person_id(account_id, getattr(event, field.receiver)):
                raise _unreadable(row, f"{field.name}: it is sealed as another person's")
    cause = Cause(actor, correlation_id, causation_id)
    return Recorded(stream, version, event, account_id, cause, recorded_at, position)


def _unreadable(row: LogRow, why: str) -> UnreadableEvent:
    where = f"{row.originator_id} version {row.originator_version}, at position {row.id},"
    return UnreadableEvent(f"Event {where} cannot be read: {why}")


def _said(error: UnreadableEvent | ValueError) -> str:
    """What is wrong, without what stands there: it is reported to many more than may see that."""
    if not isinstance(error, ValidationError):
        return str(error)
    issues = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, issue['loc'])) or 'the whole'}: {issue['msg']}" for issue in issues)
