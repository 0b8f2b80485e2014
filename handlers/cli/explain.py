"""Explain a number: an aggregate as its decider folds it, and an entitlement event by event.

Both use the folds of the program itself, on what an auditor may read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from domain.account import ACCOUNT
from domain.allocation import ALLOCATION
from domain.invoice import INVOICE
from domain.invoice_link import INVOICE_LINK
from domain.invoice_series import INVOICE_SERIES
from domain.messages import Decider, Refusal
from domain.order import ORDER
from domain.payment_reference import PAYMENT_REFERENCE
from domain.price_list import PRICE_LIST
from domain.subscription import SUBSCRIPTION
from infra.audit.auditor import Auditor, Wanted, log_row
from infra.event_log.mapper import PydanticMapper
from infra.event_log.topics import topics
from infra.event_log.upcasts import topic_today
from infra.recorded import Recorded
from projections.engine.projection import PartitionKey
from projections.engine.rows import Rows
from projections.entitlements import ENTITLEMENTS, Entitlement, EntitlementRow, entitlements

DECIDERS: dict[str, Decider[Any, Any, Any]] = {
    decider.category: decider
    for decider in (
        ACCOUNT,
        PRICE_LIST,
        SUBSCRIPTION,
        ALLOCATION,
        ORDER,
        PAYMENT_REFERENCE,
        INVOICE_SERIES,
        INVOICE,
        INVOICE_LINK,
    )
}
READ = ENTITLEMENTS.topics
CATEGORIES = {topic.partition(".")[0] for topic in READ}


class NothingThere(Refusal):
    """The log does not have what is asked for, or did not have it then."""


@dataclass(frozen=True)
class Aggregate:
    """An aggregate after one of its events, with the position of that event."""

    stream: str
    version: int
    position: int
    recorded_at: datetime
    state: Any


def aggregate(auditor: Auditor, stream: str, upto: int) -> Aggregate:
    """Return an aggregate as its decider folds it, as of position ``upto``.

    Raises:
        NothingThere: there is no such stream, or it had no event yet.
        UnreadableEvent: this program does not know one of its events.
    """
    category = stream.partition("-")[0]
    if category not in DECIDERS:
        raise NothingThere(
            f"There is no stream {stream}; a stream is one of {', '.join(DECIDERS)}, a hyphen, and an id."
        )
    decider, mapper = DECIDERS[category], PydanticMapper(None)
    state, last = decider.initial, None
    for row in auditor.events(Wanted(stream=stream, to_position=upto)):
        state, last = decider.evolve(state, mapper.recorded(log_row(row)).event), row
    if last is not None:
        return Aggregate(stream, last["version"], last["position"], last["recorded_at"], state)
    if auditor.knows(Wanted(stream=stream)):
        raise NothingThere(f"{stream} had no event yet at position {upto}.")
    raise NothingThere(f"There is no stream {stream} in the log.")


@dataclass(frozen=True)
class Step:
    """An event that changed an entitlement: who caused it, by how much, and the figures after it.

    ``cause`` is the event of the account that caused it, as name and position, or else the id of its message.
    """

    package_id: str
    position: int
    recorded_at: datetime
    topic: str
    stream: str
    version: int
    actor: str
    cause: str | None
    causation_id: str | None
    correlation_id: str
    total_change: int
    allocated_change: int
    total: int
    allocated: int
    available: int
    over_allocated: int


def explanation(auditor: Auditor, account: str, service: str, package: str | None, upto: int) -> list[Step]:
    """Return the events that changed an entitlement up to position ``upto``, in order.

    Raises:
        NothingThere: there was no such account, package or service.
        UnreadableEvent: this program does not know one of the events.
    """
    steps, seen, packages = list[Step](), set[str](), set[PartitionKey]()
    for step, services, of in _steps(auditor, account, service, upto):
        packages.add(of)
        if package in (None, of):
            seen |= services
            if step is not None:
                steps.append(step)
    if not packages and not auditor.knows(Wanted(account=account)):
        raise NothingThere(f"There is no event of an account {account} in the log.")
    if package is not None and package not in packages:
        raise NothingThere(f"The account {account} had no package {package} at position {upto}.")
    if not steps:
        raise NothingThere(
            f"The account {account} had no {service} at position {upto}; it had {', '.join(sorted(seen)) or 'nothing'}."
        )
    return steps


def _steps(
    auditor: Auditor, account: str, service: str, upto: int
) -> Iterator[tuple[Step | None, set[str], PartitionKey]]:
    """Yield for each event of a package: its effect on the service or None, the services, and the package."""
    partitions: dict[PartitionKey, Rows] = {}
    named: dict[str, str] = {}
    mapper = PydanticMapper(None)
    for row in auditor.events(Wanted(account=account, to_position=upto)):
        named[str(row["event_id"])] = f"{name_of(row['topic'])} at {row['position']}"
        known = topic_today(row["topic"]) in topics()
        if row["topic"] not in READ and (known or row["stream"].partition("-")[0] not in CATEGORIES):
            continue
        recorded: Recorded[Any] = mapper.recorded(log_row(row))
        package = ENTITLEMENTS.partition(recorded)
        rows = partitions.setdefault(package, Rows())
        before = _figures(rows).get(service)
        ENTITLEMENTS.fold(rows, recorded)
        after = _figures(rows)
        yield _step(row, named, before, after.get(service)), set(after), package


def name_of(topic: str) -> str:
    """Return the name in a topic such as ``order.PaymentCaptured.v1``; a topic of another form as it is."""
    _, _, name = topic.partition(".")
    return name.partition(".")[0] or topic


def _figures(rows: Rows) -> dict[str, Entitlement]:
    found = rows.of(EntitlementRow)
    return {line.service: line for line in entitlements(found)} if found else {}


def _step(
    row: dict[str, Any], named: dict[str, str], before: Entitlement | None, after: Entitlement | None
) -> Step | None:
    total, allocated = (before.total, before.allocated) if before else (0, 0)
    if after is None or (after.total, after.allocated) == (total, allocated):
        return None
    return Step(
        package_id=after.package_id,
        **{name: row[name] for name in ("position", "recorded_at", "topic", "stream", "version", "actor")},
        cause=named.get(row["causation_id"], row["causation_id"]),
        causation_id=row["causation_id"],
        correlation_id=row["correlation_id"],
        total_change=after.total - total,
        allocated_change=after.allocated - allocated,
        total=after.total,
        allocated=after.allocated,
        available=after.available,
        over_allocated=after.over_allocated,
    )
