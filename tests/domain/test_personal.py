"""Which fields of events are personal, and about whom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from domain.account import ERASED_CONTACT, AccountOpened, BillingContact, Email
from domain.invoice import CreditNoteIssued, InvoiceEmailed, InvoiceIssued
from domain.messages import Event
from domain.personal import ERASED, person_id, personal_fields
from tests.domain.test_messages import EVENTS
from tests.support.examples import WONKA

OTHERS = {
    (AccountOpened, "manager_email"),  # the collector's, at the seller or distributor: not a customer
    (InvoiceIssued, "seller"),  # the seller's own
    (CreditNoteIssued, "seller"),
}
"""Fields with an address that does not belong to a billing receiver."""
ADDRESS = get_args(Email)[1]


def holds_a_person(annotation: Any, metadata: list[Any]) -> bool:  # noqa: ANN401 - any type
    """Whether values of a type can contain a contact or an e-mail address."""
    if annotation is BillingContact or ADDRESS in metadata:
        return True
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return any(holds_a_person(field.annotation, field.metadata) for field in annotation.model_fields.values())
    inside = get_args(annotation)
    return any(part is ADDRESS or holds_a_person(part, []) for part in inside)


def with_persons() -> Iterator[tuple[type[Event], str]]:
    for event in EVENTS:
        for name, field in event.model_fields.items():
            if holds_a_person(field.annotation, field.metadata):
                yield event, name


def test_every_contact_and_every_address_in_an_event_is_marked_as_personal() -> None:
    marked = {(event, name) for event in EVENTS for name in personal_fields(event)}
    assert set(with_persons()) == marked | OTHERS
    assert (InvoiceEmailed, "recipient") in marked
    assert len(marked) == 6


@pytest.mark.parametrize("event", [event for event in EVENTS if personal_fields(event)])
def test_a_marked_field_names_its_person_and_accepts_its_placeholder(event: type[Event]) -> None:
    for name, mark in personal_fields(event).items():
        assert mark.receiver in event.model_fields
        assert event.__pydantic_validator__.validate_assignment(event.model_construct(), name, mark.erased)


def test_every_text_of_an_erased_contact_says_so() -> None:
    shown = ERASED_CONTACT.model_dump(exclude={"email", "country"})
    assert shown == dict.fromkeys(["name", "company", "phone", "vat_id"], ERASED) | {"address": (ERASED,)}
    assert BillingContact.model_validate_json(ERASED_CONTACT.model_dump_json()) == ERASED_CONTACT
    assert shown.keys() | {"email", "country"} == WONKA.model_dump().keys()


def test_a_person_is_named_by_account_and_receiver() -> None:
    assert person_id("acme", "wonka") == "acme/wonka"
