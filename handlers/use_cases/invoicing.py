"""Invoices and credit notes: numbered, rendered, and recorded in one commit."""

from __future__ import annotations

from contextlib import AbstractContextManager
from uuid import UUID, uuid5

from domain.account import ACCOUNT, BillingContact
from domain.invoice import (
    INVOICE,
    InvoiceIssued,
    IssueCreditNote,
    IssueInvoice,
    UnknownInvoice,
    credit_of,
)
from domain.invoice_link import INVOICE_LINK
from domain.messages import Refusal
from domain.order import ORDER, Status
from handlers.context import RequestContext
from handlers.numbering import NumberReservation
from handlers.requests import (
    InvoiceFulfilledOrder,
    IssueCreditNoteForRefund,
)
from handlers.use_cases.documents import billing_of, keep_document
from handlers.use_cases.invoice_links import issue_link
from infra import link_tokens
from infra.documents.typst_invoice import CreditNoteDraft, InvoiceDraft, render_credit_note, render_invoice
from infra.event_log.unit_of_work import UnitOfWork

DOCUMENT_IDS = UUID("3d0b4c1e-2f0a-5a8e-8a44-1f4b6f6f2c77")


class NotFulfilled(Refusal):
    """The order has not been fulfilled."""


def invoice_id_of(order_id: str) -> str:
    """Return the id of the invoice of an order. It is derived from the order, so an order has one."""
    return str(uuid5(DOCUMENT_IDS, f"invoice/{order_id}"))


def credit_note_id_of(order_id: str, refund_id: str) -> str:
    """Return the id of the credit note of a refund."""
    return str(uuid5(DOCUMENT_IDS, f"credit note/{order_id}/{refund_id}"))


def invoice_fulfilled_order(request: InvoiceFulfilledOrder, context: RequestContext) -> None:
    """Issue the invoice of a fulfilled order: number, document and first link in one commit.

    Raises:
        NotFulfilled: nothing was granted yet.
    """
    work = context.work(use_cache=True)
    order = work.state(ORDER, request.order_id)
    requested = order.require(request.order_id)
    invoice_id = invoice_id_of(request.order_id)
    if work.state(INVOICE, invoice_id).issued:
        return
    if not order.fulfilled:
        raise NotFulfilled(f"The order is {order.status}; it is invoiced once it is fulfilled.")
    assert order.captured, "a fulfilled order is paid"
    billing = billing_of(work, request.order_id)
    assert order.placed, "a paid order is placed"
    with _reserve_number(work, context, invoice_id) as reserved:
        draft = InvoiceDraft(
            at=reserved.at,
            invoice_id=invoice_id,
            number=reserved.number,
            account_id=requested.account_id,
            order_id=request.order_id,
            package_id=requested.package_id,
            seller=context.dependencies.seller,
            receiver_id=billing.receiver_id,
            buyer=_buyer(work, requested.account_id, billing.contact),
            quote=requested.quote,
            method=order.captured.method,
            capture_id=order.captured.capture_id,
            pi_number=order.placed.pi_number,
            paid_at=order.captured.captured_at,
        )
        document = keep_document(work, render_invoice(draft))
        work.do(INVOICE, invoice_id, IssueInvoice(**dict(draft), document=document))
        work.begin(INVOICE_LINK, link_tokens.link_id(invoice_id, 1))
        issue_link(work, context, invoice_id, request.order_id, ordinal=1)
        reserved.wait()
        context.commit(work, requested.account_id)


def _buyer(work: UnitOfWork, account_id: str, contact: BillingContact) -> BillingContact:
    """Return the buyer that a document names: after an erasure the company alone, which is what bought."""
    if not contact.erased:
        return contact
    account = work.state(ACCOUNT, account_id).require(account_id)
    return contact.model_copy(update={"company": account.name, "country": account.country})


def _reserve_number(
    work: UnitOfWork, context: RequestContext, document_id: str
) -> AbstractContextManager[NumberReservation]:
    return context.dependencies.numbering.reserve(
        work, context.dependencies.clock, context.dependencies.seller.code, document_id
    )


def issue_credit_note_for_refund(request: IssueCreditNoteForRefund, context: RequestContext) -> None:
    """Issue the credit note of a refund. Does nothing if there will never be an invoice to correct.

    Raises:
        UnknownInvoice: the invoice is not issued yet; try again later.
    """
    work = context.work()
    order = work.state(ORDER, request.order_id)
    requested = order.require(request.order_id)
    refunded = order.refund(request.refund_id)
    invoice_id = invoice_id_of(request.order_id)
    invoice = work.state(INVOICE, invoice_id).issued
    credit_note_id = credit_note_id_of(request.order_id, request.refund_id)
    if work.state(INVOICE, credit_note_id).issued:
        return
    if not isinstance(invoice, InvoiceIssued):
        if not order.fulfilled and (order.unfulfillable or order.status is Status.REFUNDED):
            return
        raise UnknownInvoice(f"There is no invoice {invoice_id} that a credit note could correct; issue it first.")
    net, taxes = credit_of(invoice.quote, refunded.amount)
    with _reserve_number(work, context, credit_note_id) as reserved:
        draft = CreditNoteDraft(
            at=reserved.at,
            credit_note_id=credit_note_id,
            number=reserved.number,
            invoice_id=invoice_id,
            invoice_number=invoice.number,
            account_id=requested.account_id,
            order_id=request.order_id,
            refund_id=request.refund_id,
            seller=context.dependencies.seller,
            receiver_id=billing_of(work, request.order_id).receiver_id,
            buyer=_buyer(work, requested.account_id, invoice.buyer),
            net=net,
            taxes=taxes,
            total=refunded.amount,
            refunded_at=refunded.refunded_at,
        )
        document = keep_document(work, render_credit_note(draft))
        work.do(INVOICE, credit_note_id, IssueCreditNote(**dict(draft), document=document))
        reserved.wait()
        context.commit(work, requested.account_id)
