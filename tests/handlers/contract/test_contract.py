"""The contract: every event has a message, byte for byte stable, and none carries personal data.

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
"""Fields of stored events that hold personal data, human text or secrets."""
WORDS = {"reason"}
"""The exceptions: fields that messages have because the value is an enumeration."""


def recorded(event: Event) -> Recorded:
    """An example as it may be stored in a log."""
    cause = Cause("distributor:dora", "c0441e1a-0000-4000-8000-000000000001", "ca05a1e0-0000-4000-8000-000000000002")
    return Recorded(f"golden-{event.TOPIC}", 1, event, "acme", cause, LATER, 4711)


def leaves(value: Any) -> Iterator[str]:  # noqa: ANN401 - JSON
    """All texts in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)


def secrets(value: object) -> Iterator[str]:
    """Texts that an event contains and its message must not; two-letter countries are left out."""
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
def test_the_message_of_an_event_never_changes_by_a_byte(event: Event) -> None:
    assert encoded(recorded(event)) == (GOLDEN / f"{event.TOPIC}.json").read_bytes()


def test_every_message_has_a_golden_and_every_golden_a_message() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(topics()) == {event.TOPIC for event in EXAMPLES}


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.TOPIC)
def test_no_message_repeats_personal_data_or_human_text(event: Event) -> None:
    said = encoded(recorded(event)).decode()
    for secret in secrets(json.loads(event.model_dump_json())):
        word_of_a_list = isinstance(getattr(event, "reason", None), StrEnum) and secret == event.reason  # type: ignore[attr-defined]
        assert word_of_a_list or secret not in said, secret


def test_the_examples_contain_personal_data() -> None:
    """The test above is effective: stored events do contain contacts, addresses and free texts."""
    told = {secret for event in EXAMPLES for secret in secrets(json.loads(event.model_dump_json()))}
    assert len(told) > 15
    assert any("@" in secret for secret in told)


@pytest.mark.parametrize(
    "data", dict.fromkeys(published.data for published in EVENTS.values()), ids=lambda data: data.__name__
)
def test_no_message_has_a_field_for_personal_data(data: type[BaseModel]) -> None:
    assert not (PERSONAL - WORDS) & set(fields(data.model_json_schema()))


def test_a_message_carries_the_position_and_cause_of_its_event() -> None:
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


def test_on_the_wire_a_position_is_a_string_and_absent_fields_are_left_out() -> None:
    """A CloudEvents Integer ends at 2^31 - 1; a log may be longer."""
    first = Recorded("account-acme", 1, EXAMPLES[0], None, Cause("admin:ada", "wish-1"), LATER, 2**40)
    wire = json.loads(encoded(first))
    assert wire["position"] == str(2**40)
    assert {"partitionkey", "causationid"}.isdisjoint(wire)


def test_fields_that_an_older_event_lacks_are_absent_from_its_message() -> None:
    """Its message is the same as the one published before the field existed."""
    older = LinkRevoked(link_id="link-1", replaced_by=None, revoked_at=LATER)
    assert set(json.loads(encoded(recorded(older)))["data"]) == {"link_id", "revoked_at"}


def test_an_event_without_a_message_is_named_and_not_silently_left_out() -> None:
    class TicketFound(Event):
        TOPIC = "account.TicketFound.v1"

    with pytest.raises(Unpublished, match="TicketFound"):
        encoded(recorded(TicketFound()))


def write_missing() -> None:
    """Write missing messages; existing ones stay unchanged."""
    GOLDEN.mkdir(exist_ok=True)
    for event in EXAMPLES:
        path = GOLDEN / f"{event.TOPIC}.json"
        if not path.exists():
            path.write_bytes(encoded(recorded(event)))


if __name__ == "__main__":
    write_missing()
