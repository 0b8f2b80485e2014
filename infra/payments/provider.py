"""The interface to a payment provider: `PaymentProvider`, its values and its errors."""

from __future__ import annotations

from typing import Protocol

from pydantic import AwareDatetime

from domain.messages import Identifier, Message, Text
from domain.money import Money
from domain.order import Method


class Checkout(Message):
    """A payment that waits for the customer to open ``approve_url`` in a browser."""

    checkout_id: Identifier
    approve_url: str


class Capture(Message):
    """Money that the provider took for an order of ours, as reported by the provider itself.

    ``captured_at`` is in UTC. ``amount`` is the amount captured; later refunds do not change it.
    """

    capture_id: Identifier
    checkout_id: Identifier
    order_id: Identifier
    method: Method
    amount: Money
    captured_at: AwareDatetime


class Decline(Message):
    """The provider declined this attempt; the customer may try again.

    ``reason`` is a sentence to show to the customer, ``code`` the provider's code for it.
    """

    attempt_id: Identifier
    reason: Text
    code: str


class PaymentProviderError(Exception):
    """Anything that kept a provider from fulfilling a request."""


class PaymentProviderUnavailable(PaymentProviderError):
    """No readable answer, so the outcome is unknown. Repeating the call is safe and reveals it."""


class PaymentNotApproved(PaymentProviderError):
    """The customer has not approved the checkout yet, or has to approve it again."""


class PaymentPending(PaymentProviderError):
    """The provider holds the payment for a review. The money is not ours yet; a webhook reports when it is."""


class PaymentProviderRefused(PaymentProviderError):
    """The provider refuses for good; a retry will not help.

    Attributes:
        code: the provider's code for the reason.
        reference: what the provider's support asks for; empty if it gave none.
    """

    def __init__(self, message: str, *, code: str, reference: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.reference = reference


class CredentialsRefused(PaymentProviderRefused):
    """The provider does not accept the configured credentials."""


class UnreadableWebhook(PaymentProviderError):
    """A request is not a webhook of the provider: it is too long, not JSON, or lacks required fields."""


class PaymentProvider(Protocol):
    """Takes payments for all methods but `Method.OFFLINE`.

    Every call is idempotent: repeated with the same arguments, it takes effect once. Every call raises
    `PaymentProviderUnavailable` if its outcome is unknown, and `PaymentProviderRefused` if the provider refused.
    """

    @property
    def name(self) -> str:
        """The provider's name, in lower case."""

    def open_checkout(self, *, order_id: str, method: Method, amount: Money, return_url: str) -> Checkout:
        """Open a payment of ``amount`` for an order: one per order, method and amount, however often it is called.

        The customer returns to ``return_url``, with ``token=<checkout_id>`` added to its query, whether they approved
        the payment or gave up; `capture` tells which.

        Raises:
            ValueError: the method is offline, which no provider takes.
        """

    def capture(self, checkout_id: str) -> Capture | Decline:
        """Take the money of an approved checkout. Capturing it again returns the same capture.

        Raises:
            PaymentNotApproved: the customer has not approved it, or has to approve it again after a decline.
            PaymentPending: the provider holds the payment for a review.
        """

    def find_capture(self, capture_id: str) -> Capture | None:
        """Ask the provider about a capture. Returns None if it took no money for us under this id."""

    def refund(self, capture_id: str, *, refund_id: str, amount: Money) -> None:
        """Refund ``amount`` of a capture, once per ``refund_id`` of the capture."""
