"""Invoices and credit notes: once issued, never changed. A refund issues a credit note that names its invoice."""

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
    """Who issues the invoice, as the law wants it printed."""

    code: SellerCode
    name: Text
    address: tuple[Text, ...]
    country: Country
    vat_id: Text
    email: Email


class Document(Message):
    """The evidence: the bytes are kept under their SHA-256; rendering them again would prove nothing."""

    sha256: str
    media_type: str
    size_bytes: int


class InvoiceFacts(Message):
    """What an invoice says. ``receiver_id`` is who ``buyer`` is; only the oldest invoices do not have it."""

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
    """What a credit note says. Its amounts are what went back, so they are positive. ``receiver_id``: as above."""

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
    """The customer owes nothing for this order any more, and here is the paper."""

    TOPIC: ClassVar[str] = "invoice.InvoiceIssued.v1"
    issued_at: AwareDatetime
    document: Document


class InvoiceEmailed(Event):
    """The mail server of the recipient, or ours on the way there, took the message."""

    TOPIC: ClassVar[str] = "invoice.InvoiceEmailed.v1"
    invoice_id: Identifier
    link_id: Identifier
    receiver_id: Identifier | None = None
    recipient: PersonalEmail
    message_id: str
    emailed_at: AwareDatetime


class CreditNoteIssued(CreditNoteFacts, Event):
    """Part, or the whole, of an invoice was given back."""

    TOPIC: ClassVar[str] = "invoice.CreditNoteIssued.v1"
    issued_at: AwareDatetime
    document: Document


class DocumentDeleted(Event):
    """The law let the document go, and its bytes were deleted. ``invoice_id`` is that of an invoice or credit note."""

    TOPIC: ClassVar[str] = "invoice.DocumentDeleted.v1"
    invoice_id: Identifier
    sha256: str
    deleted_at: AwareDatetime


InvoiceEvent = InvoiceIssued | InvoiceEmailed | CreditNoteIssued | DocumentDeleted


class IssueInvoice(InvoiceFacts, Command):
    """Issue the invoice of a paid order."""

    document: Document


class RecordInvoiceEmailed(Command):
    """Record that the mail with a link went out."""

    invoice_id: Identifier
    link_id: Identifier
    receiver_id: Identifier
    recipient: Email
    message_id: str


class IssueCreditNote(CreditNoteFacts, Command):
    """Issue the credit note of a refund."""

    document: Document


class DeleteDocument(Command):
    """Give up the document of an invoice, or credit note, that had to be kept for so many whole years."""

    invoice_id: Identifier
    kept_years: PositiveInt


InvoiceCommand = IssueInvoice | RecordInvoiceEmailed | IssueCreditNote | DeleteDocument


@dataclass(frozen=True)
class Invoice:
    """An invoice, or a credit note, as its events tell it; ``issued`` is none while there is no such document."""

    issued: InvoiceIssued | CreditNoteIssued | None = None
    emailed: frozenset[str] = frozenset()
    deleted: bool = False
    """Whether its bytes are."""


class UnknownInvoice(Refusal):
    """There is no such invoice."""


class StillKept(Refusal):
    """The document has to be kept for longer."""


class NoDocument(Refusal):
    """The document was deleted, after the time for which it had to be kept."""


def kept_until(issued_at: datetime, years: int) -> datetime:
    """When a document may go: so many years after the end of the year, in UTC, in which it was issued."""
    return datetime(issued_at.astimezone(UTC).year + years + 1, 1, 1, tzinfo=UTC)


def let_go_before(at: datetime, years: int) -> datetime:
    """The same from the other end: what was issued before this may go at a moment."""
    return datetime(at.astimezone(UTC).year - years, 1, 1, tzinfo=UTC)


def decide(command: InvoiceCommand, invoice: Invoice) -> list[InvoiceEvent]:
    """The document's next events; nothing where it was issued, mailed with this link, or deleted, already.

    Raises:
        UnknownInvoice: a mail, or the end, of an invoice that was never issued.
        StillKept: the law still wants the document.
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
                raise UnknownInvoice(f"There is no invoice {command.invoice_id} whose document could be deleted.")
            if invoice.deleted:
                return []
            until = kept_until(invoice.issued.issued_at, command.kept_years)
            if command.at < until:
                raise StillKept(f"{invoice.issued.number} has to be kept until {until:%Y-%m-%d}.")
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
    """The net, and the tax per rate, of a refund (gross) of an invoice, in proportion to the invoice's own.

    A refund of the whole gives back exactly the invoice's figures; what rounding leaves over lies in the last net.
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
