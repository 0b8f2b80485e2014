"""Properties shared by every event, command and refusal."""

import pkgutil
import re
from collections import Counter
from importlib import import_module
from typing import Any, get_args

import pytest
from pydantic import ValidationError

import domain
from domain.messages import Command, Decider, Event, Message, Refusal, what_is_wrong
from domain.order import NotPaid, PaymentCaptured
from tests.support.examples import capture, captured, decline, place
from tests.support.given_domain import but

MODULES = {name: import_module(f"domain.{name}") for _, name, _ in pkgutil.iter_modules(domain.__path__)}
DECIDERS = {
    name: value for name, module in MODULES.items() for value in vars(module).values() if isinstance(value, Decider)
}


def classes(base: type) -> list[type[Any]]:
    """Every subclass of ``base`` in the domain, from the module that defines it."""
    members = [(module.__name__, value) for module in MODULES.values() for value in vars(module).values()]
    found = [
        value
        for name, value in members
        if isinstance(value, type) and issubclass(value, base) and value is not base and value.__module__ == name
    ]
    return list(dict.fromkeys(found))


EVENTS: list[type[Event]] = classes(Event)


@pytest.mark.parametrize("event", EVENTS)
def test_the_topic_of_an_event_names_its_aggregate_its_class_and_its_version(event: type[Event]) -> None:
    aggregate = event.__module__.removeprefix("domain.")
    assert re.fullmatch(rf"{aggregate}\.{event.__name__}\.v[1-9][0-9]*", event.TOPIC)
    assert "TOPIC" in vars(event), "each event class pins its own topic; none inherits it"


def test_no_two_events_have_one_topic() -> None:
    assert len(EVENTS) == len({event.TOPIC for event in EVENTS})


@pytest.mark.parametrize("base", [Event, Command, Refusal])
def test_a_name_is_unique_in_the_domain(base: type) -> None:
    assert [name for name, times in Counter(cls.__name__ for cls in classes(base)).items() if times > 1] == []


@pytest.mark.parametrize("cls", classes(Message) + classes(Refusal), ids=lambda cls: cls.__name__)
def test_every_message_and_every_refusal_says_what_it_means(cls: type) -> None:
    assert (vars(cls).get("__doc__") or "").strip()


@pytest.mark.parametrize("aggregate", DECIDERS)
def test_every_event_and_every_command_is_in_the_union_of_its_aggregate(aggregate: str) -> None:
    for kind, base in (("Event", Event), ("Command", Command)):
        union = getattr(MODULES[aggregate], "".join(part.title() for part in aggregate.split("_")) + kind)
        members = set(get_args(union) or (union,))
        assert members == {cls for cls in classes(base) if cls.__module__ == f"domain.{aggregate}"}


@pytest.mark.parametrize("aggregate", DECIDERS)
def test_a_stream_is_named_after_its_aggregate(aggregate: str) -> None:
    assert DECIDERS[aggregate].stream("42") == f"{aggregate}-42"


def test_no_event_belongs_to_two_aggregates_or_to_none() -> None:
    assert {event.__module__.removeprefix("domain.") for event in EVENTS} == set(DECIDERS)


def test_a_refusal_has_a_code_for_machines() -> None:
    assert NotPaid("The order has not been paid.").code == "not_paid"
    assert len({refusal("").code for refusal in classes(Refusal)}) == len(classes(Refusal))


def test_a_message_never_changes() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        captured.capture_id = "capture-2"  # type: ignore[misc]  # that is the point


def test_a_message_forbids_unknown_fields() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        PaymentCaptured.model_validate({**dict(captured), "colour": "red"})


def test_a_moment_without_a_time_zone_is_rejected() -> None:
    with pytest.raises(ValidationError, match="timezone"):
        but(capture, at=capture.at.replace(tzinfo=None))


def test_validation_errors_are_described_by_location_without_values() -> None:
    with pytest.raises(ValidationError) as error:
        but(capture, amount={"amount_minor": 1, "currency": "euro"}, colour="red")
    assert what_is_wrong(error.value) == (
        "amount.currency: string should match pattern '^[A-Z]{3}$'; colour: extra inputs are not permitted"
    )


@pytest.mark.parametrize("identifier", ["", "-1", "a b", "a/b", "a\n", "ä", 101 * "a"])
def test_an_invalid_identifier_is_rejected(identifier: str) -> None:
    with pytest.raises(ValidationError):
        but(place, order_id=identifier)


@pytest.mark.parametrize("text", ["", "   ", "a\x00b", "a\nb", "a\x7fb", 201 * "a"])
def test_a_text_is_one_line(text: str) -> None:
    with pytest.raises(ValidationError, match="reason"):
        but(decline, reason=text)
