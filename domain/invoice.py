"""Invoices and credit notes: immutable once issued. A refund issues a credit note that names its invoice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import ClassVar, assert_never

from pydantic import AwareDatetime, PositiveInt

from domain.account import Email, PersonalContact, PersonalEmail
from domain.messages import Command, Decider, Event, Identifier, Message, Refusal, Text
from domain.money import Money, round_half_up
from domain.order import Method
from domain.price_list import Country, SellerCode
from domain.quote import Quote, TaxTotal


class Seller(Message):
    """The issuer of an invoice, with the details that the law requires on it."""

    code: SellerCode
    name: Text
    address: tuple[Text, ...]
    country: Country
    vat_id: Text
    email: Email


class Document(Message):
    """The evidence: the stored bytes, named by their SHA-256. Rendering them again would prove nothing."""

    sha256: str
    media_type: str
    size_bytes: int


class InvoiceFacts(Message):
    """The content of an invoice. ``receiver_id`` identifies ``buyer``; only the oldest invoices lack it."""

    invoice_id: Identifier
    number: str
    account_id: Identifier
    order_id: Identifier
    package_id: Identifier
    seller: Seller
    receiver_id: Identifier | None = None
    buyer: PersonalContact
    quote: Quote
    method: Method
    capture_id: Identifier
    pi_number: str | None
    paid_at: AwareDatetime


class CreditNoteFacts(Message):
    """The content of a credit note. Amounts are what was paid back, so they are positive; ``receiver_id`` as above."""

    credit_note_id: Identifier
    number: str
    invoice_id: Identifier
    invoice_number: str
    account_id: Identifier
    order_id: Identifier
    refund_id: Identifier
    seller: Seller
    receiver_id: Identifier | None = None
    buyer: PersonalContact
    net: Money
    taxes: tuple[TaxTotal, ...]
    total: Money
    refunded_at: AwareDatetime


class InvoiceIssued(InvoiceFacts, Event):
    """The invoice of a paid order was issued."""

    TOPIC: ClassVar[str] = "invoice.InvoiceIssued.v1"
    issued_at: AwareDatetime
    document: Document


class InvoiceEmailed(Event):
    """A mail server, the recipient's or our relay, accepted the message."""

    TOPIC: ClassVar[str] = "invoice.InvoiceEmailed.v1"
    invoice_id: Identifier
    link_id: Identifier
    receiver_id: Identifier | None = None
    recipient: PersonalEmail
    message_id: str
    emailed_at: AwareDatetime


class CreditNoteIssued(CreditNoteFacts, Event):
    """A credit note was issued for all or part of an invoice."""

    TOPIC: ClassVar[str] = "invoice.CreditNoteIssued.v1"
    issued_at: AwareDatetime
    document: Document


class DocumentDeleted(Event):
    """The retention period is over and the document's bytes were deleted. ``invoice_id``: an invoice or credit note."""

    TOPIC: ClassVar[str] = "invoice.DocumentDeleted.v1"
    invoice_id: Identifier
    sha256: str
    deleted_at: AwareDatetime


InvoiceEvent = InvoiceIssued | InvoiceEmailed | CreditNoteIssued | DocumentDeleted


class IssueInvoice(InvoiceFacts, Command):
    """Issue the invoice of a paid order."""

    document: Document


class RecordInvoiceEmailed(Command):
    """Record that the mail with a link was sent."""

    invoice_id: Identifier
    link_id: Identifier
    receiver_id: Identifier
    recipient: Email
    message_id: str


class IssueCreditNote(CreditNoteFacts, Command):
    """Issue the credit note of a refund."""

    document: Document


class DeleteDocument(Command):
    """Delete the document of an invoice or credit note once its retention period, in whole years, is over."""

    invoice_id: Identifier
    kept_years: PositiveInt


InvoiceCommand = IssueInvoice | RecordInvoiceEmailed | IssueCreditNote | DeleteDocument


@dataclass(frozen=True)
class Invoice:
    """An invoice or credit note, folded from its events; ``issued`` is None if the document does not exist."""

    issued: InvoiceIssued | CreditNoteIssued | None = None
    emailed: frozenset[str] = frozenset()
    deleted: bool = False
    """Whether the document's bytes were deleted."""


class UnknownInvoice(Refusal):
    """There is no such invoice."""


class StillKept(Refusal):
    """The document's retention period is not over."""


class NoDocument(Refusal):
    """The document was deleted after its retention period."""


def kept_until(issued_at: datetime, years: int) -> datetime:
    """When a document may be deleted: ``years`` years after the end of the UTC year in which it was issued."""
    return datetime(issued_at.astimezone(UTC).year + years + 1, 1, 1, tzinfo=UTC)


def let_go_before(at: datetime, years: int) -> datetime:
    """The inverse of `kept_until`: at ``at``, documents issued before this moment may be deleted."""
    return datetime(at.astimezone(UTC).year - years, 1, 1, tzinfo=UTC)


def decide(command: InvoiceCommand, invoice: Invoice) -> list[InvoiceEvent]:
    """The document's next events; none if it was already issued, mailed with this link, or deleted.

    Raises:
        UnknownInvoice: the invoice to mail or delete was never issued.
        StillKept: the retention period is not over.
    """
    match command:
        case IssueInvoice():
            facts = command.model_dump(exclude={"at"})
            return [] if invoice.issued else [InvoiceIssued(**facts, issued_at=command.at)]
        case RecordInvoiceEmailed():
            if invoice.issued is None:
                raise UnknownInvoice(f"There is no invoice {command.invoice_id}; issue it first.")
            if command.link_id in invoice.emailed:
                return []
            return [InvoiceEmailed(**command.model_dump(exclude={"at"}), emailed_at=command.at)]
        case IssueCreditNote():
            facts = command.model_dump(exclude={"at"})
            return [] if invoice.issued else [CreditNoteIssued(**facts, issued_at=command.at)]
        case DeleteDocument():
            if invoice.issued is None:
                raise UnknownInvoice(f"There is no invoice {command.invoice_id}, so no document to delete.")
            if invoice.deleted:
                return []
            until = kept_until(invoice.issued.issued_at, command.kept_years)
            if command.at < until:
                raise StillKept(f"{invoice.issued.number} must be kept until {until:%Y-%m-%d}.")
            sha256 = invoice.issued.document.sha256
            return [DocumentDeleted(invoice_id=command.invoice_id, sha256=sha256, deleted_at=command.at)]
        case _:
            assert_never(command)


def evolve(invoice: Invoice, event: InvoiceEvent) -> Invoice:
    """The document after one more event."""
    match event:
        case InvoiceIssued() | CreditNoteIssued():
            return replace(invoice, issued=event)
        case InvoiceEmailed():
            return replace(invoice, emailed=invoice.emailed | {event.link_id})
        case DocumentDeleted():
            return replace(invoice, deleted=True)
        case _:
            assert_never(event)


def credit_of(quote: Quote, refund: Money) -> tuple[Money, tuple[TaxTotal, ...]]:
    """Split a gross refund into net and tax per rate, in proportion to the invoice's own figures.

    A full refund returns exactly the invoice's figures; the last net absorbs the rounding remainder.
    """
    gross, total = refund.amount_minor, quote.total.amount_minor
    shares: list[TaxTotal] = []
    for tax in quote.taxes:
        last = len(shares) == len(quote.taxes) - 1
        before = sum(share.net_minor + share.tax_minor for share in shares)
        tax_minor = round_half_up(tax.tax_minor * gross, total)
        share_gross = gross - before if last else round_half_up((tax.net_minor + tax.tax_minor) * gross, total)
        shares.append(tax.model_copy(update={"net_minor": share_gross - tax_minor, "tax_minor": tax_minor}))
    net = sum(share.net_minor for share in shares)
    return Money(amount_minor=net, currency=refund.currency), tuple(shares)


INVOICE: Decider[InvoiceCommand, Invoice, InvoiceEvent] = Decider("invoice", Invoice(), decide, evolve, personal=True)
