"""Tokens of invoice links.

A token is 16 bytes that identify the link and 32 bytes (256 bits) that nobody can guess: the HMAC-SHA256 of those 16
with our secret. So tokens are never stored, and a mail that is sent again has the same link. The SHA-256 of the token
is stored, and decides alone whether a token is valid.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from uuid import UUID, uuid5

LINK_IDS = UUID("9f2c8d53-7a55-5d0c-9d5f-0d6a4b1e8c11")
FORM = re.compile(r"[A-Za-z0-9_-]{64}")  # 48 bytes; base64 itself accepts padding and other alphabets


def link_id(invoice_id: str, ordinal: int) -> str:
    """Return the id of the ``ordinal``-th link of an invoice."""
    return str(uuid5(LINK_IDS, f"{invoice_id}/{ordinal}"))


def token(secret: bytes, link: str) -> str:
    """Return the token of a link, as in its URL: 64 characters."""
    name = UUID(link).bytes
    return base64.urlsafe_b64encode(name + hmac.digest(secret, name, "sha256")).decode()


def link_of(presented: str) -> str | None:
    """Return the link that a presented token names, or None if the token is malformed."""
    if not FORM.fullmatch(presented):
        return None
    return str(UUID(bytes=base64.urlsafe_b64decode(presented)[:16]))


def digest(presented: str) -> str:
    """Return what is stored of a token: its SHA-256, hexadecimal."""
    return hashlib.sha256(presented.encode()).hexdigest()
