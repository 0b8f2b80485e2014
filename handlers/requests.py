"""What may be asked of Trunkline where it is not a domain command as it stands.

A domain command carries everything it is decided by: time, prices, a token's hash. Who asks does not know these; these
requests hold what they do know, and a handler adds the rest. Domain commands that need no more than the time are asked
for as they are; see the table in `handlers.commands`.
"""

from __future__ import annotations

from domain.account import BillingContact
from domain.messages import Identifier, Message
from domain.money import Money
from domain.order import Method
from domain.payment_reference import PiNumber
from domain.quote import Selection
from domain.services import ServiceCode


class Request(Message):
    """A wish from outside."""


class OrderExpansion(Request):
    """Order more capacity, or new services, for a package, at today's prices."""

    order_id: Identifier
    account_id: Identifier
    package_id: Identifier
    selections: tuple[Selection, ...]


class BillTo(Request):
    """Name who gets the invoice: one of the account's receivers, or a new one, who then joins its list."""

    order_id: Identifier
    account_id: Identifier
    receiver_id: Identifier
    contact: BillingContact | None = None


class CheckOut(Request):
    """Place the order, and choose how to pay."""

    order_id: Identifier
    account_id: Identifier
    method: Method
    pi_number: PiNumber | None = None


class CompleteCheckout(Request):
    """The customer is back from the provider, having approved: take the money."""

    order_id: Identifier
    account_id: Identifier
    checkout_id: Identifier


class ReconcileCapture(Request):
    """Somebody says that a capture exists. The provider is asked; nothing else of the hint is believed."""

    capture_id: Identifier


class ConfirmOfflinePayment(Request):
    """The money of an offline order was collected."""

    order_id: Identifier
    amount: Money


class RefundOrder(Request):
    """Give money back; all of what is left where no amount is named. ``services`` are given up with it."""

    order_id: Identifier
    refund_id: Identifier
    amount: Money | None = None
    services: tuple[ServiceCode, ...] = ()


class FulfilPaidOrder(Request):
    """Grant what was paid for."""

    order_id: Identifier


class InvoiceFulfilledOrder(Request):
    """Issue the invoice, and a link to it."""

    order_id: Identifier


class MailInvoiceLink(Request):
    """Mail an invoice's link to its billing contact."""

    invoice_id: Identifier
    link_id: Identifier


class TellAccountManager(Request):
    """Tell whoever collects offline payments that there is one to collect."""

    order_id: Identifier


class ReverseRefundedGrant(Request):
    """Take back what a refund gave up."""

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
    """Issue a new link to an invoice; the earlier ones are worth nothing from then on."""

    invoice_id: Identifier


class UseInvoiceLink(Request):
    """Somebody presses the button of a link's page."""

    token: str
