"""The mails that we send: their texts, plain and as HTML, from values of the domain.

Whatever a person wrote stands in them as it is stored, encoded for its place: as one line in plain text, escaped in
HTML, and as an encoded word, without line breaks, in a header (RFC 5322, RFC 2047). They load nothing and track nobody.
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
    """Makes a class for each kind of header once; the library does so for each header, a third of what a mail takes."""

    __getitem__ = cache(HeaderRegistry.__getitem__)


_POLICY: Final = SMTP.clone(refold_source="none", header_factory=_Headers())
"""Headers stay as they are written here: the library's own folding loses blanks, and quotes, and with them recipients
(CPython gh-121284, gh-144156)."""


def invoice_mail(
    issued: InvoiceIssued, *, link_url: str, expires_at: datetime, message_id: str, at: datetime
) -> EmailMessage:
    """To the billing contact: the order summary, and the link to the invoice, which is good for one use.

    Raises:
        MailNotSent: the contact's address, or the seller's, is none.
        ValueError: ``message_id`` has not the form ``<id@host>``.
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
    """To the account manager or distributor: an order to collect the money of, and how to confirm it.

    Raises:
        MailNotSent: the account manager's address, or the sender's, is none.
        ValueError: ``message_id`` has not the form ``<id@host>``.
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
    """To the billing contact: what was refunded, with the credit note attached. Its link could be used once only.

    Raises:
        MailNotSent: the contact's address, or the seller's, is none.
        ValueError: ``message_id`` has not the form ``<id@host>``.
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
        "Auto-Submitted: auto-generated",  # RFC 3834: nobody's out-of-office notice need answer
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
        raise MailNotSent("An address is none by RFC 5322; correct the contact's.", permanent=True) from error
    return f"{_encoded(name, _WORDS)} <{address}>" if name else address


def _encoded(text: str, simple: re.Pattern[str]) -> str:
    """The text for a header, as encoded words (RFC 2047) where it is not simple, so that none of it is syntax."""
    line = _line(text)
    return line if simple.fullmatch(line) else Header(line, "utf-8", maxlinelen=66).encode(linesep="\r\n")


def _identified(message_id: str) -> str:
    """The Message-ID, with ``%3A`` for a colon and so on: ids may have what RFC 5322 (3.6.4) does not permit there."""
    parts = _MESSAGE_ID.fullmatch(message_id)
    if parts is None:
        raise ValueError(f"{message_id!r} is no Message-ID; give one such as <id@host.example>.")
    return f"<{quote(parts[1], safe=_ATOM).replace('.', '%2E')}@{parts[2]}>"


def _boundary(message_id: str, part: str) -> str:
    """The same for the same message, sent again. Encoded text never has ``=_`` in it (RFC 2045, 6.7)."""
    return f"=_{hashlib.sha256(f'{part} {message_id}'.encode()).hexdigest()[:32]}"


def _validity(expires_at: datetime, at: datetime) -> str:
    """What the link is good for, told at the moment of sending: a mail server may have been down for a while."""
    hours = -((at - expires_at) // timedelta(hours=1))
    if hours <= 0:
        return f"expired at {_utc(expires_at)}; ask us for a new one"
    return f"is valid for {hours} hour{'s' if hours > 1 else ''}, until {_utc(expires_at)}, and can be used once only"


def _utc(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _line(text: str) -> str:
    """The text in one line: whatever breaks a line, or is a control character, is a space."""
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
        finalize=lambda value: _line(value) if type(value) is str else value,  # not what is HTML already
    )
    texts.filters |= {"money": format_money, "minor": _money, "rate": format_rate, "utc": _utc}
    texts.globals["one_day"] = timedelta(days=1)  # a term ends before its ``ends_on``; people name its last day
    return texts


_TEXTS: Final = _texts()
