"""Personal data in events: which fields hold them, whose they are, and what is read in their place after an erasure.

A person is a billing receiver of an account, and is named ``account/receiver``, as in ``acme/wonka``. Whoever stores an
event keeps its marked fields secret under a key of the person; the domain itself sees them as they are, or erased.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from domain.messages import Event, Message

ERASED: Final = "[erased]"
"""What stands where a text of an erased person stood."""


@dataclass(frozen=True, slots=True)
class Personal:
    """Marks a field of an event as personal: ``contact: Annotated[BillingContact, Personal(ERASED_CONTACT)]``.

    Attributes:
        erased: what is read in its place once the person is erased; a value that the field can have.
        receiver: the event's field with the receiver's id. The account is the one that the event is recorded for.
    """

    erased: Message | str
    receiver: str = "receiver_id"


def person_id(account_id: str, receiver_id: str) -> str:
    """The name of a person. An id never has a slash in it, so no two persons share a name."""
    return f"{account_id}/{receiver_id}"


def personal_fields(event: type[Event]) -> dict[str, Personal]:
    """The marked fields of a kind of event. A mark counts on the event's own fields, which may be whole values."""
    return {
        name: mark
        for name, field in event.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, Personal)
    }
