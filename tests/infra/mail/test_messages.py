"""The mails: their content in both alternatives, and that no text in them can become a header or markup."""

from __future__ import annotations

import email
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.policy import SMTP
from html import unescape

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markupsafe import escape

from domain.account import AccountOpened, BillingContact
from domain.invoice import CreditNoteIssued, Document, InvoiceIssued, Seller, credit_of
from domain.money import Money
from domain.order import ExpansionRequested, Method, OrderPlaced
from domain.quote import Line, Quote, Term, taxes
from domain.services import Pricing
from infra.mail.messages import credit_note_mail, invoice_mail, offline_order_mail
from infra.mail.smtp import MailNotSent, SmtpMailer
from infra.simulators.mail_catcher import mail_catcher

AT = datetime(2026, 7, 1, 9, 30, tzinfo=UTC)
LINK = f"https://portal.example/invoices/{'aB3-_xY9' * 8}?a=1&b=2"
ADA = BillingContact(
    name="Ada Lovelace",
    email="ada@analytical.example",
    company="Analytical Engines Ltd.",
    address=("12 St James's Square",),
    country="GB",
)
SELLER = Seller(
    code="YT",
    name="Yonder Telecom GmbH",
    address=("20457 Hamburg",),
    country="DE",
    vat_id="DE314159265",
    email="billing@yonder.example",
)
DOCUMENT = Document(sha256="0" * 64, media_type="application/pdf", size_bytes=4)
HOSTILE = [
    "A\r\nBcc: eve@evil.example",
    "A\nSubject: You won\n\nClick here",
    "A\rX-Evil: 1",
    "A\u2028Bcc: eve@evil.example\u2029B\x85C\x0bD\x0cE\x1cF\x00G\x7fH",
    '"Eve" <eve@evil.example>, ada',
    "=?utf-8?q?eve=40evil=2Eexample=2C?=",
    "=?utf-8?b?QQ0KQmNjOiBldmVAZXZpbC5leGFtcGxl?=",
    "<script>alert('1')</script><img src=//evil.example/x> & \"quotes\"",
    "{{7*7}} {% raw %} {# x #} #panic() ${7*7} %s %(x)s {0}",
    "Łukasz Żółć 株式会社 😀 \u202eEUR 0.01",
    "é" * 200,
    "W" * 200,
    ".",
    "--=_",
]


def line(title: str = "Extensions", **others: object) -> Line:
    facts = {
        "title": title,
        "service": "extensions",
        "unit": "extension",
        "pricing": Pricing.QUANTITY,
        "to_pbxs": True,
        "one_time": False,
        "quantity": 5000,
        "unit_price_minor": 2400,
        "days_remaining": 184,
        "days_of_term": 365,
        "amount_minor": 6_049_315,
        "tax_category": "S",
        "tax_rate_bp": 1900,
    }
    return Line.model_validate(facts | others)


def quote(*lines: Line) -> Quote:
    return Quote(
        seller="YT",
        currency="EUR",
        price_list_version=1,
        priced_on=date(2026, 7, 1),
        term=Term(starts_on=date(2026, 1, 1), ends_on=date(2027, 1, 1)),
        lines=lines,
        taxes=taxes(lines, {("S", 1900): "Tax is due in Germany"}),
    )


QUOTE = quote(line(), line("AI transcription", one_time=True, quantity=1, amount_minor=1000))


def the_invoice(
    buyer: BillingContact = ADA,
    seller: Seller = SELLER,
    order: Quote = QUOTE,
    *,
    message_id: str = "<link-1@yonder.example>",
    at: datetime = AT,
) -> EmailMessage:
    issued = InvoiceIssued(
        invoice_id="invoice-1",
        number="YT-2026-000042",
        account_id="acme",
        order_id="order-7",
        package_id="pkg-hamburg",
        seller=seller,
        buyer=buyer,
        quote=order,
        method=Method.PAYPAL,
        capture_id="capture-3",
        pi_number=None,
        paid_at=AT,
        issued_at=AT,
        document=DOCUMENT,
    )
    return invoice_mail(issued, link_url=LINK, expires_at=AT + timedelta(hours=24), message_id=message_id, at=at)


def the_offline_order(
    name: str = "Analytical Engines Ltd.", pi_number: str | None = "PI-2026/0815", order: Quote = QUOTE
) -> EmailMessage:
    account = AccountOpened(
        account_id="acme",
        name="replaced below, to bypass validation",
        seller="YT",
        currency="EUR",
        country="GB",
        manager_email="dora@distributor.example",
    ).model_copy(update={"name": name})
    requested = ExpansionRequested(
        order_id="order:7",
        account_id="acme",
        package_id="pkg-hamburg",
        quote=order,
        requested_at=AT,
        expires_at=AT + timedelta(days=14),
    )
    placed = OrderPlaced(order_id="order:7", method=Method.OFFLINE, pi_number=pi_number, placed_at=AT)
    about = "<placed-order:7@yonder.example>"
    return offline_order_mail(account, requested, placed, sender="billing@yonder.example", message_id=about, at=AT)


def the_credit_note(
    buyer: BillingContact = ADA, seller: Seller = SELLER, number: str = "YT-2026-000043"
) -> EmailMessage:
    total = Money(amount_minor=20_000, currency="EUR")
    net, shares = credit_of(QUOTE, total)
    issued = CreditNoteIssued(
        credit_note_id="credit-note-1",
        number=number,
        invoice_id="invoice-1",
        invoice_number="YT-2026-000042",
        account_id="acme",
        order_id="order-7",
        refund_id="refund-9",
        seller=seller,
        buyer=buyer,
        net=net,
        taxes=shares,
        total=total,
        refunded_at=AT,
        issued_at=AT,
        document=DOCUMENT,
    )
    return credit_note_mail(issued, pdf=b"%PDF-\x00\xff", message_id="<credit-note-1@yonder.example>", at=AT)


def hostile(written: str) -> list[EmailMessage]:
    """Make each mail with the text in every field that people write, bypassing validation, which refuses most of it."""
    buyer = ADA.model_copy(update={"name": written, "company": written, "address": (written,)})
    seller = SELLER.model_copy(update={"name": written})
    order = quote(line(written, unit=written))
    return [the_invoice(buyer, seller, order), the_offline_order(written, order=order), the_credit_note(buyer, seller)]


def decoded(raw: str) -> str:
    """Decode a header by the library's older parser; the newer one adds blanks between the encoded words of a name."""
    return str(make_header(decode_header(raw)))


def in_one_line(written: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", written)


def received(mail: EmailMessage) -> EmailMessage:
    """Parse the mail as its recipient does."""
    return email.message_from_bytes(mail.as_bytes(), policy=SMTP)


def plain(mail: EmailMessage) -> str:
    body = received(mail).get_body(("plain",))
    assert body is not None
    return str(body.get_content())


def html(mail: EmailMessage) -> str:
    body = received(mail).get_body(("html",))
    assert body is not None
    return str(body.get_content())


def readable(mail: EmailMessage) -> str:
    """Return the words of the HTML alternative as one line."""
    return " ".join(unescape(re.sub(r"<[^>]*>", "", html(mail))).split())


def test_the_invoice_mail_has_its_link_in_both_alternatives() -> None:
    mail = the_invoice()

    assert f"\r\n{LINK}\r\n" in plain(mail)
    assert re.findall(r'href="([^"]*)"', html(mail)) == [LINK.replace("&", "&amp;")]
    assert LINK in readable(mail)


def test_the_invoice_mail_says_how_long_the_link_lives_and_where_else_the_invoice_is() -> None:
    mail = the_invoice()

    for words in (" ".join(plain(mail).split()), readable(mail)):
        assert "is valid for 24 hours, until 2026-07-02 09:30 UTC, and can be used once only." in words
        assert "The invoice is also in the portal, under Orders and Billing > Orders." in words


@pytest.mark.parametrize(
    ("late", "said"),
    [
        (timedelta(minutes=59), "is valid for 24 hours, until"),
        (timedelta(hours=23), "is valid for 1 hour, until"),
        (timedelta(hours=24), "expired at 2026-07-02 09:30 UTC; ask us for a new one."),
    ],
)
def test_a_mail_that_is_sent_late_promises_no_more_than_is_left(late: timedelta, said: str) -> None:
    assert f"The link {said}" in plain(the_invoice(at=AT + late))


@pytest.mark.parametrize("mail", [the_invoice(), the_offline_order()], ids=["invoice", "offline order"])
def test_the_order_summary_has_every_line_the_tax_and_the_total(mail: EmailMessage) -> None:
    for words in (" ".join(plain(mail).split()), readable(mail).replace("\N{MULTIPLICATION SIGN}", "x")):
        assert re.search(r"Extensions 5,000 x extension, 184 of 365 days EUR 60,493\.15", words)
        assert re.search(r"AI transcription 1 x extension, one-time EUR 10\.00", words)
        assert "Net EUR 60,503.15" in words
        assert re.search(r"Tax 19 % on EUR 60,503\.15 (Tax is due in Germany )?EUR 11,495\.60", words)
        assert "Total EUR 71,998.75" in words
        assert "Tax is due in Germany" in words
        assert "pkg-hamburg" in words


def test_the_headers_mark_the_mail_as_automatic() -> None:
    mail = received(the_invoice())

    assert mail["From"] == "Yonder Telecom GmbH <billing@yonder.example>"
    assert mail["To"] == "Ada Lovelace <ada@analytical.example>"
    assert mail["Subject"] == "Invoice YT-2026-000042 from Yonder Telecom GmbH"
    assert mail["Date"].datetime == AT
    assert mail["Message-ID"] == "<link-1@yonder.example>"
    assert mail["Auto-Submitted"] == "auto-generated"


@pytest.mark.parametrize("make", [the_invoice, the_offline_order, the_credit_note])
def test_a_mail_that_is_sent_again_is_the_same(make: Callable[[], EmailMessage]) -> None:
    assert make().as_bytes() == make().as_bytes()


def test_an_account_manager_learns_what_to_collect_until_when_and_how_to_confirm_it() -> None:
    mail = the_offline_order()

    assert mail["To"] == "dora@distributor.example"
    assert mail["Subject"] == "Order order:7 of Analytical Engines Ltd. awaits EUR 71,998.75"
    assert received(mail)["Message-ID"] == "<placed-order%3A7@yonder.example>"
    for words in (" ".join(plain(mail).split()), readable(mail)):
        assert "Analytical Engines Ltd. (account acme) placed order order:7, to be paid offline." in words
        assert re.search(r"collect EUR 71,998\.75, PI number PI-2026/0815,? by 2026-07-15 09:30 UTC", words)
        assert "confirm the payment of order order:7 with exactly EUR 71,998.75 (ConfirmOfflinePayment)" in words


def test_an_order_without_a_pi_number_mentions_none() -> None:
    mail = the_offline_order(pi_number=None)

    assert "PI number" not in plain(mail) + html(mail)
    assert "None" not in plain(mail) + html(mail)


def test_a_credit_note_comes_attached() -> None:
    mail = received(the_credit_note())
    (attachment,) = mail.iter_attachments()

    assert attachment.get_content_type() == "application/pdf"
    assert attachment.get_filename() == "YT-2026-000043.pdf"
    assert attachment.get_content() == b"%PDF-\x00\xff"
    for words in (" ".join(plain(mail).split()), readable(mail)):
        assert "EUR 200.00 of invoice YT-2026-000042 was refunded on 2026-07-01 09:30 UTC." in words
        assert "YT-2026-000043" in words


def test_the_name_of_the_attachment_is_not_a_path() -> None:
    (attachment,) = received(the_credit_note(number='../../etc/"passwd"\r\nX: y')).iter_attachments()

    assert attachment.get_filename() == ".._.._etc__passwd___X__y.pdf"


@pytest.mark.parametrize("written", HOSTILE)
def test_hostile_text_adds_no_header_and_no_recipient(written: str) -> None:
    for mail, harmless in zip(hostile(written), [the_invoice(), the_offline_order(), the_credit_note()], strict=True):
        parsed = received(mail)

        assert parsed.keys() == harmless.keys()
        assert [part.keys() for part in parsed.walk()] == [part.keys() for part in received(harmless).walk()]
        assert [to.addr_spec for to in parsed["To"].addresses] == [to.addr_spec for to in harmless["To"].addresses]
        assert [by.addr_spec for by in parsed["From"].addresses] == [by.addr_spec for by in harmless["From"].addresses]
        assert not any(part.defects for part in parsed.walk())


@pytest.mark.parametrize("written", HOSTILE)
def test_hostile_text_is_shown_as_it_is_stored_in_one_line(written: str) -> None:
    for mail in hostile(written):
        assert in_one_line(written) in plain(mail)
        assert html(mail).count(str(escape(in_one_line(written)))) >= 2
        assert not re.search(r"<(script|img)", html(mail))


@settings(deadline=None)
@given(st.text(max_size=200))
@example('"Eve" <eve@evil.example>, ' * 8)
@example("=?utf-8?q?x?= " * 14)
@example("\\ ( ) : ; @ , . [ ] é " * 8)
def test_any_name_survives_a_header(name: str) -> None:
    mail = the_invoice(ADA.model_copy(update={"name": name}), SELLER.model_copy(update={"name": name}))
    raw = email.message_from_bytes(mail.as_bytes())

    for header, contact in (("To", ADA), ("From", SELLER)):
        assert [address.addr_spec for address in received(mail)[header].addresses] == [contact.email]
        assert decoded(raw[header].rpartition("<")[0]).strip() == in_one_line(name).strip()
    assert decoded(raw["Subject"]).strip() == f"Invoice YT-2026-000042 from {in_one_line(name)}".strip()
    assert max(map(len, mail.as_bytes().splitlines())) < 998


def test_the_mail_loads_nothing() -> None:
    for mail in (the_invoice(), the_offline_order(), the_credit_note()):
        assert not re.search(r"<(img|link|script|iframe|object)|src=|url\(|@import", html(mail))


@pytest.mark.parametrize("address", ["a..b@analytical.example", ".a@analytical.example", "a\r\nb@analytical.example"])
def test_an_invalid_address_is_refused(address: str) -> None:
    with pytest.raises(MailNotSent, match="RFC 5322") as refused:
        the_invoice(ADA.model_copy(update={"email": address}))

    assert refused.value.permanent
    assert address not in str(refused.value)


@pytest.mark.parametrize("message_id", ["", "link-1", "<link-1>", "<@b>", "<a@b>\r\nX: y", "<a@b c>"])
def test_a_message_id_of_another_form_is_refused(message_id: str) -> None:
    with pytest.raises(ValueError, match="is not a valid Message-ID"):
        the_invoice(message_id=message_id)


def test_each_mail_arrives_unchanged_over_smtp() -> None:
    sent = [the_invoice(), the_offline_order(), the_credit_note(), *hostile("株式会社 <b>\u2028\r\n.\r\nMAIL FROM:<e>")]
    with mail_catcher() as catcher, SmtpMailer(catcher.host, catcher.port) as mailer:
        for mail in sent:
            mailer.send(mail)
        arrived = catcher.wait_for(len(sent), timeout_s=30)

    assert [mail.as_bytes() for mail in arrived] == [mail.as_bytes() for mail in sent]
