"""Personal data in events: the fields that hold it, the person it is about, and its placeholder after an erasure.

A person is a billing receiver of an account and is named ``account/receiver``, as in ``acme/wonka``. The event store
encrypts marked fields with the person's key; the domain itself sees them in clear text or erased.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from domain.messages import Event, Message

ERASED: Final = "[erased]"
"""The placeholder for any text of an erased person."""


@dataclass(frozen=True, slots=True)
class Personal:
    """Marks a field of an event as personal: ``contact: Annotated[BillingContact, Personal(ERASED_CONTACT)]``.

    Attributes:
        erased: the placeholder once the person is erased; it must be valid for the field.
        receiver: the event's field that holds the receiver's id. The account is the one the event is recorded for.
    """

    erased: Message | str
    receiver: str = "receiver_id"


def person_id(account_id: str, receiver_id: str) -> str:
    """The name of a person. Ids contain no slash, so names are unique."""
    return f"{account_id}/{receiver_id}"


def personal_fields(event: type[Event]) -> dict[str, Personal]:
    """The marked fields of an event type. Only the event's own fields can be marked; a field may be a whole value."""
    return {
        name: mark
        for name, field in event.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, Personal)
    }
