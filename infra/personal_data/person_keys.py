"""The keys of personal data: one per person, made before the first event that needs it, destroyed at erasure."""

from __future__ import annotations

import secrets
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Final

KEY_BYTES: Final = 32


class PersonKeys(ABC):
    """Stores keys. An erased person has none, and never gets one again.

    Raises:
        infra.settings.WrongSetting: from all methods: a key exists, but the master key does not unwrap it. This is
            never mistaken for an erasure.
    """

    @abstractmethod
    def standing(self, persons: Iterable[str]) -> Mapping[str, bytes]:
        """Return the keys of these persons, without those who were erased or never had one."""

    @abstractmethod
    def made(self, person: str) -> bytes | None:
        """Return a person's key, or None if the person was erased. Makes it durably if there is none yet.

        Concurrent callers, in any number of processes, all get the same key.
        """

    @abstractmethod
    def destroy(self, person: str) -> bool:
        """Destroy a key for good. Returns False if there was none."""


class MemoryPersonKeys(PersonKeys):
    """Keys in this process's memory, for an in-memory log."""

    def __init__(self, keys: Mapping[str, bytes] | None = None) -> None:
        self._keys: dict[str, bytes | None] = dict(keys or {})
        self._lock = threading.Lock()

    def standing(self, persons: Iterable[str]) -> Mapping[str, bytes]:
        """See `PersonKeys.standing`."""
        with self._lock:
            return {person: key for person in persons if (key := self._keys.get(person))}

    def made(self, person: str) -> bytes | None:
        """See `PersonKeys.made`."""
        with self._lock:
            return self._keys.setdefault(person, secrets.token_bytes(KEY_BYTES))

    def destroy(self, person: str) -> bool:
        """See `PersonKeys.destroy`."""
        with self._lock:
            existed = self._keys.get(person) is not None
            self._keys[person] = None
        return existed
