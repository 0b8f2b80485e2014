"""Who sent a message, and whether it is fresh: the checks that every signed message passes, whatever it asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from domain.messages import Refusal
from infra.broker.signatures import SENDER_HEADER, SIGNATURE_HEADER, signed_by
from infra.settings import Sender

FRESH_FOR: Final = timedelta(minutes=5)


class UnknownSender(Refusal):
    """No known sender signed the message."""


class MessageOutOfDate(Refusal):
    """The time in the message is not the time at which it arrived."""


def authenticate(
    senders: Sequence[Sender], headers: Mapping[str, str], *, subject: str, reply: str, body: bytes
) -> Sender:
    """Return the sender whose signature a message carries.

    Raises:
        UnknownSender: the signature is missing or wrong, or its sender is not configured.
    """
    name, signature = headers.get(SENDER_HEADER, ""), headers.get(SIGNATURE_HEADER, "")
    sender = signed_by(senders, name, signature, subject=subject, reply=reply, body=body)
    if sender is None:
        raise UnknownSender(
            f"No known sender signed this message; set {SENDER_HEADER}, and {SIGNATURE_HEADER} to the HMAC-SHA256 of "
            "subject, reply subject and body."
        )
    return sender


def check_fresh(sent_at: datetime, arrived_at: datetime) -> None:
    """Check that a message arrived within `FRESH_FOR` of the time that it names, so that old copies are refused.

    Raises:
        MessageOutOfDate: it did not.
    """
    if abs(arrived_at - sent_at) > FRESH_FOR:
        raise MessageOutOfDate(
            f"The message says that it was sent at {sent_at:%Y-%m-%d %H:%M:%S} UTC, but arrived at "
            f"{arrived_at:%H:%M:%S}; send it again with the same id, the present time and a new signature."
        )
