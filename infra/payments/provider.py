"""What is asked of whoever takes our customers' money: `PaymentProvider`, its values and its errors."""

from __future__ import annotations

from typing import Protocol

from pydantic import AwareDatetime

from domain.messages import Identifier, Message, Text
from domain.money import Money
from domain.order import Method


class Checkout(Message):
    """A payment that waits for the customer, who is to open ``approve_url`` in a browser."""

    checkout_id: Identifier
    approve_url: str


class Capture(Message):
    """Money that the provider took for an order of ours, as the provider itself tells it.

    ``captured_at`` is in UTC. Later refunds change nothing here: ``amount`` is what was taken.
    """

    capture_id: Identifier
    checkout_id: Identifier
    order_id: Identifier
    method: Method
    amount: Money
    captured_at: AwareDatetime


class Decline(Message):
    """The provider said no to this attempt; the customer may try again.

    ``reason`` is a sentence fit for the customer, ``code`` the provider's own word for it.
    """

    attempt_id: Identifier
    reason: Text
    code: str


class PaymentProviderError(Exception):
    """Anything that kept a provider from doing what it was asked."""


class PaymentProviderUnavailable(PaymentProviderError):
    """No answer, or none that can be read: whether it was done is unknown. The same call again is safe, and tells."""


class PaymentNotApproved(PaymentProviderError):
    """The customer has not approved the checkout yet, or has to approve it again."""


class PaymentPending(PaymentProviderError):
    """The provider holds the payment back for a review of its own. The money is not ours; a webhook tells if it is."""


class PaymentProviderRefused(PaymentProviderError):
    """The provider will not do this, however often it is asked.

    Attributes:
        code: the provider's word for the reason.
        reference: what the provider's support asks for; empty where it gave none.
    """

    def __init__(self, message: str, *, code: str, reference: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.reference = reference


class CredentialsRefused(PaymentProviderRefused):
    """The provider does not know us by the configured credentials."""


class UnreadableWebhook(PaymentProviderError):
    """What arrived is no webhook of the provider: too long, no JSON, or without what it must have."""


class PaymentProvider(Protocol):
    """Whoever takes the money for the methods that are not `Method.OFFLINE`.

    Every call may be repeated with the same arguments, and does its work once. Every call raises
    `PaymentProviderUnavailable` where its outcome is unknown and `PaymentProviderRefused` where the provider said no.
    """

    @property
    def name(self) -> str:
        """What the provider is called, in small letters."""

    def open_checkout(self, *, order_id: str, method: Method, amount: Money, return_url: str) -> Checkout:
        """Open a payment of ``amount`` for an order: one per order, method and amount, however often it is asked for.

        The customer comes back to ``return_url``, with ``token=<checkout_id>`` added to its query, whether the payment
        was approved or given up; `capture` tells which.

        Raises:
            ValueError: the method is offline, which no provider takes.
        """

    def capture(self, checkout_id: str) -> Capture | Decline:
        """Take the money of an approved checkout. Captured twice, a checkout gives the same capture.

        Raises:
            PaymentNotApproved: the customer has not approved it, or has to approve it again after a decline.
            PaymentPending: the provider holds the payment back.
        """

    def find_capture(self, capture_id: str) -> Capture | None:
        """What the provider itself says of a capture; none where it took no money for us under this id."""

    def refund(self, capture_id: str, *, refund_id: str, amount: Money) -> None:
        """Give ``amount`` of a capture back: once for each ``refund_id`` of the capture."""
