"""What may an account use? By package and service: total, allocated, available; Enterprise and Ultimate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, ClassVar, Final, assert_never

from psycopg import Connection

from domain.allocation import CapacityAllocated, CapacityReleased, PbxCreated, PbxRemoved, PbxUpgraded
from domain.services import EXTENSIONS, ULTIMATE_PLAN, Plan
from domain.subscription import CapacityExpanded, GrantReversed, PackageActivated, ServiceSubscribed
from infra.postgres.prepared import Statement, ask
from infra.recorded import Recorded
from projections.engine.pages import PAGE_SIZE, Page, page
from projections.engine.projection import Projection
from projections.engine.rows import Row, Rows


@dataclass
class EntitlementRow(Row):
    """What a package has of a service, and how much of it PBXs hold (Ultimate: extensions on that plan).

    ``over_allocated`` is how much more than there is PBXs hold since a refund; for the extensions, the Enterprise share
    counts too, where more is lacking there.
    """

    TABLE: ClassVar = "entitlements"
    KEY: ClassVar = ("package_id", "service")
    PARTITION: ClassVar = "package_id"

    package_id: str
    service: str
    account_id: str
    flat: bool
    total: int
    allocated: int
    valid_until: date
    over_allocated: int = 0


EntitlementEvent = (
    PackageActivated
    | CapacityExpanded
    | ServiceSubscribed
    | GrantReversed
    | PbxCreated
    | CapacityAllocated
    | CapacityReleased
    | PbxUpgraded
    | PbxRemoved
)


def fold(rows: Rows, recorded: Recorded[EntitlementEvent]) -> None:
    """Change the rows of a package by one event."""
    event = recorded.event
    match event:
        case PackageActivated():
            for service, quantity in event.quantities.items():
                rows.put(
                    EntitlementRow(event.package_id, service, event.account_id, False, quantity, 0, event.term.ends_on)
                )
        case CapacityExpanded():
            _row(rows, event.package_id, event.service).total += event.quantity
        case ServiceSubscribed():
            row = _row(rows, event.package_id, event.service)
            row.flat, row.total = True, 1
        case GrantReversed():
            for service, quantity in event.withdrawn.items():
                _row(rows, event.package_id, service).total -= quantity
            for service in event.switched_off:
                _row(rows, event.package_id, service).total = 0
        case PbxCreated():
            _draw(rows, event.package_id, event.plan, {EXTENSIONS: event.extensions})
        case CapacityAllocated():
            _draw(rows, event.package_id, event.plan, {event.service: event.drawn})
        case CapacityReleased():
            _draw(rows, event.package_id, event.plan, {event.service: -event.quantity})
        case PbxUpgraded():
            _row(rows, event.package_id, ULTIMATE_PLAN).allocated += event.extensions
        case PbxRemoved():
            _draw(rows, event.package_id, event.plan, {service: -n for service, n in event.released.items()})
        case _:
            assert_never(event)
    _mark(rows)


def _mark(rows: Rows) -> None:
    """Set the over-allocation of each service of the package."""
    extensions = ultimate = None
    for row in rows.of(EntitlementRow):
        row.over_allocated = max(0, row.allocated - row.total)
        if row.service == EXTENSIONS:
            extensions = row
        elif row.service == ULTIMATE_PLAN:
            ultimate = row
    if extensions and ultimate:
        enterprise = (extensions.allocated - ultimate.allocated) - (extensions.total - ultimate.total)
        extensions.over_allocated = max(extensions.over_allocated, enterprise)


def _row(rows: Rows, package_id: str, service: str) -> EntitlementRow:
    row = rows.get(EntitlementRow, package_id, service)
    if row is None:
        package = rows.get(EntitlementRow, package_id, EXTENSIONS)
        assert package is not None, "a package starts with extensions"
        row = EntitlementRow(package_id, service, package.account_id, False, 0, 0, package.valid_until)
    return rows.put(row)


def _draw(rows: Rows, package_id: str, plan: Plan, drawn: dict[str, int]) -> None:
    for service, quantity in drawn.items():
        _row(rows, package_id, service).allocated += quantity
        if service == EXTENSIONS and plan is Plan.ULTIMATE:
            _row(rows, package_id, ULTIMATE_PLAN).allocated += quantity


ENTITLEMENTS: Projection[EntitlementEvent] = Projection(
    name="entitlements",
    tables=(EntitlementRow,),
    events=EntitlementEvent.__args__,
    partition=lambda recorded: recorded.event.package_id,
    fold=fold,
)


@dataclass(frozen=True)
class Entitlement:
    """What an account may use of one service, in units of the service; a flat service is on (1) or off (0)."""

    package_id: str
    service: str
    flat: bool
    total: int
    allocated: int
    available: int
    over_allocated: int
    valid_until: date


def entitlements_of(conn: Connection[Any], account_id: str) -> list[Entitlement]:
    """Return what an account may use now."""
    return entitlements(ask(conn, _OF_ACCOUNT, [account_id.encode()], _row_of))


_OF_ACCOUNT: Final = Statement(
    b"entitlements_of",
    f"SELECT {', '.join(EntitlementRow.columns())} FROM read.entitlements "  # noqa: S608 - made of constants
    "WHERE account_id = $1 ORDER BY package_id, service".encode(),
)


def _row_of(values: Sequence[Any]) -> EntitlementRow:
    return EntitlementRow(*values)


def over_allocated(conn: Connection[Any], cursor: str | None = None, size: int = PAGE_SIZE) -> Page[EntitlementRow]:
    """Return the services, of any account, of which PBXs hold more than the package has."""
    order = ("account_id", "package_id", "service")
    return page(conn, EntitlementRow, [("over_allocated > 0 AND %s", True)], order, cursor=cursor, size=size)


def entitlements(rows: Iterable[EntitlementRow]) -> list[Entitlement]:
    """Return the entitlements of rows, with the Enterprise share: extensions less those on Ultimate."""
    by_package: dict[str, dict[str, EntitlementRow]] = {}
    for row in rows:
        by_package.setdefault(row.package_id, {})[row.service] = row
    answer = []
    for package in by_package.values():
        extensions, ultimate = package[EXTENSIONS], package.get(ULTIMATE_PLAN)
        for service, row in sorted(package.items(), key=lambda item: (item[0] != EXTENSIONS, item[1].flat, item[0])):
            answer.append(_answer(service, row, row.total, row.allocated))
            if service == EXTENSIONS:
                total = extensions.total - (ultimate.total if ultimate else 0)
                allocated = extensions.allocated - (ultimate.allocated if ultimate else 0)
                answer.append(_answer("enterprise_plan", row, total, allocated))
    return answer


def _answer(service: str, row: EntitlementRow, total: int, allocated: int) -> Entitlement:
    return Entitlement(
        package_id=row.package_id,
        service=service,
        flat=row.flat,
        total=total,
        allocated=allocated,
        available=max(0, total - allocated),
        over_allocated=max(0, allocated - total),
        valid_until=row.valid_until,
    )
