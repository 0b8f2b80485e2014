"""An event with its place in the log, and the record of who caused it."""

from __future__ import annotations

from datetime import datetime
from hashlib import sha1
from typing import NamedTuple
from uuid import NAMESPACE_URL, UUID, uuid5

from domain.messages import Event

_EVENT_IDS = sha1(uuid5(NAMESPACE_URL, "urn:trunkline:event").bytes, usedforsecurity=False)


_VERSION_5 = 0x5 << 76 | 0b10 << 62


_OTHER_BITS = ~(0xF << 76 | 0b11 << 62)


def event_id_bytes(stream: str, version: int) -> bytes:
    """The id of the event at a place of a stream, a UUID of version 5 (RFC 9562): the same wherever it is asked for."""
    hashed = _EVENT_IDS.copy()
    hashed.update(f"{stream}/{version}".encode())
    return (int.from_bytes(hashed.digest()[:16]) & _OTHER_BITS | _VERSION_5).to_bytes(16)


def event_id(stream: str, version: int) -> UUID:
    """The same, as a UUID. To make the object takes three times as long as to make the id."""
    return UUID(bytes=event_id_bytes(stream, version))


class Cause(NamedTuple):
    """Who caused a change, and why: what is recorded beside every event.

    Attributes:
        actor: role and name, for example ``distributor:dora`` or ``system:reactions``.
        correlation_id: the same for all that follows from one wish.
        causation_id: the event, or the message, that led to this one directly; none for a first wish.
    """

    actor: str
    correlation_id: str
    causation_id: str | None = None


class Recorded(NamedTuple):
    """An event with its place in the log, and the record of who caused it. ``position`` is 0 before it is appended."""

    stream: str
    version: int
    event: Event
    account_id: str | None
    cause: Cause
    recorded_at: datetime
    position: int = 0

    @property
    def originator_id(self) -> str:
        """The stream, by the library's name."""
        return self.stream

    @property
    def originator_version(self) -> int:
        """The version, by the library's name."""
        return self.version

    @property
    def event_id(self) -> UUID:
        """The event's own id: it follows from its place in its stream, so it is the same wherever it is computed."""
        return event_id(self.stream, self.version)
