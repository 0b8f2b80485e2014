"""A payment's own number, from a proforma invoice or a provider's capture. It belongs to one order only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import StringConstraints

from domain.messages import Command, Decider, Event, Identifier, Refusal

PiNumber = Annotated[str, StringConstraints(to_upper=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9./_-]{0,39}$")]
"""The number of a proforma invoice: 1 to 40 letters and digits, with ``. / _ -`` inside; case-insensitive."""


class PaymentReferenceClaimed(Event):
    """The number was claimed for this order and belongs to it from now on."""

    TOPIC: ClassVar[str] = "payment_reference.PaymentReferenceClaimed.v1"
    reference: str
    order_id: Identifier


class ClaimPaymentReference(Command):
    """Claim a number for an order. Repeating it for the same order changes nothing."""

    reference: str
    order_id: Identifier


PaymentReferenceCommand = ClaimPaymentReference
PaymentReferenceEvent = PaymentReferenceClaimed


@dataclass(frozen=True)
class PaymentReference:
    """A number and the order that claimed it."""

    order_id: str | None = None


class PaymentReferenceTaken(Refusal):
    """Another order has claimed the number."""


def pi_reference(seller: str, pi_number: str) -> str:
    """The reference of a seller's proforma invoice."""
    return f"pi:{seller}:{pi_number}"


def capture_reference(provider: str, capture_id: str) -> str:
    """The reference of a payment provider's capture."""
    return f"{provider}:{capture_id}"


def decide(command: PaymentReferenceCommand, reference: PaymentReference) -> list[PaymentReferenceEvent]:
    """The claim; no event if the order already has the number.

    Raises:
        PaymentReferenceTaken: another order has claimed the number.
    """
    if reference.order_id == command.order_id:
        return []
    if reference.order_id:
        kind, _, number = command.reference.partition(":")
        what = f"The PI number {number.rpartition(':')[2]}" if kind == "pi" else f"The payment {number}"
        raise PaymentReferenceTaken(f"{what} was already used for another order; give the number of this payment.")
    return [PaymentReferenceClaimed(reference=command.reference, order_id=command.order_id)]


def evolve(_reference: PaymentReference, event: PaymentReferenceEvent) -> PaymentReference:
    """The reference after its claim."""
    return PaymentReference(order_id=event.order_id)


PAYMENT_REFERENCE: Decider[PaymentReferenceCommand, PaymentReference, PaymentReferenceEvent] = Decider(
    "payment_reference", PaymentReference(), decide, evolve
)
