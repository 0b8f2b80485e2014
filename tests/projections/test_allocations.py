"""Which PBX holds what?"""

from __future__ import annotations

from projections.allocations import ALLOCATIONS, AllocationRow
from tests.support.examples import (
    activated,
    allocated,
    factory_created,
    factory_removed,
    factory_upgraded,
    granted,
    released,
    shop_created,
)
from tests.support.given_domain import but
from tests.support.given_projection import given

FACTORY = "pkg-acme/pbx-factory"
minutes_allocated = but(allocated, allocation_id="allocation-2", service="recording_minutes", quantity=700, drawn=200)


def row(service: str, assigned: int, drawn: int) -> AllocationRow:
    return AllocationRow("pkg-acme", "pbx-factory", service, "acme", "Chocolate factory", "enterprise", assigned, drawn)


def test_a_pbx_is_created_with_extensions() -> None:
    given(ALLOCATIONS, activated, granted).when(factory_created).then(
        {f"{FACTORY}/extensions": row("extensions", 60, 60)}
    )


def test_a_pbx_gets_more_and_releases_some() -> None:
    shown = given(ALLOCATIONS, factory_created)
    shown = shown.when(allocated).then({f"{FACTORY}/extensions": {"assigned": 80, "drawn": 80}})
    shown.when(released).then({f"{FACTORY}/extensions": {"assigned": 70, "drawn": 70}})


def test_a_new_service_of_a_pbx_is_a_new_row_with_the_free_minutes_apart() -> None:
    shown = given(ALLOCATIONS, factory_created)
    shown.when(minutes_allocated).then({f"{FACTORY}/recording_minutes": row("recording_minutes", 700, 200)})


def test_a_fully_released_service_stays_as_a_row_of_zero() -> None:
    availability = but(allocated, service="high_availability", quantity=1, drawn=1)
    shown = given(ALLOCATIONS, factory_created, availability)
    shown.when(but(released, service="high_availability", quantity=1)).then(
        {f"{FACTORY}/high_availability": {"assigned": 0, "drawn": 0}}
    )


def test_an_upgrade_shows_on_every_row_of_the_pbx_and_on_no_other() -> None:
    enterprise_shop = but(shop_created, plan="enterprise")
    given(ALLOCATIONS, factory_created, minutes_allocated, enterprise_shop).when(factory_upgraded).then(
        {f"{FACTORY}/extensions": {"plan": "ultimate"}, f"{FACTORY}/recording_minutes": {"plan": "ultimate"}}
    )


def test_allocations_after_an_upgrade_have_the_new_plan() -> None:
    shown = given(ALLOCATIONS, factory_created, factory_upgraded).after([but(minutes_allocated, plan="ultimate")])
    assert {row.plan for row in shown.rows.values() if isinstance(row, AllocationRow)} == {"ultimate"}


def test_a_removed_pbx_holds_nothing_and_the_others_hold_what_they_held() -> None:
    given(ALLOCATIONS, factory_created, minutes_allocated, shop_created).when(factory_removed).then(
        {f"{FACTORY}/extensions": None, f"{FACTORY}/recording_minutes": None}
    )
