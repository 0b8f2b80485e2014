"""Stored events of shapes that are retired, and what makes today's of them.

A stored event is never changed. Where its meaning needed more, or other, fields, the event got the next version of its
topic, and this table says how one of the version before is read. Its golden file stays for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

State = dict[str, Any]


class Upcast(NamedTuple):
    """The topic that a retired one became, and its state there."""

    topic: str
    state: Callable[[State], State]


UPCASTS: Final[Mapping[str, Upcast]] = {
    "invoice_link.LinkRevoked.v1": Upcast("invoice_link.LinkRevoked.v2", lambda state: state | {"replaced_by": None}),
}


def topic_today(topic: str) -> str:
    """The topic that events of a topic are read as: its own, unless it is retired."""
    return topic_today(UPCASTS[topic].topic) if topic in UPCASTS else topic


def stored_topics(topics: Iterable[str]) -> list[str]:
    """The topics under which events that are read as one of ``topics`` may be stored."""
    wanted = set(topics)
    while older := {topic for topic, upcast in UPCASTS.items() if upcast.topic in wanted} - wanted:
        wanted |= older
    return sorted(wanted)
