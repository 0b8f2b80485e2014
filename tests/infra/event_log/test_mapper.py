"""The mapper: events to bytes and back, and the errors for bytes that it did not write."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, cast, get_args

import hypothesis
import pytest
from eventsourcing.persistence import Notification, StoredEvent
from eventsourcing.utils import resolve_topic
from hypothesis import strategies as st
from pydantic_core import to_json

from domain.account import ERASED_CONTACT, BillingReceiverAdded
from domain.invoice import InvoiceIssued
from domain.messages import Event
from domain.personal import personal_fields
from infra.event_log import mapper as pydantic_mapper
from infra.event_log.log import Change, Log
from infra.event_log.mapper import PydanticMapper, UnreadableEvent
from infra.event_log.recorder import LogRow, as_notifications
from infra.event_log.topics import AGGREGATES, topics
from infra.event_log.upcasts import UPCASTS, Upcast
from infra.personal_data.person_keys import MemoryPersonKeys, PersonKeys
from infra.recorded import Cause, Recorded
from tests.support.examples import NOW, activated, captured, emailed, invoice_issued, opened, wonka_added, wonka_default
from tests.support.given_domain import but, given
from tests.support.strategies import AGGREGATES as STRATEGIES
from tests.support.strategies import Aggregate

KEYS = MemoryPersonKeys()
MAPPER = PydanticMapper(KEYS)
DORA = Cause("distributor:dora", "wish-1", "click-1")
WONKA_ADDED = Recorded("account-acme", 2, wonka_added, "acme", DORA, NOW)
STORED = MAPPER.row(WONKA_ADDED)


def tampered(**changes: object) -> StoredEvent:
    """Return the stored event with changed fields in its state."""
    return StoredEvent(
        STORED.originator_id, STORED.originator_version, STORED.topic, json.dumps(state() | changes).encode()
    )


def state() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(STORED.state)
    return found


def plain(**changes: object) -> StoredEvent:
    """Return the event as it was stored before personal fields were encrypted."""
    fields = json.loads(wonka_added.model_dump_json())
    contact = fields["contact"] | changes
    return StoredEvent("account-acme", 2, STORED.topic, json.dumps(fields | {"contact": contact}).encode())


def unreadable(stored: StoredEvent) -> str:
    with pytest.raises(UnreadableEvent) as caught:
        MAPPER.to_domain_event(stored)
    message = str(caught.value)
    assert message.startswith("Event account-acme version 2, at position 0, cannot be read: ")
    return message


def test_the_state_is_the_json_of_the_event_and_its_metadata_are_columns() -> None:
    assert (STORED.originator_id, STORED.originator_version) == ("account-acme", 2)
    assert STORED.topic == "account.BillingReceiverAdded.v1"
    assert re.fullmatch(
        r'\{"account_id":"acme","receiver_id":"wonka","contact":\{"sealed":"A256GCM","person":"acme/wonka",'
        r'"nonce":"[A-Za-z0-9+/]{16}","ciphertext":"[A-Za-z0-9+/]+={0,2}"\}\}',
        STORED.state.decode(),
    )
    assert MAPPER.to_stored_event(Recorded("account-acme", 1, wonka_default, "acme", DORA, NOW)).state == (
        b'{"account_id":"acme","receiver_id":"wonka"}'
    )
    metadata = (STORED.recorded_at, STORED.account_id, STORED.correlation_id, STORED.causation_id, STORED.actor)
    assert metadata == (NOW, "acme", "wish-1", "click-1", "distributor:dora")


def test_a_stored_event_is_read_back_with_its_position_if_it_has_one() -> None:
    assert MAPPER.recorded(STORED) == WONKA_ADDED
    assert MAPPER.recorded(LogRow.of_stored(STORED, position=7)).position == 7


def test_an_event_written_by_a_tool_of_the_library_names_the_library_as_its_actor() -> None:
    bare = Notification("account-acme", 2, STORED.topic, STORED.state, id=7)
    recorded = MAPPER.to_domain_event(bare)
    assert (recorded.event, recorded.cause.actor, recorded.account_id) == (wonka_added, "system:eventsourcing", None)


@pytest.mark.parametrize("aggregate", STRATEGIES.values(), ids=STRATEGIES)
@hypothesis.settings(deadline=None, max_examples=10, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(data=st.data())
def test_every_decided_event_survives_a_round_trip(aggregate: Aggregate, data: st.DataObject) -> None:
    outcome = given(aggregate.decider)
    for command in data.draw(aggregate.sequences(6)):
        decided = outcome.when(command)
        for event in decided.events:
            stored = MAPPER.to_stored_event(Recorded("account-acme", 1, event, "acme", DORA, NOW))
            read = MAPPER.to_domain_event(stored)
            assert (type(read.event), read.event) == (type(event), event)
            again = MAPPER.to_stored_event(read)
            if personal_fields(type(event)):
                assert again.state != stored.state, "each encryption has a nonce of its own"
                assert MAPPER.to_domain_event(again) == read
            else:
                assert again == stored
        outcome = decided.after


def test_the_table_has_what_the_mapper_wrote(postgres: Log) -> None:
    postgres.append([Change("account-acme", 0, [opened])], account_id="acme", cause=DORA, at=NOW)
    (stored,) = postgres._recorder.select_events("account-acme")
    assert stored == MAPPER.to_stored_event(Recorded("account-acme", 1, opened, "acme", DORA, NOW, position=1))


def test_every_event_of_the_domain_has_a_topic_of_its_own() -> None:
    classes = [event for union in AGGREGATES for event in get_args(union) or (union,)]
    assert len(topics()) == len(classes)
    assert set(topics().values()) == set(classes)
    for topic, event in topics().items():
        assert re.fullmatch(r"[a-z_]+\.[A-Z][A-Za-z]+\.v[1-9]", topic)
        assert topic.split(".")[0] == event.__module__.removeprefix("domain.")


def test_every_event_class_is_registered() -> None:
    ours = {event for event in Event.__subclasses__() if event.__module__.startswith("domain.")}
    assert ours == set(topics().values())


def test_the_librarys_own_tools_find_the_class_of_a_topic() -> None:
    assert resolve_topic("order.PaymentCaptured.v1") is type(captured)
    assert resolve_topic("subscription.PackageActivated.v1") is type(activated)


def test_an_unknown_topic_is_named() -> None:
    stored = StoredEvent("account-acme", 2, "account.TicketFound.v1", STORED.state)
    assert "'account.TicketFound.v1' is unknown to this version of Trunkline" in unreadable(stored)


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"golden ticket",
        STORED.state[:-1],
        STORED.state + b"}",
        b"\xff" + STORED.state,
        STORED.state.replace(b"wonka", b"w\xffonka"),
        b"null",
        b"[]",
    ],
)
def test_broken_json_is_unreadable(state: bytes) -> None:
    unreadable(StoredEvent("account-acme", 2, STORED.topic, state))


def test_an_unknown_field_is_unreadable_on_every_level() -> None:
    assert "ticket" in unreadable(tampered(ticket="golden"))
    assert "contact.ticket" in unreadable(plain(ticket=1))


def test_a_missing_field_is_unreadable() -> None:
    incomplete = json.dumps({k: v for k, v in state().items() if k != "receiver_id"}).encode()
    assert "receiver_id" in unreadable(StoredEvent("account-acme", 2, STORED.topic, incomplete))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("receiver_id", None),
        ("receiver_id", 7),
        ("contact", "Willy Wonka"),
        ("contact", {}),
    ],
)
def test_a_field_of_a_wrong_type_is_unreadable(field: str, value: object) -> None:
    assert field in unreadable(tampered(**{field: value}))


def test_an_amount_that_is_not_an_integer_is_unreadable() -> None:
    stored = MAPPER.to_stored_event(Recorded("account-acme", 2, captured, "acme", DORA, NOW))
    forged = stored.state.replace(b'"amount_minor":54465', b'"amount_minor":"54465"')
    assert "amount.amount_minor" in unreadable(StoredEvent("account-acme", 2, stored.topic, forged))


def test_the_error_for_an_unreadable_event_repeats_nothing_of_it() -> None:
    """It appears in health checks and logs, which more people may see than may see a billing contact."""
    message = unreadable(plain(email="wonka at acme"))
    assert "contact.email" in message
    assert "wonka at acme" not in message


def test_the_log_names_the_event_that_it_cannot_read(memory: Log) -> None:
    memory.append([Change("account-acme", 0, [opened])], account_id="acme", cause=DORA, at=NOW)
    memory._recorder.insert_events([StoredEvent("account-acme", 2, "account.TicketFound.v1", b"{}")])
    with pytest.raises(UnreadableEvent, match="account-acme version 2, at position 2,"):
        memory.load("account-acme")
    with pytest.raises(UnreadableEvent, match="account-acme version 2, at position 2,"):
        memory.read(0, limit=10)
    assert [fact.event for fact in memory.read(0, limit=1)] == [opened]


# --- personal fields -----------------------------------------------------------------------------------------------


class NoKeys(PersonKeys):
    """Keys that must not be requested."""

    def standing(self, persons: Iterable[str]) -> Mapping[str, bytes]:
        raise AssertionError(persons)

    def made(self, person: str) -> bytes | None:
        raise AssertionError(person)

    def destroy(self, person: str) -> bool:
        raise AssertionError(person)


def encrypted(**changes: object) -> StoredEvent:
    """Return the stored event with changes to its encrypted value."""
    return stored_as(to_json(state() | {"contact": state()["contact"] | changes}))


def stored_as(state: bytes) -> StoredEvent:
    """Return the stored event with another state."""
    return as_notifications([MAPPER.row(WONKA_ADDED)._replace(state=state)])[0]


def test_an_event_without_personal_fields_requests_no_key() -> None:
    mapper = PydanticMapper(NoKeys())
    for event in (opened, wonka_default, captured):
        stored = mapper.to_stored_event(Recorded("account-acme", 1, event, "acme", DORA, NOW))
        assert stored.state == event.model_dump_json().encode()
        assert mapper.to_domain_event(stored).event == event


def test_without_the_key_of_a_person_only_the_personal_fields_are_erased() -> None:
    assert PydanticMapper(MemoryPersonKeys()).recorded(STORED).event == but(wonka_added, contact=ERASED_CONTACT)


def test_an_event_stored_before_personal_fields_were_encrypted_is_read_as_it_is() -> None:
    assert MAPPER.to_domain_event(plain()).event == wonka_added


def test_an_encrypted_value_moved_from_another_place_is_unreadable_rather_than_erased() -> None:
    later = MAPPER.to_stored_event(Recorded("account-acme", 3, wonka_added, "acme", DORA, NOW))
    assert "contact: it was altered, moved here from another place" in unreadable(stored_as(later.state))


def test_a_mapper_without_keys_leaves_values_encrypted_and_none_looks_erased() -> None:
    """Auditors and read models use such a mapper: they need no personal data."""
    concealing = PydanticMapper(None)
    event = concealing.recorded(STORED).event
    assert isinstance(event, BillingReceiverAdded)
    assert (event.receiver_id, event.contact.name, event.contact.phone) == ("wonka", "[sealed]", "[sealed]")
    assert "erased" not in event.contact.model_dump_json()
    with pytest.raises(ValueError, match="no key to encrypt it"):
        concealing.to_stored_event(WONKA_ADDED)


def test_an_encrypted_value_that_names_another_person_is_unreadable_rather_than_erased() -> None:
    """Otherwise naming an erased or unknown person in a row would make anybody look erased."""
    KEYS.destroy("acme/violet")
    assert "contact: it is encrypted for another person" in unreadable(encrypted(person="acme/violet"))


def test_a_malformed_encrypted_value_is_unreadable() -> None:
    assert "contact: it is not in the form of an encrypted value" in unreadable(encrypted(nonce=7))
    assert "contact: it is not in the form of an encrypted value" in unreadable(encrypted(person=None))
    assert "encryption algorithm is unknown to this version of Trunkline" in unreadable(encrypted(sealed="A512GCM"))


def test_an_encrypted_value_in_reformatted_json_is_unreadable_rather_than_erased() -> None:
    """The mapper searches for the bytes that it wrote instead of parsing all the JSON around them."""
    indented, truncated = stored_as(json.dumps(state(), indent=1).encode()), stored_as(STORED.state[:-2])
    for mapper in (MAPPER, PydanticMapper(MemoryPersonKeys()), PydanticMapper(None)):
        for stored in (indented, truncated):
            with pytest.raises(UnreadableEvent, match="cannot be read: contact"):
                mapper.to_domain_event(stored)


@pytest.mark.parametrize("mapper", [MAPPER, PydanticMapper(None), PydanticMapper(MemoryPersonKeys())])
def test_a_text_that_looks_like_an_encrypted_value_stays_a_text(mapper: PydanticMapper) -> None:
    """JSON escapes each quotation mark of a text with a backslash."""
    lookalike = 'Y&T","buyer":{"sealed":"A256GCM"},"and":"partners'
    event = but(invoice_issued, seller=but(invoice_issued.seller, name=lookalike))
    stored = MAPPER.row(Recorded("invoice-1", 1, event, "acme", DORA, NOW))
    read = mapper.recorded(stored).event
    assert isinstance(read, InvoiceIssued)
    assert read.seller.name == lookalike
    assert (read.buyer == event.buyer) is (mapper is MAPPER)


def test_an_encrypted_value_of_a_retired_topic_is_decrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    later = "account.BillingReceiverAdded.v2"
    monkeypatch.setitem(cast("dict[str, Upcast]", UPCASTS), STORED.topic, Upcast(later, dict))
    monkeypatch.setitem(topics(), later, BillingReceiverAdded)
    monkeypatch.setattr(pydantic_mapper, "_sealable", cache(pydantic_mapper._sealable.__wrapped__))
    monkeypatch.setattr(pydantic_mapper, "_reader", cache(pydantic_mapper._reader.__wrapped__))
    monkeypatch.delitem(topics(), STORED.topic)
    assert MAPPER.recorded(STORED).event == wonka_added


def test_an_encrypted_value_in_a_field_that_is_not_personal_is_unreadable() -> None:
    assert "receiver_id" in unreadable(tampered(receiver_id=state()["contact"]))


def test_an_event_that_does_not_name_the_person_of_its_data_is_not_stored() -> None:
    anonymous = but(emailed, receiver_id=None)
    for recorded in (
        Recorded("account-acme", 2, wonka_added, None, DORA, NOW),
        Recorded("invoice-1", 2, anonymous, "acme", DORA, NOW),
    ):
        with pytest.raises(ValueError, match="names no person") as refused:
            MAPPER.to_stored_event(recorded)
        assert "wonka@" not in str(refused.value)
