"""The mails that we send, as plain text and HTML, from values of the domain.

User input appears as it is stored, encoded for its context: as one line in plain text, escaped in HTML, and as an
encoded word without line breaks in a header (RFC 5322, RFC 2047). The mails load nothing and track nobody.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from datetime import UTC, datetime, timedelta
from email import message_from_string
from email.errors import HeaderParseError
from email.header import Header
from email.headerregistry import Address, HeaderRegistry
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from functools import cache
from pathlib import Path
from typing import Final
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from domain.account import AccountOpened
from domain.invoice import CreditNoteIssued, InvoiceIssued
from domain.money import Money
from domain.order import ExpansionRequested, OrderPlaced
from infra.currencies import format_money, format_rate
from infra.mail.smtp import MailNotSent

_MESSAGE_ID: Final = re.compile(r"<(.+)@([A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*)>")
_ATOM: Final = "!#$&'*+/=?^_`{|}~-"
_WORDS: Final = re.compile(r"[A-Za-z0-9 -]{1,60}")
_ASCII: Final = re.compile(r"(?!.*=\?)[ -~]{1,60}")


class _Headers(HeaderRegistry):
    """Caches the class of each kind of header. The library makes one per header, a third of all time per mail."""

    __getitem__ = cache(HeaderRegistry.__getitem__)


_POLICY: Final = SMTP.clone(refold_source="none", header_factory=_Headers())
"""Headers are not refolded: the library's folding loses blanks and quotes, and with them recipients (CPython gh-121284,
gh-144156)."""


def invoice_mail(
    issued: InvoiceIssued, *, link_url: str, expires_at: datetime, message_id: str, at: datetime
) -> EmailMessage:
    """Make the mail to the billing contact with the order summary and the one-time link to the invoice.

    Raises:
        MailNotSent: the contact's or the seller's address is invalid.
        ValueError: ``message_id`` does not have the form ``<id@host>``.
    """
    return _mail(
        "invoice",
        {"issued": issued, "link_url": link_url, "validity": _validity(expires_at, at)},
        subject=f"Invoice {issued.number} from {issued.seller.name}",
        sender=_address(issued.seller.name, issued.seller.email),
        to=_address(issued.buyer.name, issued.buyer.email),
        message_id=message_id,
        at=at,
    )


def offline_order_mail(
    account: AccountOpened,
    requested: ExpansionRequested,
    placed: OrderPlaced,
    *,
    sender: str,
    message_id: str,
    at: datetime,
) -> EmailMessage:
    """Make the mail that asks the account manager or distributor to collect and confirm a payment.

    Raises:
        MailNotSent: the account manager's or the sender's address is invalid.
        ValueError: ``message_id`` does not have the form ``<id@host>``.
    """
    return _mail(
        "offline_order",
        {"account": account, "requested": requested, "placed": placed},
        subject=f"Order {requested.order_id} of {account.name} awaits {format_money(requested.quote.total)}",
        sender=_address("", sender),
        to=_address("", account.manager_email),
        message_id=message_id,
        at=at,
    )


def credit_note_mail(issued: CreditNoteIssued, *, pdf: bytes, message_id: str, at: datetime) -> EmailMessage:
    """Make the mail to the billing contact about a refund. The credit note is attached, as a link would work only once.

    Raises:
        MailNotSent: the contact's or the seller's address is invalid.
        ValueError: ``message_id`` does not have the form ``<id@host>``.
    """
    mail = _mail(
        "credit_note",
        {"issued": issued},
        subject=f"Credit note {issued.number} from {issued.seller.name}",
        sender=_address(issued.seller.name, issued.seller.email),
        to=_address(issued.buyer.name, issued.buyer.email),
        message_id=message_id,
        at=at,
    )
    filename = re.sub(r"[^A-Za-z0-9._-]", "_", issued.number) + ".pdf"
    mail.add_attachment(pdf, maintype="application", subtype="pdf", filename=filename)
    mail.set_boundary(_boundary(message_id, "mixed"))
    return mail


def _mail(
    template: str, values: dict[str, object], *, subject: str, sender: str, to: str, message_id: str, at: datetime
) -> EmailMessage:
    headers = [
        f"From: {sender}",
        f"To: {to}",
        f"Subject: {_encoded(subject, _ASCII)}",
        f"Date: {format_datetime(at.astimezone(UTC))}",
        f"Message-ID: {_identified(message_id)}",
        "Auto-Submitted: auto-generated",  # RFC 3834: no out-of-office reply is wanted
    ]
    mail = message_from_string("\r\n".join([*headers, "", ""]), policy=_POLICY)
    mail.set_content(_TEXTS.get_template(f"{template}.txt").render(values), cte="quoted-printable")
    html = _TEXTS.get_template(f"{template}.html").render(values, subject=subject)
    mail.add_alternative(html, subtype="html", cte="quoted-printable")
    mail.set_boundary(_boundary(message_id, "alternative"))
    return mail


def _address(name: str, email: str) -> str:
    try:
        address = Address(addr_spec=email).addr_spec
    except (ValueError, HeaderParseError) as error:
        raise MailNotSent("An address is not valid by RFC 5322; correct the contact's.", permanent=True) from error
    return f"{_encoded(name, _WORDS)} <{address}>" if name else address


def _encoded(text: str, simple: re.Pattern[str]) -> str:
    """Encode a text for a header: as encoded words (RFC 2047) unless it is simple, so none of it can be syntax."""
    line = _line(text)
    return line if simple.fullmatch(line) else Header(line, "utf-8", maxlinelen=66).encode(linesep="\r\n")


def _identified(message_id: str) -> str:
    """Percent-encode the Message-ID: ids may have characters, such as a colon, that RFC 5322 (3.6.4) forbids."""
    parts = _MESSAGE_ID.fullmatch(message_id)
    if parts is None:
        raise ValueError(f"{message_id!r} is not a valid Message-ID; give one such as <id@host.example>.")
    return f"<{quote(parts[1], safe=_ATOM).replace('.', '%2E')}@{parts[2]}>"


def _boundary(message_id: str, part: str) -> str:
    """Return a boundary that is the same if the message is sent again. Encoded text has no ``=_`` (RFC 2045, 6.7)."""
    return f"=_{hashlib.sha256(f'{part} {message_id}'.encode()).hexdigest()[:32]}"


def _validity(expires_at: datetime, at: datetime) -> str:
    """Describe the link's validity as of sending, because a mail may be delayed while the server is down."""
    hours = -((at - expires_at) // timedelta(hours=1))
    if hours <= 0:
        return f"expired at {_utc(expires_at)}; ask us for a new one"
    return f"is valid for {hours} hour{'s' if hours > 1 else ''}, until {_utc(expires_at)}, and can be used once only"


def _utc(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _line(text: str) -> str:
    """Return the text as one line: line breaks and control characters become spaces."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(" " if unicodedata.category(character) in ("Cc", "Zl", "Zp") else character for character in text)


def _money(amount_minor: int, currency: str) -> str:
    return format_money(Money(amount_minor=amount_minor, currency=currency))


def _texts() -> Environment:
    texts = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: _line(value) if type(value) is str else value,  # leaves Markup alone
    )
    texts.filters |= {"money": format_money, "minor": _money, "rate": format_rate, "utc": _utc}
    texts.globals["one_day"] = timedelta(days=1)  # ``ends_on`` is exclusive, but people name the last day
    return texts


_TEXTS: Final = _texts()
