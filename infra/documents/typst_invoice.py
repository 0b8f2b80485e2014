"""Invoices and credit notes as PDF: archivable (PDF/A-2a, ISO 19005-2) and accessible (PDF/UA-1, ISO 14289-1).

The compiler and its fonts come with the `typst` wheel. Words and figures are made here, passed as JSON, and never
parsed as markup. The same draft always yields the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import typst
from babel import Locale
from babel.dates import format_date
from pydantic import AwareDatetime

from domain.account import BillingContact
from domain.invoice import CreditNoteFacts, Document, InvoiceFacts, Seller
from domain.money import Money
from domain.order import Method
from domain.quote import Line, TaxTotal, Term
from infra.currencies import format_money, format_number, format_rate

_TEMPLATE = Path(__file__).parent / "templates" / "invoice.typ"
_STANDARDS: list[typst.PDFStandard] = ["a-2a", "ua-1"]
_ENGLISH = Locale("en")
_METHODS = {Method.PAYPAL: "PayPal", Method.CARD: "Debit or credit card", Method.OFFLINE: "Offline payment"}
_CATEGORIES = {
    "S": "standard rate",
    "Z": "zero rated",
    "E": "exempt",
    "AE": "reverse charge",
    "G": "export",
    "O": "outside the scope of tax",
}
_HOW_IT_IS_COMPUTED = (
    "Unit prices are for the full term. A prorated line costs unit price \N{MULTIPLICATION SIGN} quantity "
    "\N{MULTIPLICATION SIGN} remaining days \N{DIVISION SIGN} days of the term, the day of the order included; a "
    "one-time service is not prorated. Lines are rounded, then added; tax is computed once per rate."
)
_PROBE = b"""
#set document(title: "Which of these have a glyph?")
#set text(font: "Libertinus Serif")
#for character in json(bytes(characters)) { box(character) }
"""
_NAMED = re.compile(r'`"(?:\\u\{([0-9a-f]+)\}|(.))"`')
"""A character in the compiler's error messages, in Rust notation."""


class DocumentNotRendered(Exception):
    """The compiler could not typeset the document. The message is the compiler's."""


class InvoiceDraft(InvoiceFacts):
    """`IssueInvoice` without its document: ``IssueInvoice(**dict(draft), document=kept(pdf))``."""

    at: AwareDatetime


class CreditNoteDraft(CreditNoteFacts):
    """`IssueCreditNote` without its document: ``IssueCreditNote(**dict(draft), document=kept(pdf))``."""

    at: AwareDatetime


def kept(pdf: bytes) -> Document:
    """Return the description of a stored PDF that events carry."""
    return Document(sha256=hashlib.sha256(pdf).hexdigest(), media_type="application/pdf", size_bytes=len(pdf))


def render_invoice(invoice: InvoiceDraft) -> bytes:
    """Render an invoice as PDF, dated ``invoice.at``. Thread-safe.

    Raises:
        DocumentNotRendered: the compiler failed.
        UnknownCurrency: ISO 4217 does not know the currency.
    """
    quote = invoice.quote
    words = {
        "kind": "Invoice",
        "number": invoice.number,
        "title": f"Invoice {invoice.number}",
        "author": invoice.seller.name,
        "description": f"Order {invoice.order_id}, {format_money(quote.total)}, paid in full",
        "seller": _seller(invoice.seller),
        "buyer": _buyer(invoice.buyer, "Billed to"),
        "facts": {
            "heading": "Details",
            "facts": [
                ("Invoice number", invoice.number),
                ("Date of issue", _day(invoice.at)),
                ("Order", invoice.order_id),
                ("Package", invoice.package_id),
                ("Term", _term(quote.term)),
            ],
        },
        "columns": ["Service", "Quantity", f"Unit price ({quote.currency})", "Tax", f"Net ({quote.currency})"],
        "rows": [_row(line, quote.currency) for line in quote.lines],
        "totals": _totals(quote.net, quote.taxes),
        "total": ("Total", format_money(quote.total)),
        "settled": {
            "heading": "Paid in full",
            "facts": [
                ("Paid on", _moment(invoice.paid_at)),
                ("Method", _METHODS[invoice.method]),
                ("Payment", invoice.capture_id),
                *([("PI number", invoice.pi_number)] if invoice.pi_number else []),
            ],
        },
        "notes": [
            *_tax_notes(quote.taxes),
            _HOW_IT_IS_COMPUTED,
        ],
    }
    return _pdf(words, invoice.at)


def render_credit_note(credit_note: CreditNoteDraft) -> bytes:
    """Render a credit note as PDF, dated ``credit_note.at``. Thread-safe.

    Raises:
        DocumentNotRendered: the compiler failed.
        UnknownCurrency: ISO 4217 does not know the currency.
    """
    currency = credit_note.total.currency
    words = {
        "kind": "Credit note",
        "number": credit_note.number,
        "title": f"Credit note {credit_note.number}",
        "author": credit_note.seller.name,
        "description": f"Corrects invoice {credit_note.invoice_number} by {format_money(credit_note.total)}",
        "seller": _seller(credit_note.seller),
        "buyer": _buyer(credit_note.buyer, "Credited to"),
        "facts": {
            "heading": "Details",
            "facts": [
                ("Credit note number", credit_note.number),
                ("Date of issue", _day(credit_note.at)),
                ("Corrects invoice", credit_note.invoice_number),
                ("Order", credit_note.order_id),
            ],
        },
        "columns": ["Credit", "Tax rate", f"Net ({currency})", f"Tax ({currency})", f"Credited ({currency})"],
        "rows": [_credit_row(tax, credit_note.invoice_number, currency) for tax in credit_note.taxes],
        "totals": _totals(credit_note.net, credit_note.taxes),
        "total": ("Total credited", format_money(credit_note.total)),
        "settled": {
            "heading": "Refunded",
            "facts": [("Refunded on", _moment(credit_note.refunded_at)), ("Refund", credit_note.refund_id)],
        },
        "notes": _tax_notes(credit_note.taxes),
    }
    return _pdf(words, credit_note.at)


def _seller(seller: Seller) -> dict[str, Any]:
    lines = [*seller.address, _country(seller.country), f"VAT ID {seller.vat_id}", seller.email]
    return {"name": seller.name, "lines": lines}


def _buyer(buyer: BillingContact, heading: str) -> dict[str, Any]:
    lines = [buyer.name, *buyer.address, _country(buyer.country)]
    lines += [f"VAT ID {buyer.vat_id}"] if buyer.vat_id else []
    lines += [buyer.email, *([buyer.phone] if buyer.phone else [])]
    return {"heading": heading, "name": buyer.company, "lines": lines}


def _row(line: Line, currency: str) -> list[tuple[str, str]]:
    prorated = f"Prorated: {line.days_remaining} of {line.days_of_term} days"
    return [
        (line.title, "One-time, not prorated" if line.one_time else prorated),
        (f"{line.quantity:,}", line.unit),
        (_number(line.unit_price_minor, currency), "one-time" if line.one_time else "full term"),
        (format_rate(line.tax_rate_bp), ""),
        (_number(line.amount_minor, currency), ""),
    ]


def _credit_row(tax: TaxTotal, invoice_number: str, currency: str) -> list[tuple[str, str]]:
    return [
        (f"Refund of invoice {invoice_number}", _CATEGORIES[tax.category].capitalize()),
        (format_rate(tax.rate_bp), ""),
        (_number(tax.net_minor, currency), ""),
        (_number(tax.tax_minor, currency), ""),
        (_number(tax.net_minor + tax.tax_minor, currency), ""),
    ]


def _totals(net: Money, taxes: Sequence[TaxTotal]) -> list[tuple[str, str]]:
    return [
        ("Net", format_money(net)),
        *(
            (
                f"Tax {format_rate(tax.rate_bp)} on {_number(tax.net_minor, net.currency)}",
                format_money(Money(amount_minor=tax.tax_minor, currency=net.currency)),
            )
            for tax in taxes
        ),
    ]


def _tax_notes(taxes: Sequence[TaxTotal]) -> list[str]:
    """Return one sentence per rate: its VAT category (EN 16931, BT-118) and the price list's note (BT-120)."""
    return [
        f"Tax {format_rate(tax.rate_bp)}: {_CATEGORIES[tax.category]} ({tax.category})"
        + (f". {tax.note}" if tax.note else "")
        for tax in taxes
    ]


def _number(amount_minor: int, currency: str) -> str:
    return format_number(Money(amount_minor=amount_minor, currency=currency))


def _country(code: str) -> str:
    return str(_ENGLISH.territories.get(code, code))


def _day(day: date) -> str:
    """Format a date; of a datetime, its date in UTC."""
    utc = day.astimezone(UTC).date() if isinstance(day, datetime) else day
    return format_date(utc, "d MMMM y", locale=_ENGLISH)


def _moment(moment: datetime) -> str:
    return f"{_day(moment)}, {moment.astimezone(UTC):%H:%M} UTC"


def _term(term: Term) -> str:
    """Format a term with its last day, as people write it; in the domain ``ends_on`` is exclusive."""
    return f"{_day(term.starts_on)} to {_day(term.ends_on - timedelta(days=1))}\n{term.days} days"


def _compilers() -> SimpleQueue[typst.Compiler]:
    fonts = typst.Fonts(include_system_fonts=False)
    free: SimpleQueue[typst.Compiler] = SimpleQueue()
    for _ in range(os.cpu_count() or 1):
        free.put(typst.Compiler(root=_TEMPLATE.parent, font_paths=fonts, ignore_system_fonts=True))
    return free


_free = _compilers()
"""One compiler per core. Each keeps its inputs between calls, so it serves one caller at a time."""


@contextmanager
def _free_compiler() -> Iterator[typst.Compiler]:
    compiler = _free.get()
    try:
        yield compiler
    finally:
        _free.put(compiler)


def _pdf(words: dict[str, Any], at: datetime) -> bytes:
    """Typeset the words, with unprintable characters boxed; at worst, with all unusual characters boxed.

    Each attempt boxes more, so the loop ends. An invoice must be issued even if the buyer's name is unprintable.
    """
    template, document = _TEMPLATE.read_bytes(), json.dumps(words)
    unusual = {character for character in json.dumps(words, ensure_ascii=False) if not _plain(character)}
    boxed = _without_glyph(unusual) if unusual else set()
    while True:
        try:
            return _compile(template, at, {"document-json": document, "boxed": _any_of(boxed)})
        except DocumentNotRendered as error:
            if boxed == unusual:
                raise
            boxed |= (_named(error) & unusual) - boxed or unusual


def _compile(source: bytes, at: datetime, given: Mapping[str, str]) -> bytes:
    """Compile a source, preceded by definitions of the given texts.

    They are not passed as ``sys.inputs``: when these change, the compiler discards its cache and takes twice the time.
    """
    defined = b"".join(b"#let %b = %b\n" % (name.encode(), _literal(text)) for name, text in given.items())
    try:
        with _free_compiler() as compiler:
            pdf = compiler.compile(
                defined + source, format="pdf", pdf_standards=_STANDARDS, timestamp=int(at.timestamp())
            )
    except BaseException as error:  # the compiler's panics (as in typst issue 8667) are no Exception, nor importable
        if not isinstance(error, typst.TypstError) and type(error).__name__ != "PanicException":
            raise
        raise DocumentNotRendered(getattr(error, "diagnostic", str(error))) from error
    assert isinstance(pdf, bytes)
    return pdf


def _literal(text: str) -> bytes:
    """Quote a text as a Typst string, in which only these two characters are special."""
    return b'"%b"' % text.replace("\\", "\\\\").replace('"', '\\"').encode()


def _plain(character: str) -> bool:
    """Whether every font has the character: printable ASCII or Latin-1."""
    return "\x20" <= character <= "\x7e" or "\xa0" <= character <= "\xff"


def _without_glyph(characters: set[str]) -> set[str]:
    """Return the characters that PDF/A refuses: no font has them, or they are in Unicode's private use area.

    Each is tried by itself, because the compiler silently drops a combining mark that follows a missing letter.
    """
    try:
        _compile(_PROBE, datetime.fromtimestamp(0, UTC), {"characters": json.dumps(sorted(characters))})
    except DocumentNotRendered as error:
        return _named(error) or characters
    return set()


def _named(error: DocumentNotRendered) -> set[str]:
    return {chr(int(code, 16)) if code else character for code, character in _NAMED.findall(str(error))}


def _any_of(characters: set[str]) -> str:
    """Return a regular expression that matches any of the characters; empty if there are none."""
    codes = "".join(f"\\u{{{ord(character):x}}}" for character in sorted(characters))
    return f"[{codes}]" if codes else ""
