"""A read model: its events, which rows an event touches (*partition*), and how it changes them (*fold*).

The same fold follows the log in batches (`projections.engine.batches`), and shows any read model as of any time, in
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic

from typing_extensions import TypeVar

from domain.messages import Event
from infra.event_log.log import Log
from infra.event_log.topics import topics
from infra.event_log.upcasts import stored_topics
from infra.recorded import Recorded
from projections.engine.rows import Row, Rows

PartitionKey = str | int
E = TypeVar("E", bound=Event, default=Any)


@dataclass(frozen=True)
class Projection(Generic[E]):
    """One read model: its tables, the events that it reads, and how they change its rows.

    A fold reads no clock and no other table, so folding again gives the same rows. A partition belongs to one account,
    as do all of its events.

    Attributes:
        name: names its position, and the projection on the command line.
        tables: the tables of its rows.
        events: the events that it reads.
        partition: the value of the partition column that an event concerns.
        fold: changes the rows of that partition.
        bodies: if False, the fold needs only the topic and the metadata of events, and no body is read.
        append_only: each event has a row of its own, so no rows are loaded before a fold.
    """

    name: str
    tables: tuple[type[Row], ...]
    events: tuple[type[E], ...]
    partition: Callable[[Recorded[E]], PartitionKey]
    fold: Callable[[Rows, Recorded[E]], None]
    bodies: bool = True
    append_only: bool = False

    @cached_property
    def topics(self) -> frozenset[str]:
        """The topics of its events, and those of their retired versions."""
        return frozenset(stored_topics(topic for topic, event in topics().items() if issubclass(event, self.events)))

    @cached_property
    def categories(self) -> frozenset[str]:
        """The prefixes of its topics. An unknown topic with such a prefix may be one that it should read."""
        return frozenset(topic.partition(".")[0] for topic in self.topics)

    @cached_property
    def kinds(self) -> frozenset[type[Event]]:
        """The classes of its events."""
        return frozenset(event for event in topics().values() if issubclass(event, self.events))

    def folded(self, history: Iterable[Recorded[Any]], skipped: Collection[int] = ()) -> Rows:
        """Return all rows after ``history``, in memory, without the effects of the positions in ``skipped``."""
        everything = Rows()
        for rows in self.partitions(history, skipped).values():
            for table in self.tables:
                for row in rows.of(table):
                    everything.put(row)
        return everything

    def partitions(self, history: Iterable[Recorded[Any]], skipped: Collection[int] = ()) -> dict[PartitionKey, Rows]:
        """Return the same by partition."""
        partitions: dict[PartitionKey, Rows] = {}
        kinds, partition, fold = self.kinds, self.partition, self.fold
        for recorded in history:
            if type(recorded.event) in kinds and recorded.position not in skipped:
                fold(partitions.setdefault(partition(recorded), Rows()), recorded)
        return partitions

    def as_of(self, log: Log, account_id: str, position: int, skipped: Collection[int] = ()) -> Rows:
        """Return the rows of an account as of a position."""
        return self.folded(log.of_account(account_id, upto=position), skipped)
