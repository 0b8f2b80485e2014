"""A personal value as it is stored: AES-256-GCM under the person's key, bound to its one place in the log.

``{"sealed": "A256GCM", "person": "acme/wonka", "nonce": "...", "ciphertext": "..."}``, both in base64. The nonce has 96
random bits; the ciphertext ends with its tag of 16 bytes. What is authenticated beside it is the JSON list of person,
stream, version, topic and field: moved to any other place, a ciphertext does not open.
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
"""The name of AES-256-GCM in RFC 7518. Another way to seal will have another name."""
NONCE_BYTES: Final = 12
_STORED: Final = re.compile(
    rb'"\w+":(\{"sealed":"([^"]*+)","person":"([\w.:/-]*+)","nonce":"([^"]*+)","ciphertext":"([^"]*+)"\})'
)


class DoesNotOpen(Exception):
    """A sealed value was altered, moved from another place, or sealed with another key. The text says no more."""


class Place(NamedTuple):
    """Where a value stands, and whose it is."""

    person: str
    stream: str
    version: int
    topic: str
    field: str

    def bound(self) -> bytes:
        """The place in bytes, such that no two places have the same."""
        return to_json([*self])  # of a named tuple it takes three times as long to find out that it is one


class Sealed(NamedTuple):
    """A sealed value in JSON, from ``begins`` to ``ends``: whose it is, and what that person's key opens."""

    person: str
    nonce: bytes
    ciphertext: bytes
    begins: int
    ends: int

    @classmethod
    def at(cls, place: int, json: bytes) -> Sealed:
        """The value of the sealed field that stands there, in bytes that `to_json` made.

        Raises:
            DoesNotOpen: there is none.
        """
        found = _STORED.match(json, place)
        if found is None:
            raise DoesNotOpen("it is not sealed as a value has to be")
        _, algorithm, person, nonce, ciphertext = found.groups()
        if algorithm != ALGORITHM.encode():
            raise DoesNotOpen("it is sealed in a way that this version of Trunkline does not know")
        return cls(person.decode(), nonce, ciphertext, found.start(1), found.end(1))


def seal(plain: bytes, key: bytes, place: Place) -> dict[str, str]:
    """The value to be stored."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    ciphertext = AESGCM(key).encrypt(nonce, plain, place.bound())
    return {
        "sealed": ALGORITHM,
        "person": place.person,
        "nonce": b64encode(nonce).decode(),
        "ciphertext": b64encode(ciphertext).decode(),
    }


def unseal(sealed: Sealed, key: bytes, place: Place) -> bytes:
    """What was sealed.

    Raises:
        DoesNotOpen: it is not what was sealed there.
    """
    try:
        nonce, ciphertext = (
            a2b_base64(sealed.nonce, strict_mode=True),
            a2b_base64(sealed.ciphertext, strict_mode=True),
        )
        return AESGCM(key).decrypt(nonce, ciphertext, place.bound())
    except (ValueError, InvalidTag) as error:
        raise DoesNotOpen("what is sealed was altered, moved here from another place, or is another key's") from error
