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
    """The billing contact that an order's customer chose."""
    billing = work.state(ORDER, order_id).billing
    assert billing, "what is placed names its billing contact"
    return billing


def keep_document(work: UnitOfWork, pdf: bytes) -> Document:
    """Keep the bytes of a PDF in the unit of work's commit, and return its description."""
    document = kept(pdf)
    work.keep(StoredDocument(document.sha256, document.media_type, pdf))
    return document


def issued_invoice(work: UnitOfWork, invoice_id: str) -> InvoiceIssued:
    """The event that issued an invoice.

    Raises:
        UnknownInvoice: no invoice has this id.
    """
    issued = work.state(INVOICE, invoice_id).issued
    if not isinstance(issued, InvoiceIssued):
        raise UnknownInvoice(f"There is no invoice {invoice_id}; name one that was issued.")
    return issued


def kept_document(context: RequestContext, invoice: Invoice) -> StoredDocument:
    """The bytes that were issued: not rendered again, for that would be no evidence.

    Raises:
        NoDocument: they were deleted, in their time.
    """
    assert invoice.issued, "what has a link, or a mail, was issued"
    if invoice.deleted:
        raise no_document(invoice.issued)
    document = context.dependencies.log.document(invoice.issued.document.sha256)
    assert document, "a document is kept in the commit of its issue"
    return document


def no_document(issued: InvoiceIssued | CreditNoteIssued) -> NoDocument:
    """The refusal for a document whose bytes were deleted."""
    return NoDocument(f"The document of {issued.number} was deleted: it had to be kept no longer.")
