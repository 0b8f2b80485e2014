"""The keys of personal data in PostgreSQL, wrapped with the master key; this process caches unwrapped ones briefly."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any, Final

from infra.personal_data.master_keys import MasterKeys
from infra.personal_data.person_keys import KEY_BYTES, PersonKeys

CACHED_S: float = 5.0
"""How long an unwrapped key is used without checking the table, and so the longest that another process still uses the
key of an erased person. It is evicted at the next request for any key after that."""
CACHED_KEYS_MAX: Final = 10_000

Ask = Callable[[str, dict[str, Any]], Sequence[Mapping[str, Any]]]
_KNOWN: Final = "SELECT person, wrapped FROM log.person_keys WHERE person = ANY(%(persons)s)"
_ANY: Final = "SELECT person, wrapped FROM log.person_keys WHERE wrapped IS NOT NULL LIMIT 1"
_MAKE: Final = (
    "INSERT INTO log.person_keys (person, wrapped) VALUES (%(person)s, %(wrapped)s) "
    "ON CONFLICT (person) DO NOTHING RETURNING person, wrapped"
)
_DESTROY: Final = "SELECT log.destroy_key(%(person)s) AS existed"


class PostgresPersonKeys(PersonKeys):
    """Keys in ``log.person_keys``.

    Args:
        ask: runs a query as `infra.postgres.connections.WRITER` and returns its rows.
        master_key: see `MasterKeys`; without it one can only tell who was erased.
    """

    def __init__(self, ask: Ask, master_key: bytes | None) -> None:
        self._ask = ask
        self._masters = MasterKeys(master_key)
        self._proved = False
        self._cache: OrderedDict[str, tuple[float, bytes | None]] = OrderedDict()
        self._lock = threading.Lock()

    def prove(self) -> None:
        """Check that the master key unwraps the stored keys, if there are any.

        Raises:
            WrongSetting: it does not.
        """
        if self._masters and not self._proved:
            for row in self._ask(_ANY, {}):
                self._unwrapped(row["person"], row["wrapped"])

    def standing(self, persons: Iterable[str]) -> Mapping[str, bytes]:
        """See `PersonKeys.standing`; takes one query at most."""
        return {person: key for person, key in self._known(persons).items() if key}

    def made(self, person: str) -> bytes | None:
        """See `PersonKeys.made`."""
        known = self._known([person])
        if person not in known:
            self.prove()  # or a wrong master key would wrap new keys next to those that it cannot unwrap
            begun, wrapped = monotonic(), self._masters.wrapped(person, secrets.token_bytes(KEY_BYTES))
            made = self._ask(_MAKE, {"person": person, "wrapped": wrapped})
            # If no row was inserted, another process was faster, and its key exists by now.
            known = self._unwrap_and_cache(begun, made) if made else self._known([person])
        return known[person]

    def destroy(self, person: str) -> bool:
        """See `PersonKeys.destroy`."""
        (row,) = self._ask(_DESTROY, {"person": person})
        self._keep(monotonic(), {person: None})
        return bool(row["existed"])

    def _known(self, persons: Iterable[str]) -> dict[str, bytes | None]:
        """Return the keys of these persons, None for the erased; persons without a row are left out."""
        now = monotonic()
        known: dict[str, bytes | None] = {}
        unknown: list[str] = []
        with self._lock:
            self._forget(now)
            for person in persons:
                until, key = self._cache.get(person, (0.0, None))
                if until > now:
                    known[person] = key
                else:
                    unknown.append(person)
        return known | self._unwrap_and_cache(now, self._ask(_KNOWN, {"persons": unknown})) if unknown else known

    def _unwrap_and_cache(self, asked: float, rows: Sequence[Mapping[str, Any]]) -> dict[str, bytes | None]:
        """Unwrap the keys in rows and cache them. Their age counts from the query, as its answer may have been slow."""
        keys = {row["person"]: row["wrapped"] and self._unwrapped(row["person"], row["wrapped"]) for row in rows}
        self._keep(asked, keys)
        return keys

    def _keep(self, asked: float, keys: Mapping[str, bytes | None]) -> None:
        with self._lock:
            for person, key in keys.items():
                self._cache[person] = (asked + CACHED_S, key)
                self._cache.move_to_end(person)
            while len(self._cache) > CACHED_KEYS_MAX:
                self._cache.popitem(last=False)

    def _forget(self, now: float) -> None:
        """Evict expired keys; the oldest come first."""
        while self._cache and next(iter(self._cache.values()))[0] <= now:
            self._cache.popitem(last=False)

    def _unwrapped(self, person: str, wrapped: bytes) -> bytes:
        key = self._masters.unwrapped(person, wrapped)
        self._proved = True
        return key
