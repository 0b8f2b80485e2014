"""What happened in an account, in order: who caused it, and why?"""

from __future__ import annotations

from infra.recorded import Cause, Recorded
from projections.timeline import TIMELINE, TimelineRow
from tests.support.examples import LATER, NOW, captured, opened, placed, published, requested
from tests.support.given_projection import given, recorded


def test_every_event_is_a_line_with_its_position_actor_and_cause() -> None:
    fact = Recorded(
        "order-order-1", 3, captured, "acme", Cause("system:trunkline", "wish-1", "event-2"), LATER, position=17
    )
    assert TIMELINE.folded([fact]).of(TimelineRow) == [
        TimelineRow(
            position=17,
            account_id="acme",
            stream="order-order-1",
            version=3,
            topic="order.PaymentCaptured.v1",
            event_id=fact.event_id,
            actor="system:trunkline",
            correlation_id="wish-1",
            causation_id="event-2",
            recorded_at=LATER,
        )
    ]


def test_lines_are_in_the_order_of_the_log() -> None:
    rows = given(TIMELINE, opened, requested, placed).rows.values()
    assert [(row.position, row.topic) for row in rows if isinstance(row, TimelineRow)] == [
        (1, "account.AccountOpened.v1"),
        (2, "order.ExpansionRequested.v1"),
        (3, "order.OrderPlaced.v1"),
    ]


def test_events_without_an_account_are_in_no_timeline() -> None:
    assert TIMELINE.folded([recorded(published, 1, account_id=None)]).of(TimelineRow) == []


def test_each_account_has_its_own_timeline() -> None:
    history = [recorded(opened, 1), recorded(opened, 2, account_id="slugworth"), recorded(requested, 3)]
    lines = TIMELINE.folded(history).of(TimelineRow)
    assert [(line.account_id, line.position) for line in lines] == [("acme", 1), ("slugworth", 2), ("acme", 3)]
    assert {line.recorded_at for line in lines} == {NOW}
