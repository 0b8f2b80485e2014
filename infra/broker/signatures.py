"""Who may send us messages, and how we know that it is they: HMAC-SHA256 (RFC 2104) under a secret that both have.

NATS tells apart who may connect, and not who sent a message. So each message is signed: over its subject, its reply
subject and its body, line by line. The body has the message's id and time, so a copy does nothing new: the
id is known for good once it was dealt with, and after five minutes the time is too old (see
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
    """What a sender writes into `SIGNATURE_HEADER`; ``reply`` is empty where no answer is wanted."""
    signed = b"\n".join([subject.encode(), reply.encode(), body])
    return hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


def signed_by(
    senders: Iterable[Sender], name: str, given: str, *, subject: str, reply: str, body: bytes
) -> Sender | None:
    """The sender of a message; none where nobody of that name signed it."""
    sender = next((sender for sender in senders if sender.name == name), None)
    if sender is None:
        return None
    right = signature(sender.secret.get_secret_value(), subject, reply, body)
    return sender if hmac.compare_digest(right.encode(), given.encode()) else None
