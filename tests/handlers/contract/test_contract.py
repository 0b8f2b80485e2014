"""The contract: every event has its message, byte for byte the same for good, and none carries personal data.

``python -m tests.handlers.contract.test_contract`` writes the messages of new events; existing ones never change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from domain.invoice_link import LinkRevoked
from domain.messages import Event
from handlers.contract.events import EVENTS, Unpublished, encoded
from infra.broker.cloudevents import CloudEvent
from infra.event_log.topics import topics
from infra.recorded import Cause, Recorded
from tests.infra.event_log.test_golden_events import EXAMPLES
from tests.support.examples import LATER

GOLDEN = Path(__file__).with_name("golden_messages")
PERSONAL = {
    *("contact", "buyer", "name", "email", "company", "address", "phone", "vat_id", "manager_email", "recipient"),
    *("reason", "explanation", "message_id", "token_sha256"),
}
"""Fields of stored events under which stands what is personal, or what a person wrote, or what opens something."""
WORDS = {"reason"}
"""Of these, fields that messages do have, where it is one word of a list."""


def recorded(event: Event) -> Recorded:
    """An example as it may stand in a log."""
    cause = Cause("distributor:dora", "c0441e1a-0000-4000-8000-000000000001", "ca05a1e0-0000-4000-8000-000000000002")
    return Recorded(f"golden-{event.TOPIC}", 1, event, "acme", cause, LATER, 4711)


def leaves(value: Any) -> Iterator[str]:  # noqa: ANN401 - JSON
    """Every text in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)


def secrets(value: object) -> Iterator[str]:
    """What an event says and its message may not: whole texts, and not a country's two letters."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from (text for text in leaves(inner) if len(text) > 2) if key in PERSONAL else secrets(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from secrets(inner)


def fields(schema: Any) -> Iterator[str]:  # noqa: ANN401 - JSON
    """The names of all fields in a JSON schema."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for inner in schema.values():
            yield from fields(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from fields(inner)


def test_every_topic_has_a_message_and_every_message_a_topic() -> None:
    assert set(EVENTS) == set(topics().values())


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.TOPIC)
def test_the_message_of_an_event_is_the_same_byte_for_byte_for_good(event: Event) -> None:
    assert encoded(recorded(event)) == (GOLDEN / f"{event.TOPIC}.json").read_bytes()


def test_every_message_has_a_golden_and_every_golden_a_message() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(topics()) == {event.TOPIC for event in EXAMPLES}


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.TOPIC)
def test_no_message_repeats_what_is_personal_or_what_a_person_wrote(event: Event) -> None:
    said = encoded(recorded(event)).decode()
    for secret in secrets(json.loads(event.model_dump_json())):
        word_of_a_list = isinstance(getattr(event, "reason", None), StrEnum) and secret == event.reason  # type: ignore[attr-defined]
        assert word_of_a_list or secret not in said, secret


def test_the_examples_would_betray_it() -> None:
    """The test above sees something: contacts, addresses and free texts do stand in the stored events."""
    told = {secret for event in EXAMPLES for secret in secrets(json.loads(event.model_dump_json()))}
    assert len(told) > 15
    assert any("@" in secret for secret in told)


@pytest.mark.parametrize(
    "data", dict.fromkeys(published.data for published in EVENTS.values()), ids=lambda data: data.__name__
)
def test_no_message_has_a_field_for_what_is_personal(data: type[BaseModel]) -> None:
    assert not (PERSONAL - WORDS) & set(fields(data.model_json_schema()))


def test_a_message_says_where_its_event_stands_and_why_it_happened() -> None:
    example = EXAMPLES[0]
    message = CloudEvent.model_validate_json(encoded(recorded(example)))
    assert (message.specversion, message.source, message.datacontenttype) == (
        "1.0",
        "urn:trunkline:log",
        "application/json",
    )
    assert (message.partitionkey, message.position) == ("acme", 4711)
    assert message.id == str(recorded(example).event_id)
    assert message.correlationid == "c0441e1a-0000-4000-8000-000000000001"
    assert message.causationid == "ca05a1e0-0000-4000-8000-000000000002"
    assert message.type == "trunkline.events.v1.account.AccountOpened"


def test_on_the_wire_a_position_is_a_string_and_what_is_absent_is_left_out() -> None:
    """An Integer of CloudEvents ends at 2^31 - 1, and a log may not."""
    first = Recorded("account-acme", 1, EXAMPLES[0], None, Cause("admin:ada", "wish-1"), LATER, 2**40)
    wire = json.loads(encoded(first))
    assert wire["position"] == str(2**40)
    assert {"partitionkey", "causationid"}.isdisjoint(wire)


def test_what_an_older_event_did_not_record_is_absent_as_it_was_when_that_was_told() -> None:
    """Its message is the one that went out before there was more to tell."""
    older = LinkRevoked(link_id="link-1", replaced_by=None, revoked_at=LATER)
    assert set(json.loads(encoded(recorded(older)))["data"]) == {"link_id", "revoked_at"}


def test_an_event_without_a_message_is_named_and_not_left_out_in_silence() -> None:
    class TicketFound(Event):
        TOPIC = "account.TicketFound.v1"

    with pytest.raises(Unpublished, match="TicketFound"):
        encoded(recorded(TicketFound()))


def write_missing() -> None:
    """Write the messages that are not there yet; those that are, stay as they are."""
    GOLDEN.mkdir(exist_ok=True)
    for event in EXAMPLES:
        path = GOLDEN / f"{event.TOPIC}.json"
        if not path.exists():
            path.write_bytes(encoded(recorded(event)))


if __name__ == "__main__":
    write_missing()
