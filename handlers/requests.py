"""Requests: what may be asked of Trunkline, apart from domain commands.

A domain command carries everything that its decision needs: time, prices, the hash of a token. Senders do not know
these: a request holds what they know, and its handler adds the rest. Domain commands that need nothing but the time are
sent as they are; see the table in `handlers.commands`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar

from pydantic import ValidationError

from domain.account import BillingContact
from domain.messages import Command, Identifier, Message, Refusal, what_is_wrong
from domain.money import Money
from domain.order import Method
from domain.payment_reference import PiNumber
from domain.quote import Selection
from domain.services import ServiceCode

M = TypeVar("M", bound=Message)


class MalformedCommand(Refusal):
    """A command or request is not valid."""


def parse(kind: type[M], fields: Mapping[str, Any], arrived_at: datetime) -> M:
    """Return the command or request that a sender wrote. The time of a domain command is the time of its arrival.

    Raises:
        MalformedCommand: names the fields that are wrong.
    """
    if "at" in fields:
        raise MalformedCommand("The time of a command is the time of its arrival; leave out the field at.")
    timed = {**fields, "at": arrived_at} if issubclass(kind, Command) else fields
    try:
        return kind.model_validate(timed)
    except ValidationError as error:
        raise MalformedCommand(f"{kind.__name__} cannot be read: {what_is_wrong(error)}.") from error


class Request(Message):
    """A request from outside."""


class OrderExpansion(Request):
    """Order more capacity, or new services, for a package, at today's prices."""

    order_id: Identifier
    account_id: Identifier
    package_id: Identifier
    selections: tuple[Selection, ...]


class BillTo(Request):
    """Choose who gets the invoice: a receiver of the account, or a new one, who then joins its list."""

    order_id: Identifier
    account_id: Identifier
    receiver_id: Identifier
    contact: BillingContact | None = None


class CheckOut(Request):
    """Place the order with a payment method."""

    order_id: Identifier
    account_id: Identifier
    method: Method
    pi_number: PiNumber | None = None


class CompleteCheckout(Request):
    """Capture the payment that the customer approved at the provider."""

    order_id: Identifier
    account_id: Identifier
    checkout_id: Identifier


class ReconcileCapture(Request):
    """Ask the provider about a capture, and record it. Nothing but its id is taken from the hint."""

    capture_id: Identifier


class ConfirmOfflinePayment(Request):
    """Confirm that the money of an offline order was collected."""

    order_id: Identifier
    amount: Money


class RefundOrder(Request):
    """Refund an amount, by default all that is left. ``services`` are given up with it."""

    order_id: Identifier
    refund_id: Identifier
    amount: Money | None = None
    services: tuple[ServiceCode, ...] = ()


class FulfilPaidOrder(Request):
    """Grant what a paid order bought."""

    order_id: Identifier


class InvoiceFulfilledOrder(Request):
    """Issue the invoice of a fulfilled order, and a link to it."""

    order_id: Identifier


class MailInvoiceLink(Request):
    """Mail the link of an invoice to its billing contact."""

    invoice_id: Identifier
    link_id: Identifier


class TellAccountManager(Request):
    """Mail the account manager that an offline payment is to be collected."""

    order_id: Identifier


class ReverseRefundedGrant(Request):
    """Reverse the grant of the services that a refund gave up."""

    order_id: Identifier
    refund_id: Identifier


class IssueCreditNoteForRefund(Request):
    """Issue the credit note of a refund."""

    order_id: Identifier
    refund_id: Identifier


class MailCreditNote(Request):
    """Mail a credit note to the billing contact of its invoice."""

    credit_note_id: Identifier


class RenewInvoiceLink(Request):
    """Issue a new link to an invoice, and revoke the earlier ones."""

    invoice_id: Identifier


class UseInvoiceLink(Request):
    """Use an invoice link: its button was pressed."""

    token: str
