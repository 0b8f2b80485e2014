"""Encryption of personal values: AES-256-GCM under the person's key, bound to one place in the log.

Stored as ``{"sealed": "A256GCM", "person": "acme/wonka", "nonce": "...", "ciphertext": "..."}``, both in base64. The
nonce has 96 random bits; the ciphertext ends with its 16-byte tag. The associated data is the JSON list of person,
stream, version, topic and field, so a ciphertext that was moved to another place cannot be decrypted.
"""

from __future__ import annotations

import re
import secrets
from base64 import b64encode
from binascii import a2b_base64
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic_core import to_json

ALGORITHM: Final = "A256GCM"
"""The name of AES-256-GCM in RFC 7518. Another algorithm will have another name."""
NONCE_BYTES: Final = 12
_STORED: Final = re.compile(
    rb'"\w+":(\{"sealed":"([^"]*+)","person":"([\w.:/-]*+)","nonce":"([^"]*+)","ciphertext":"([^"]*+)"\})'
)


class DoesNotOpen(Exception):
    """An encrypted value was altered, moved, or encrypted with another key. The message repeats nothing of it."""


class Place(NamedTuple):
    """Where a value is stored, and whose it is."""

    person: str
    stream: str
    version: int
    topic: str
    field: str

    def bound(self) -> bytes:
        """Return the place as bytes that no other place has."""
        return to_json([*self])  # a list takes a third of the time of a named tuple


class Sealed(NamedTuple):
    """An encrypted value in JSON, from ``begins`` to ``ends``: whose it is, and what that person's key decrypts."""

    person: str
    nonce: bytes
    ciphertext: bytes
    begins: int
    ends: int

    @classmethod
    def at(cls, place: int, json: bytes) -> Sealed:
        """Parse the encrypted field at an offset of bytes that `to_json` made.

        Raises:
            DoesNotOpen: there is none.
        """
        found = _STORED.match(json, place)
        if found is None:
            raise DoesNotOpen("it is not in the form of an encrypted value")
        _, algorithm, person, nonce, ciphertext = found.groups()
        if algorithm != ALGORITHM.encode():
            raise DoesNotOpen("its encryption algorithm is unknown to this version of Trunkline")
        return cls(person.decode(), nonce, ciphertext, found.start(1), found.end(1))


def seal(plain: bytes, key: bytes, place: Place) -> dict[str, str]:
    """Encrypt a value, in the form in which it is stored."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    ciphertext = AESGCM(key).encrypt(nonce, plain, place.bound())
    return {
        "sealed": ALGORITHM,
        "person": place.person,
        "nonce": b64encode(nonce).decode(),
        "ciphertext": b64encode(ciphertext).decode(),
    }


def unseal(sealed: Sealed, key: bytes, place: Place) -> bytes:
    """Decrypt a value.

    Raises:
        DoesNotOpen: it is not what was encrypted with this key at this place.
    """
    try:
        nonce, ciphertext = (
            a2b_base64(sealed.nonce, strict_mode=True),
            a2b_base64(sealed.ciphertext, strict_mode=True),
        )
        return AESGCM(key).decrypt(nonce, ciphertext, place.bound())
    except (ValueError, InvalidTag) as error:
        raise DoesNotOpen("it was altered, moved here from another place, or encrypted with another key") from error
