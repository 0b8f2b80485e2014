"""Signatures of messages to us: HMAC-SHA256 (RFC 2104) under a secret that sender and receiver share.

NATS authenticates connections, not the senders of messages. So each message is signed over its subject, its reply
subject and its body, joined by line feeds. The body has the message's id and time, so a replayed copy has no effect: a
processed id is remembered for good, and after five minutes the time is too old (see
`handlers.messaging.command_messages`).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from infra.settings import Sender

SENDER_HEADER = "Trunkline-Sender"
SIGNATURE_HEADER = "Trunkline-Signature"


def signature(secret: str, subject: str, reply: str, body: bytes) -> str:
    """Return the value of `SIGNATURE_HEADER`; ``reply`` is empty if no answer is wanted."""
    signed = b"\n".join([subject.encode(), reply.encode(), body])
    return hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


def signed_by(
    senders: Iterable[Sender], name: str, given: str, *, subject: str, reply: str, body: bytes
) -> Sender | None:
    """Return the sender of a message, or None if no sender of that name signed it."""
    sender = next((sender for sender in senders if sender.name == name), None)
    if sender is None:
        return None
    right = signature(sender.secret.get_secret_value(), subject, reply, body)
    return sender if hmac.compare_digest(right.encode(), given.encode()) else None
