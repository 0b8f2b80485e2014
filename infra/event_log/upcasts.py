"""Upcasts: how stored events of retired versions are read as the current version.

A stored event is never changed. If it needs more or other fields, the event gets the next version of its topic, and
this table defines how the version before is read. Its golden file is kept for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

State = dict[str, Any]


class Upcast(NamedTuple):
    """The topic that replaced a retired one, and the conversion of its state."""

    topic: str
    state: Callable[[State], State]


UPCASTS: Final[Mapping[str, Upcast]] = {
    "invoice_link.LinkRevoked.v1": Upcast("invoice_link.LinkRevoked.v2", lambda state: state | {"replaced_by": None}),
}


def topic_today(topic: str) -> str:
    """Return the topic as which events of a topic are read: its own, unless it is retired."""
    return topic_today(UPCASTS[topic].topic) if topic in UPCASTS else topic


def stored_topics(topics: Iterable[str]) -> list[str]:
    """Return the topics under which events that are read as one of ``topics`` may be stored."""
    wanted = set(topics)
    while older := {topic for topic, upcast in UPCASTS.items() if upcast.topic in wanted} - wanted:
        wanted |= older
    return sorted(wanted)
