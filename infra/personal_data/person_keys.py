"""The keys of personal data: one a person, made before the first event that needs it, destroyed with the erasure."""

from __future__ import annotations

import secrets
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Final

KEY_BYTES: Final = 32


class PersonKeys(ABC):
    """Where keys are kept. An erased person has none, and is never given one again.

    Raises:
        infra.settings.WrongSetting: as do all methods: a key stands there, and the master key does not open it. That
            is never taken for an erasure.
    """

    @abstractmethod
    def standing(self, persons: Iterable[str]) -> Mapping[str, bytes]:
        """The keys of these persons. Those who were erased, or never had one, are left out."""

    @abstractmethod
    def made(self, person: str) -> bytes | None:
        """The key of a person, durable before anything is stored under it; none where the person was erased.

        Of any number of processes that ask at once, each is given the same.
        """

    @abstractmethod
    def destroy(self, person: str) -> bool:
        """Destroy a key for good. False where there was none."""


class MemoryPersonKeys(PersonKeys):
    """Keys in this process's memory, beside a log that is there, too."""

    def __init__(self, keys: Mapping[str, bytes] | None = None) -> None:
        self._keys: dict[str, bytes | None] = dict(keys or {})
        self._lock = threading.Lock()

    def standing(self, persons: Iterable[str]) -> Mapping[str, bytes]:
        """The keys of these persons."""
        with self._lock:
            return {person: key for person in persons if (key := self._keys.get(person))}

    def made(self, person: str) -> bytes | None:
        """The key of a person."""
        with self._lock:
            return self._keys.setdefault(person, secrets.token_bytes(KEY_BYTES))

    def destroy(self, person: str) -> bool:
        """Destroy a key for good."""
        with self._lock:
            stood = self._keys.get(person) is not None
            self._keys[person] = None
        return stood
