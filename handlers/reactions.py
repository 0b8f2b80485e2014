"""What follows an event. The table reads as the story: the happy path first, then compensation.

A reaction looks at one event and gives the requests that follow; it does nothing itself. An event may be delivered
twice: each of these requests is safe to repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from domain.invoice import CreditNoteIssued
from domain.invoice_link import LinkIssued
from domain.messages import Event
from domain.order import Method, OrderFulfilled, OrderPlaced, PaymentCaptured, PaymentRefunded
from handlers.requests import (
    CreditRefund,
    FulfilPaidOrder,
    InvoiceFulfilledOrder,
    MailCreditNote,
    MailInvoiceLink,
    Request,
    ReverseRefundedGrant,
    TellAccountManager,
)

Reaction = Callable[[Any], list[Request]]


def tell_account_manager(event: OrderPlaced) -> list[Request]:
    """Offline, somebody has to collect the money."""
    return [TellAccountManager(order_id=event.order_id)] if event.method is Method.OFFLINE else []


def fulfil_order(event: PaymentCaptured) -> list[Request]:
    """What is paid is granted at once."""
    return [FulfilPaidOrder(order_id=event.order_id)]


def issue_invoice(event: OrderFulfilled) -> list[Request]:
    """What is granted is invoiced."""
    return [InvoiceFulfilledOrder(order_id=event.order_id)]


def mail_invoice(event: LinkIssued) -> list[Request]:
    """A link is of use to whoever has it."""
    return [MailInvoiceLink(invoice_id=event.invoice_id, link_id=event.link_id)]


def reverse_grant(event: PaymentRefunded) -> list[Request]:
    """What was given back is not used any longer."""
    return [ReverseRefundedGrant(order_id=event.order_id, refund_id=event.refund_id)]


def issue_credit_note(event: PaymentRefunded) -> list[Request]:
    """An invoice is never changed: a credit note corrects it."""
    return [CreditRefund(order_id=event.order_id, refund_id=event.refund_id)]


def mail_credit_note(event: CreditNoteIssued) -> list[Request]:
    """The customer's books need it."""
    return [MailCreditNote(credit_note_id=event.credit_note_id)]


MAILS: Collection[Reaction] = {tell_account_manager, mail_invoice, mail_credit_note}
"""Those that do nothing but tell somebody."""

NUMBERED: Collection[Reaction] = {issue_invoice, issue_credit_note}
"""Those that number documents, which one process does at a time: only one can have a seller's next number."""

REACTIONS: Mapping[type[Event], Sequence[Reaction]] = {
    OrderPlaced: [tell_account_manager],
    PaymentCaptured: [fulfil_order],
    OrderFulfilled: [issue_invoice],
    LinkIssued: [mail_invoice],
    PaymentRefunded: [reverse_grant, issue_credit_note],
    CreditNoteIssued: [mail_credit_note],
}
