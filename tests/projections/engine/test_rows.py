"""The rows of a partition: those that a fold changed, added and deleted."""

from __future__ import annotations

from projections.engine.rows import Rows
from projections.entitlements import EntitlementRow
from tests.support.examples import NOW


def test_new_and_changed_rows_are_written_and_deleted_ones_removed() -> None:
    def row(service: str, total: int) -> EntitlementRow:
        return EntitlementRow("pkg-acme", service, "acme", False, total, 0, NOW.date())

    rows = Rows()
    for found in (row("extensions", 100), row("ultimate_plan", 20), row("high_availability", 2)):
        rows.found(found)
    assert (rows.changed(EntitlementRow), rows.gone(EntitlementRow)) == ([], [])

    extensions = rows.get(EntitlementRow, "pkg-acme", "extensions")
    assert extensions
    extensions.total += 50
    rows.put(row("custom_domain", 1))
    rows.delete(row("high_availability", 2))
    assert rows.changed(EntitlementRow) == [row("extensions", 150), row("custom_domain", 1)]
    assert rows.gone(EntitlementRow) == [("pkg-acme", "high_availability")]
    assert rows.get(EntitlementRow, "pkg-acme", "high_availability") is None

    extensions.total -= 50
    rows.put(row("high_availability", 2))
    assert rows.changed(EntitlementRow) == [row("custom_domain", 1)]
    assert rows.gone(EntitlementRow) == []
