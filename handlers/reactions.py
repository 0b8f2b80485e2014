"""What follows an event. The table reads as the story: the happy path first, then compensation.

A reaction returns the requests that follow one event and does no I/O. An event may be delivered twice, so each of these
requests is safe to repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from domain.invoice import CreditNoteIssued
from domain.invoice_link import LinkIssued
from domain.messages import Event
from domain.order import Method, OrderFulfilled, OrderPlaced, PaymentCaptured, PaymentRefunded
from handlers.requests import (
    FulfilPaidOrder,
    InvoiceFulfilledOrder,
    IssueCreditNoteForRefund,
    MailCreditNote,
    MailInvoiceLink,
    Request,
    ReverseRefundedGrant,
    TellAccountManager,
)


@dataclass(frozen=True)
class Reaction:
    """One thing that follows an event.

    Attributes:
        name: names the durable consumer and begins each inbox id. It is stored, so it never changes.
        requests: the requests that follow an event, none if nothing does.
        mails: it does nothing but send a mail.
        numbered: it numbers documents, which one process does at a time: only one can have a seller's next number.
    """

    name: str
    requests: Callable[[Any], list[Request]]
    mails: bool = False
    numbered: bool = False


TELL_ACCOUNT_MANAGER = Reaction(
    "tell_account_manager",
    lambda event: [TellAccountManager(order_id=event.order_id)] if event.method is Method.OFFLINE else [],
    mails=True,
)
"""If an order is placed offline, somebody has to collect the money."""

FULFIL_ORDER = Reaction("fulfil_order", lambda event: [FulfilPaidOrder(order_id=event.order_id)])
"""A paid order is granted at once."""

ISSUE_INVOICE = Reaction("issue_invoice", lambda event: [InvoiceFulfilledOrder(order_id=event.order_id)], numbered=True)
"""A fulfilled order is invoiced."""

MAIL_INVOICE = Reaction(
    "mail_invoice",
    lambda event: [MailInvoiceLink(invoice_id=event.invoice_id, link_id=event.link_id)],
    mails=True,
)
"""An issued link is mailed to the billing contact."""

REVERSE_GRANT = Reaction(
    "reverse_grant", lambda event: [ReverseRefundedGrant(order_id=event.order_id, refund_id=event.refund_id)]
)
"""A refund takes back what it refunded."""

ISSUE_CREDIT_NOTE = Reaction(
    "issue_credit_note",
    lambda event: [IssueCreditNoteForRefund(order_id=event.order_id, refund_id=event.refund_id)],
    numbered=True,
)
"""An issued invoice is never changed: a credit note corrects it."""

MAIL_CREDIT_NOTE = Reaction(
    "mail_credit_note", lambda event: [MailCreditNote(credit_note_id=event.credit_note_id)], mails=True
)
"""The customer's books need the credit note."""

REACTIONS: Mapping[type[Event], Sequence[Reaction]] = {
    OrderPlaced: [TELL_ACCOUNT_MANAGER],
    PaymentCaptured: [FULFIL_ORDER],
    OrderFulfilled: [ISSUE_INVOICE],
    LinkIssued: [MAIL_INVOICE],
    PaymentRefunded: [REVERSE_GRANT, ISSUE_CREDIT_NOTE],
    CreditNoteIssued: [MAIL_CREDIT_NOTE],
}
