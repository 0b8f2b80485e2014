"""Invoices and credit notes as PDF: every figure is shown, hostile text is printed verbatim, output is reproducible."""

from __future__ import annotations

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from io import BytesIO
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from pypdf import PdfReader

from domain.account import BillingContact
from domain.invoice import IssueCreditNote, IssueInvoice, Seller, credit_of
from domain.money import Money
from domain.order import Method
from domain.quote import Line, Quote, Term, taxes
from domain.services import Pricing
from infra.documents import typst_invoice
from infra.documents.typst_invoice import (
    CreditNoteDraft,
    DocumentNotRendered,
    InvoiceDraft,
    kept,
    render_credit_note,
    render_invoice,
)

AT = datetime(2026, 7, 1, 9, 30, tzinfo=UTC)
ADA = BillingContact(
    name="Ada Lovelace",
    email="ada@analytical.example",
    company="Analytical Engines Ltd.",
    address=("12 St James's Square", "London SW1Y 4JH"),
    country="GB",
    phone="+44 20 7946 0018",
    vat_id="GB271828182",
)
SELLER = Seller(
    code="YT",
    name="Yonder Telecom GmbH",
    address=("Speicherstraße 14", "20457 Hamburg"),
    country="DE",
    vat_id="DE314159265",
    email="billing@yonder.example",
)
HOSTILE = [
    '#panic() #{7*7} $x^2$ *b* _i_ `r` = H [x] @r <l> // c /* */ \\n "q" -- ~',
    "{{7*7}} {% raw %} ${7*7} %s {0} <script>alert(1)</script> &amp; ]]>",
    "'; DROP TABLE invoices; --",
    "=HYPERLINK(1) +1 @SUM -1",
    "Łukasz Żółć, Nguyễn Văn Đức, Ωmega, Привет",
]


def line(title: str = "Extensions", **others: object) -> Line:
    facts = {
        "title": title,
        "service": "extensions",
        "unit": "extension",
        "pricing": Pricing.QUANTITY,
        "to_pbxs": True,
        "one_time": False,
        "quantity": 20,
        "unit_price_minor": 2400,
        "days_remaining": 184,
        "days_of_term": 365,
        "amount_minor": 24197,
        "tax_category": "S",
        "tax_rate_bp": 1900,
    }
    return Line.model_validate(facts | others)


MINUTES = line(
    "AI transcription",
    service="transcription_minutes",
    unit="minute",
    one_time=True,
    quantity=1000,
    unit_price_minor=1225,
    amount_minor=1_225_000,
    tax_category="AE",
    tax_rate_bp=0,
)


def quote(*lines: Line, currency: str = "EUR") -> Quote:
    notes = {"S": "", "AE": "Reverse charge, Art. 196 of Directive 2006/112/EC"}
    return Quote(
        seller="YT",
        currency=currency,
        price_list_version=1,
        priced_on=date(2026, 7, 1),
        term=Term(starts_on=date(2026, 1, 1), ends_on=date(2027, 1, 1)),
        lines=lines,
        taxes=taxes(lines, {(each.tax_category, each.tax_rate_bp): notes[each.tax_category] for each in lines}),
    )


def invoice(**others: object) -> InvoiceDraft:
    facts = {
        "at": AT,
        "invoice_id": "invoice-1",
        "number": "YT-2026-000042",
        "account_id": "acme",
        "order_id": "order-7",
        "package_id": "pkg-hamburg",
        "seller": SELLER,
        "buyer": ADA,
        "quote": quote(line(), MINUTES),
        "method": Method.OFFLINE,
        "capture_id": "8AB12345CD678901E",
        "pi_number": "PI-2026/0815",
        "paid_at": AT - timedelta(minutes=1),
    }
    return InvoiceDraft.model_validate(facts | others)


def credit_note(**others: object) -> CreditNoteDraft:
    total = Money(amount_minor=20_000, currency="EUR")
    net, shares = credit_of(quote(line()), total)
    facts = {
        "at": AT,
        "credit_note_id": "credit-note-1",
        "number": "YT-2026-000043",
        "invoice_id": "invoice-1",
        "invoice_number": "YT-2026-000042",
        "account_id": "acme",
        "order_id": "order-7",
        "refund_id": "refund-9",
        "seller": SELLER,
        "buyer": ADA,
        "net": net,
        "taxes": shares,
        "total": total,
        "refunded_at": AT - timedelta(days=1),
    }
    return CreditNoteDraft.model_validate(facts | others)


def pages(pdf: bytes) -> list[str]:
    return [page.extract_text() for page in PdfReader(BytesIO(pdf)).pages]


def text(pdf: bytes) -> str:
    """Return the text of all pages as one line, so that line breaks do not matter."""
    return " ".join("\n".join(pages(pdf)).split())


def test_the_invoice_shows_everything_that_the_order_knows() -> None:
    shown = text(render_invoice(invoice()))

    for seller in ("Yonder Telecom GmbH", "Speicherstraße 14", "20457 Hamburg", "Germany", "VAT ID DE314159265"):
        assert seller in shown
    for buyer in (ADA.company, ADA.name, *ADA.address, "United Kingdom", "VAT ID GB271828182", ADA.email, ADA.phone):
        assert str(buyer) in shown
    for fact in ("YT-2026-000042", "1 July 2026", "order-7", "pkg-hamburg"):
        assert fact in shown
    assert "1 January 2026 to 31 December 2026 365 days" in shown
    assert "billing@yonder.example" in shown


def test_each_line_says_how_it_was_priced() -> None:
    shown = text(render_invoice(invoice()))

    assert "Extensions Prorated: 184 of 365 days 20 extension 24.00 full term 19 % 241.97" in shown
    assert "AI transcription One-time, not prorated 1,000 minute 12.25 one-time 0 % 12,250.00" in shown


def test_the_totals_are_the_order_s_with_the_tax_of_each_rate() -> None:
    shown = text(render_invoice(invoice()))

    assert "Net EUR 12,491.97" in shown
    assert "Tax 19 % on 241.97 EUR 45.97" in shown
    assert "Tax 0 % on 12,250.00 EUR 0.00" in shown
    assert "Total EUR 12,537.94" in shown
    assert "Tax 19 %: standard rate (S)" in shown
    assert "Tax 0 %: reverse charge (AE). Reverse charge, Art. 196 of Directive 2006/112/EC" in shown


@pytest.mark.parametrize(
    ("method", "name"),
    [(Method.PAYPAL, "PayPal"), (Method.CARD, "Debit or credit card"), (Method.OFFLINE, "Offline payment")],
)
def test_the_invoice_says_how_and_when_it_was_paid(method: Method, name: str) -> None:
    shown = text(render_invoice(invoice(method=method)))

    assert f"Paid in full Paid on 1 July 2026, 09:29 UTC Method {name} Payment 8AB12345CD678901E" in shown
    assert "PI number PI-2026/0815" in shown


def test_what_is_not_known_is_not_mentioned() -> None:
    nobody = ADA.model_copy(update={"phone": None, "vat_id": None})

    shown = text(render_invoice(invoice(buyer=nobody, pi_number=None)))

    assert "None" not in shown
    assert "PI number" not in shown
    assert shown.count("VAT ID") == 1


def test_yen_have_no_decimals() -> None:
    yen = quote(line(unit_price_minor=240_000, amount_minor=2_419_726), currency="JPY")

    shown = text(render_invoice(invoice(quote=yen)))

    assert "240,000 full term 19 % 2,419,726" in shown
    assert "Total JPY 2,879,474" in shown


def test_a_credit_note_names_the_invoice_that_it_corrects() -> None:
    shown = text(render_credit_note(credit_note()))

    assert shown.startswith("Credit note YT-2026-000043")
    assert "Corrects invoice YT-2026-000042" in shown
    assert "Refund of invoice YT-2026-000042 Standard rate 19 % 168.07 31.93 200.00" in shown
    assert "Total credited EUR 200.00" in shown
    assert "Refunded on 30 June 2026, 09:30 UTC Refund refund-9" in shown


def test_the_same_draft_gives_the_same_bytes_in_every_thread() -> None:
    with ThreadPoolExecutor(4) as threads:
        invoices = set(threads.map(render_invoice, [invoice()] * 8))
        credit_notes = set(threads.map(render_credit_note, [credit_note()] * 8))

    assert len(invoices) == len(credit_notes) == 1
    assert invoices != {render_invoice(invoice(at=AT + timedelta(seconds=1)))}


def test_the_document_can_be_archived_and_read_aloud() -> None:
    pdf = render_invoice(invoice())
    reader = PdfReader(BytesIO(pdf))
    catalogue: Any = reader.trailer["/Root"]
    xmp = catalogue["/Metadata"].get_data().decode()

    assert reader.metadata is not None
    assert (reader.metadata.title, reader.metadata.author) == ("Invoice YT-2026-000042", "Yonder Telecom GmbH")
    assert reader.metadata.creation_date == AT
    assert re.search(r"pdfaid:part>2<.*pdfaid:conformance>A<", xmp, re.DOTALL)
    assert "pdfuaid:part>1<" in xmp
    assert catalogue["/MarkInfo"]["/Marked"].value
    assert catalogue["/Lang"] == "en"


def test_a_draft_is_its_command_without_the_document() -> None:
    pdf = b"%PDF"
    issue = IssueInvoice(**dict(invoice()), document=kept(pdf))
    credit = IssueCreditNote(**dict(credit_note()), document=kept(pdf))

    assert issue.model_dump(exclude={"document"}) == invoice().model_dump()
    assert credit.model_dump(exclude={"document"}) == credit_note().model_dump()
    assert issue.document.sha256 == hashlib.sha256(pdf).hexdigest()
    assert (issue.document.media_type, issue.document.size_bytes) == ("application/pdf", 4)


@pytest.mark.parametrize("written", HOSTILE)
def test_hostile_text_is_printed_as_it_is(written: str) -> None:
    buyer = ADA.model_copy(update={"name": written, "company": written, "address": (written,), "phone": written})
    seller = SELLER.model_copy(update={"name": written})
    draft = invoice(buyer=buyer, seller=seller, quote=quote(line(written, unit=written)))

    pdf = render_invoice(draft)

    letters = "".join(text(pdf).split())
    assert letters.count("".join(written.split())) == 7
    assert "TotalEUR287.94" in letters


def test_letters_that_no_font_has_are_boxed_by_their_code_points() -> None:
    buyer = ADA.model_copy(update={"company": "株式会社 😀\u200d👩 \ue000 \u4f60\u0301 \x9f Ltd."})

    shown = text(render_invoice(invoice(buyer=buyer)))

    for code in ("682A", "5F0F", "4F1A", "793E", "1F600", "1F469", "E000", "4F60", "9F"):
        assert code in shown
    assert "Ltd. Ada Lovelace" in shown


def test_letters_from_right_to_left_and_their_overrides_stay_in_their_line() -> None:
    buyer = ADA.model_copy(update={"company": "שָׁלוֹם مُحَمَّد", "name": "\u202eEUR 0.01", "address": ("London",)})

    shown = pages(render_invoice(invoice(buyer=buyer)))[0].splitlines()

    assert "London" in shown
    assert "United Kingdom" in shown


def test_text_that_the_compiler_panics_at_is_boxed(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        pass

    class Panicking:
        def compile(self, source: bytes, **options: Any) -> object:  # noqa: ANN401 - the compiler's
            if b'#let boxed = ""' in source:
                raise PanicException("end byte index 9 is out of bounds for string of length 3")
            return real.compile(source, **options)

    with typst_invoice._free_compiler() as real, monkeypatch.context() as patched:
        patched.setattr(typst_invoice, "_free", SimpleQueue())
        typst_invoice._free.put(Panicking())  # type: ignore[arg-type]
        shown = text(render_invoice(invoice(buyer=ADA.model_copy(update={"company": "Ωmega"}))))

    assert "3A9 mega" in shown


def test_a_document_that_cannot_be_typeset_raises_our_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "invoice.typ"
    broken.write_text('#panic("out of ink")')
    monkeypatch.setattr(typst_invoice, "_TEMPLATE", broken)

    with pytest.raises(DocumentNotRendered, match="out of ink"):
        render_invoice(invoice(buyer=ADA.model_copy(update={"company": "Ωmega"})))


def test_a_word_longer_than_a_line_is_broken_without_loss() -> None:
    long = "X" * 200
    buyer = ADA.model_copy(update={"company": long, "email": f"{'a' * 64}@{'b' * 60}.example"})

    shown = "\n".join(pages(render_invoice(invoice(buyer=buyer, quote=quote(line(long, unit=long))))))

    assert shown.count("X") == 600
    assert all(len(row) <= 36 for row in shown.splitlines() if "XX" in row)
    assert f"{'a' * 64}@{'b' * 60}.example" in shown.replace("\n", "")


def test_a_long_invoice_repeats_its_header_and_number_on_each_page() -> None:
    buyer = ADA.model_copy(update={"address": tuple(f"address line {number}" for number in range(200))})
    lines = [line("\n".join(f"title line {number}" for number in range(200)))]
    lines += [line(f"Service {number}") for number in range(100)]

    shown = pages(render_invoice(invoice(buyer=buyer, quote=quote(*lines))))

    assert "address line 199" in "".join(shown)
    assert "title line 199" in "".join(shown)
    first = next(number for number, page in enumerate(shown) if "title line 0" in page)
    last = next(number for number, page in enumerate(shown) if "Service 99" in page)
    assert last > first + 4
    assert all("Service Quantity Unit price (EUR)" in " ".join(page.split()) for page in shown[first : last + 1])
    assert all(f"Page {number} of {len(shown)}" in page for number, page in enumerate(shown, 1))
    assert all("Invoice YT-2026-000042" in page for page in shown)
    assert "Total EUR 29," in " ".join(shown[-1].split())
