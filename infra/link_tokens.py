"""The secret part of an invoice link.

A token is 16 bytes that name the link and 32 bytes (256 bits) that nobody can guess: HMAC-SHA256 of those 16 under a
secret of ours. So it is never stored, and a mail that has to be sent again carries the same link; what is stored is the
token's SHA-256, and only that decides whether a token is good.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from uuid import UUID, uuid5

LINK_IDS = UUID("9f2c8d53-7a55-5d0c-9d5f-0d6a4b1e8c11")
FORM = re.compile(r"[A-Za-z0-9_-]{64}")  # 48 bytes; base64 itself would overlook padding and other alphabets


def link_id(invoice_id: str, ordinal: int) -> str:
    """The id of the ``ordinal``-th link of an invoice."""
    return str(uuid5(LINK_IDS, f"{invoice_id}/{ordinal}"))


def token(secret: bytes, link: str) -> str:
    """The token of a link, as it stands in the URL: 64 characters."""
    name = UUID(link).bytes
    return base64.urlsafe_b64encode(name + hmac.digest(secret, name, "sha256")).decode()


def link_of(presented: str) -> str | None:
    """The link that a presented token claims to be of; none where it has not even the form of one."""
    if not FORM.fullmatch(presented):
        return None
    return str(UUID(bytes=base64.urlsafe_b64decode(presented)[:16]))


def digest(presented: str) -> str:
    """What is stored of a token: its SHA-256, hexadecimal."""
    return hashlib.sha256(presented.encode()).hexdigest()
