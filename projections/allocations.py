"""What does each PBX hold?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, assert_never

from psycopg import Connection

from domain.allocation import CapacityAllocated, CapacityReleased, PbxCreated, PbxRemoved, PbxUpgraded
from domain.services import EXTENSIONS, Plan
from infra.recorded import Recorded
from projections.engine.pages import PAGE_SIZE, Condition, Page, page
from projections.engine.projection import Projection
from projections.engine.rows import Row, Rows


@dataclass
class AllocationRow(Row):
    """What a PBX holds of a service: ``drawn`` of ``assigned`` came from the pool, the rest is free with each PBX."""

    TABLE: ClassVar = "allocations"
    KEY: ClassVar = ("package_id", "pbx_id", "service")
    PARTITION: ClassVar = "package_id"

    package_id: str
    pbx_id: str
    service: str
    account_id: str
    pbx_name: str
    plan: str
    assigned: int
    drawn: int


AllocationRowEvent = PbxCreated | CapacityAllocated | CapacityReleased | PbxUpgraded | PbxRemoved


def fold(rows: Rows, recorded: Recorded[AllocationRowEvent]) -> None:
    """Change the rows of a package by one event."""
    event = recorded.event
    match event:
        case PbxCreated():
            rows.put(
                AllocationRow(
                    package_id=event.package_id,
                    pbx_id=event.pbx_id,
                    service=EXTENSIONS,
                    account_id=str(recorded.account_id),
                    pbx_name=event.name,
                    plan=event.plan,
                    assigned=event.extensions,
                    drawn=event.extensions,
                )
            )
        case CapacityAllocated():
            row = _row(rows, event.package_id, event.pbx_id, event.service)
            row.assigned += event.quantity
            row.drawn += event.drawn
        case CapacityReleased():
            row = _row(rows, event.package_id, event.pbx_id, event.service)
            row.assigned -= event.quantity
            row.drawn -= event.quantity
        case PbxUpgraded():
            for row in _of_pbx(rows, event.pbx_id):
                row.plan = Plan.ULTIMATE
        case PbxRemoved():
            for row in _of_pbx(rows, event.pbx_id):
                rows.delete(row)
        case _:
            assert_never(event)


def _of_pbx(rows: Rows, pbx_id: str) -> list[AllocationRow]:
    return [row for row in rows.of(AllocationRow) if row.pbx_id == pbx_id]


def _row(rows: Rows, package_id: str, pbx_id: str, service: str) -> AllocationRow:
    row = rows.get(AllocationRow, package_id, pbx_id, service)
    if row is None:
        pbx = rows.get(AllocationRow, package_id, pbx_id, EXTENSIONS)
        assert pbx is not None, "a PBX is created with extensions"
        row = AllocationRow(package_id, pbx_id, service, pbx.account_id, pbx.pbx_name, pbx.plan, 0, 0)
    return rows.put(row)


ALLOCATIONS: Projection[AllocationRowEvent] = Projection(
    name="allocations",
    tables=(AllocationRow,),
    events=AllocationRowEvent.__args__,
    partition=lambda recorded: recorded.event.package_id,
    fold=fold,
)


def allocations(
    conn: Connection[Any], account_id: str, pbx_id: str | None = None, cursor: str | None = None, size: int = PAGE_SIZE
) -> Page[AllocationRow]:
    """Return what the PBXs of an account hold, or one of them."""
    conditions: list[Condition] = [("account_id = %s", account_id)]
    if pbx_id is not None:
        conditions.append(("pbx_id = %s", pbx_id))
    order = ("pbx_id", "service", "package_id")
    return page(conn, AllocationRow, conditions, order, cursor=cursor, size=size)
