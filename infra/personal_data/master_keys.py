"""The master key wraps the keys of persons. There may be several during a rotation.

A wrapped key is a nonce (12 bytes) and the key (32 bytes) under AES-256-GCM, with the person's id as associated data.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from psycopg import Connection
from psycopg.rows import DictRow

from infra.personal_data.encryption import NONCE_BYTES
from infra.settings import MASTER_KEY_BYTES, WrongSetting

KEYS_PER_PAGE = 1000
_COUNT: Final = "SELECT count(*) FROM log.person_keys WHERE wrapped IS NOT NULL"
_STANDING: Final = """
    SELECT person, wrapped FROM log.person_keys
     WHERE wrapped IS NOT NULL AND person > %(after)s ORDER BY person LIMIT %(page)s
"""
_REPLACE: Final = """
    UPDATE log.person_keys SET wrapped = %(rewrapped)s WHERE person = %(person)s AND wrapped = %(wrapped)s
"""


class MasterKeys:
    """One or more master keys: the first wraps, and all of them unwrap.

    Args:
        keys: 32 bytes each, concatenated; without any, nothing can be wrapped or unwrapped.
    """

    def __init__(self, keys: bytes | None) -> None:
        each = range(0, len(keys or b""), MASTER_KEY_BYTES)
        self._keys = [AESGCM((keys or b"")[start : start + MASTER_KEY_BYTES]) for start in each]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def wrapped(self, person: str, key: bytes) -> bytes:
        """Wrap a person's key with the first master key.

        Raises:
            WrongSetting: there is no master key.
        """
        self._require_one()
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._keys[0].encrypt(nonce, key, person.encode())

    def unwrapped(self, person: str, wrapped: bytes) -> bytes:
        """Unwrap a person's key.

        Raises:
            WrongSetting: there is no master key, or none of them unwraps it.
        """
        self._require_one()
        for master in self._keys:
            if key := _opened(master, person, wrapped):
                return key
        raise WrongSetting(
            f"TRUNKLINE_MASTER_KEY is not the one that the key of {person} was wrapped with; set the one that was "
            "used before. No data is lost, and nobody was erased."
        )

    def rewrapped(self, person: str, wrapped: bytes) -> bytes | None:
        """Wrap a person's key with the first master key; None if it already is.

        Raises:
            WrongSetting: as for `unwrapped`.
        """
        self._require_one()
        if _opened(self._keys[0], person, wrapped):
            return None
        return self.wrapped(person, self.unwrapped(person, wrapped))

    def _require_one(self) -> None:
        if not self._keys:
            raise WrongSetting(
                "TRUNKLINE_MASTER_KEY is missing: base64 of 32 bytes, the same for every process; personal data cannot "
                "be read or written without it."
            )


def _opened(master: AESGCM, person: str, wrapped: bytes) -> bytes | None:
    try:
        return master.decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], person.encode())
    except (InvalidTag, ValueError):
        return None


def rewrap(owner: Connection[DictRow], keys: MasterKeys, on_progress: Callable[[int, int], object]) -> int:
    """Wrap every person's key with the first master key. Returns the number of keys that were not.

    Each page is one commit, so an interrupted run resumes when repeated. A person erased meanwhile stays erased.

    Args:
        owner: a connection of the database's owner, in autocommit.
        keys: the new master key, then the old ones.
        on_progress: called after each page with the number of keys done and the total.

    Raises:
        WrongSetting: a key is wrapped with none of them.
    """
    (standing,) = owner.execute(_COUNT).fetchall()
    looked_at, count, after = 0, 0, ""
    while rows := owner.execute(_STANDING, {"after": after, "page": KEYS_PER_PAGE}).fetchall():
        rewrapped = [row | {"rewrapped": keys.rewrapped(row["person"], row["wrapped"])} for row in rows]
        changes = [row for row in rewrapped if row["rewrapped"]]
        with owner.transaction(), owner.cursor() as cursor:
            cursor.executemany(_REPLACE, changes)
        looked_at, count, after = looked_at + len(rows), count + len(changes), rows[-1]["person"]
        on_progress(looked_at, standing["count"])
    return count
