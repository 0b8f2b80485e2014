"""Issued documents and their bytes."""

from __future__ import annotations

from domain.invoice import (
    INVOICE,
    CreditNoteIssued,
    Document,
    Invoice,
    InvoiceIssued,
    NoDocument,
    UnknownInvoice,
)
from domain.order import ORDER, BillingContactChosen
from handlers.context import RequestContext
from infra.documents.typst_invoice import kept
from infra.event_log.recorder import StoredDocument
from infra.event_log.unit_of_work import UnitOfWork


def billing_of(work: UnitOfWork, order_id: str) -> BillingContactChosen:
    """Return the billing contact that the customer chose for an order."""
    billing = work.state(ORDER, order_id).billing
    assert billing, "a placed order has a billing contact"
    return billing


def keep_document(work: UnitOfWork, pdf: bytes) -> Document:
    """Store a PDF in the commit of the unit of work, and return its description."""
    document = kept(pdf)
    work.keep(StoredDocument(document.sha256, document.media_type, pdf))
    return document


def issued_invoice(work: UnitOfWork, invoice_id: str) -> InvoiceIssued:
    """Return the event that issued an invoice.

    Raises:
        UnknownInvoice: no invoice has this id.
    """
    issued = work.state(INVOICE, invoice_id).issued
    if not isinstance(issued, InvoiceIssued):
        raise UnknownInvoice(f"There is no invoice {invoice_id}; name one that was issued.")
    return issued


def kept_document(context: RequestContext, invoice: Invoice) -> StoredDocument:
    """Return the bytes that were issued. They are never rendered again: that would be no evidence.

    Raises:
        NoDocument: they were deleted after their retention.
    """
    assert invoice.issued, "an invoice with a link or a mail was issued"
    if invoice.deleted:
        raise no_document(invoice.issued)
    document = context.dependencies.log.document(invoice.issued.document.sha256)
    assert document, "a document is stored in the commit of its issue"
    return document


def no_document(issued: InvoiceIssued | CreditNoteIssued) -> NoDocument:
    """Return the refusal for a document whose bytes were deleted."""
    return NoDocument(f"The document of {issued.number} was deleted after its retention period.")
