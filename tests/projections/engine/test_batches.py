"""Batches of any size, interrupted anywhere: the tables equal a replay from the start, and as-of equals the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import psycopg
import pytest
from psycopg import Connection, Cursor

from domain.messages import Event
from domain.order import PaymentSetAside
from infra.event_log.log import Change, Log
from infra.event_log.topics import topics
from infra.postgres.connections import connect
from infra.postgres.positions import move_position, position_of
from infra.recorded import Recorded
from projections.allocations import ALLOCATIONS, AllocationRow
from projections.billing import BILLING, PaymentRow
from projections.engine import batches as engine
from projections.engine.batches import catch_up
from projections.engine.projection import Projection
from projections.engine.rows import Row, stored
from projections.entitlements import ENTITLEMENTS, EntitlementRow
from projections.invoice_links import INVOICE_LINKS
from projections.maintenance.runner import PROJECTIONS
from projections.orders import ORDERS, OrderRow
from projections.timeline import TIMELINE, TimelineRow
from tests.projections.conftest import Lay
from tests.support.examples import (
    NOW,
    activated,
    allocated,
    factory_created,
    factory_removed,
    granted,
    no_longer_fits,
    opened,
    placed,
    published,
    requested,
    shop_created,
)
from tests.support.given_domain import but
from tests.support.given_projection import CAUSE
from tests.support.histories import ACCOUNTS, told

each_projection = pytest.mark.parametrize("projection", PROJECTIONS, ids=lambda projection: projection.name)
Shown = dict[str, list[Row]]


def by_table(projection: Projection, rows_of: Callable[[type[Row]], list[Row]]) -> Shown:
    return {table.TABLE: sorted(rows_of(table), key=lambda row: str(row.key())) for table in projection.tables}


def live(conn: Connection[Any], projection: Projection, **equal: str) -> Shown:
    """The rows of the tables."""
    return by_table(projection, lambda table: stored(conn, table, **equal))


def replayed(projection: Projection, history: Iterable[Recorded]) -> Shown:
    """The rows after a replay from the start."""
    return by_table(projection, projection.folded(history).of)


def projected(conn: Connection[Any], log: Log, projection: Projection, batch: int = engine.BATCH) -> None:
    while catch_up(conn, log, projection, batch)[1]:
        pass


def log_of(memory: Log, *events: Event) -> Log:
    memory.append([Change("everything", memory.head(), events)], account_id="acme", cause=CAUSE, at=NOW)
    return memory


# --- the histories -------------------------------------------------------------------------------------------------


def test_the_histories_contain_every_event_that_a_projection_reads() -> None:
    heard = {type(fact.event) for seed in (1, 2, 3) for fact in told(seed).history()}
    read = {event for projection in PROJECTIONS for event in projection.events} - {Event}
    assert read - heard == set()
    assert len(heard) >= len(topics()) - 2, "documents are deleted and persons erased later"


def test_a_seed_always_makes_the_same_history() -> None:
    assert list(told(1, 60).history()) == list(told.__wrapped__(1, 60).history())


# --- batches -------------------------------------------------------------------------------------------------------


@each_projection
@pytest.mark.parametrize(("batch", "seed", "steps"), [(1, 1, 120), (3, 2, 250), (500, 3, 400)])
def test_the_tables_equal_a_replay_from_the_start_in_batches_of_any_size(
    tables: Connection[Any], lay: Lay, projection: Projection, batch: int, seed: int, steps: int
) -> None:
    log = lay(told(seed, steps))
    projected(tables, log, projection, batch)
    assert live(tables, projection) == replayed(projection, log.history())
    assert position_of(tables, projection.name) == log.head()


@each_projection
def test_projected_events_are_never_projected_again(tables: Connection[Any], lay: Lay, projection: Projection) -> None:
    log = lay(told(1))
    projected(tables, log, projection)
    before = live(tables, projection)
    assert catch_up(tables, log, projection) == (log.head(), 0)
    assert live(tables, projection) == before


def test_an_empty_log_is_caught_up_with_at_once(tables: Connection[Any], memory: Log) -> None:
    assert catch_up(tables, memory, ORDERS) == (0, 0)
    assert position_of(tables, ORDERS.name) == 0


def test_a_batch_is_limited_in_size(tables: Connection[Any], lay: Lay, memory: Log) -> None:
    log = lay(log_of(memory, opened, activated, granted, factory_created, shop_created))
    assert catch_up(tables, log, ALLOCATIONS, batch=1) == (4, 4)  # after three events that it does not read
    assert [row.pbx_id for row in stored(tables, AllocationRow)] == ["pbx-factory"]
    assert catch_up(tables, log, ALLOCATIONS, batch=1) == (5, 1)
    assert [row.pbx_id for row in stored(tables, AllocationRow)] == ["pbx-factory", "pbx-shop"]


def test_events_that_a_projection_does_not_read_move_its_position_and_touch_no_table(
    tables: Connection[Any], lay: Lay, memory: Log
) -> None:
    log = lay(log_of(memory, opened, published, granted))
    with fused(tables) as fuse:
        assert catch_up(tables, log, ORDERS) == (3, 3)
    assert fuse.burnt == 7  # create the position; read the log's end; read the events: none; move the position
    assert position_of(tables, ORDERS.name) == 3


@each_projection
def test_a_batch_reads_writes_and_deletes_with_one_statement_a_table_each(
    tables: Connection[Any], lay: Lay, projection: Projection
) -> None:
    with fused(tables) as fuse:
        assert catch_up(tables, lay(told(1)), projection)[1] > 100
    assert fuse.burnt <= 7 + 3 * len(projection.tables)


def test_a_deleted_row_is_deleted_from_the_table(tables: Connection[Any], lay: Lay, memory: Log) -> None:
    log = lay(log_of(memory, factory_created, shop_created))
    projected(tables, log, ALLOCATIONS)
    projected(tables, lay(log_of(log, factory_removed)), ALLOCATIONS)
    assert [row.pbx_id for row in stored(tables, AllocationRow)] == ["pbx-shop"]


def test_a_row_that_comes_and_goes_within_a_batch_is_never_written(
    tables: Connection[Any], lay: Lay, memory: Log
) -> None:
    projected(tables, lay(log_of(memory, factory_created, allocated, factory_removed)), ALLOCATIONS)
    assert stored(tables, AllocationRow) == []


def test_a_row_that_did_not_change_is_not_written(tables: Connection[Any], lay: Lay, memory: Log) -> None:
    log = lay(log_of(memory, activated, factory_created))
    projected(tables, log, ENTITLEMENTS)
    before = written_by(tables)
    projected(tables, lay(log_of(log, but(shop_created, plan="enterprise"))), ENTITLEMENTS)
    after = written_by(tables)
    assert {service for service in after if after[service] != before[service]} == {"extensions"}


def written_by(conn: Connection[Any]) -> dict[str, int]:
    """The transaction ids that wrote each row."""
    found = conn.execute("SELECT service, xmin::text::bigint AS writer FROM read.entitlements")
    return {row["service"]: row["writer"] for row in found}


def test_rows_are_found_by_equality_in_the_order_of_their_keys(tables: Connection[Any], lay: Lay) -> None:
    projected(tables, lay(told(1)), ENTITLEMENTS)
    everything = stored(tables, EntitlementRow)
    assert everything == sorted(everything, key=EntitlementRow.key)
    assert stored(tables, EntitlementRow, account_id="acme") == [r for r in everything if r.account_id == "acme"]
    assert stored(tables, EntitlementRow, account_id="acme", flat=True) == [
        row for row in everything if row.account_id == "acme" and row.flat
    ]
    some = ["extensions", "ultimate_plan"]
    assert stored(tables, EntitlementRow, service=some) == [row for row in everything if row.service in some]
    assert stored(tables, EntitlementRow, account_id="'; DROP TABLE read.entitlements; --") == []


# --- crashes -------------------------------------------------------------------------------------------------------


class Crash(Exception):
    """The process dies here."""


class Fuse:
    """Counts the statements of a connection and fails after a given one; never by default."""

    def __init__(self, blow: Callable[[], None]) -> None:
        self.burnt = 0
        self.length: int | None = None
        self._blow = blow

    def renew(self, length: int | None) -> None:
        self.burnt, self.length = 0, length

    def burn(self) -> None:
        self.burnt += 1
        if self.burnt == self.length:
            self._blow()
            raise Crash


@contextmanager
def fused(conn: Connection[Any], blow: Callable[[], None] = lambda: None) -> Iterator[Fuse]:
    fuse, whole = Fuse(blow), conn.cursor_factory

    class FusedCursor(Cursor[Any]):
        def execute(self, *args: Any, **kwargs: Any) -> FusedCursor:  # noqa: ANN401 - any cursor arguments
            super().execute(*args, **kwargs)
            fuse.burn()
            return self

    conn.cursor_factory = FusedCursor
    try:
        yield fuse
    finally:
        conn.cursor_factory = whole


def come_to(projection: Projection, history: list[Recorded], before: int, batch: int) -> int:
    """The position at which a batch ends: the last event it reads, or the end of the log."""
    read = [event.position for event in history[before:] if isinstance(event.event, projection.events)]
    return read[batch - 1] if len(read) >= batch else len(history)


def crash_everywhere(
    url: str, log: Log, projection: Projection, batch: int, *, cut: bool, onlooker: Connection[Any]
) -> int:
    """Project batch by batch; crash each batch once after each of its statements before it succeeds.

    If ``cut``, each crash also loses the connection. Returns the number of crashes.
    """
    history = list(log.history())
    crashes, length, seen = 0, 1, (0, replayed(projection, []))
    conn = connect(url)
    try:
        while seen[0] < len(history):
            with fused(conn, conn.close if cut else lambda: None) as fuse:
                fuse.renew(length)
                try:
                    catch_up(conn, log, projection, batch)
                except (Crash, psycopg.OperationalError):
                    length, crashes = length + 1, crashes + 1
                else:
                    length, position = 1, position_of(onlooker, projection.name)
                    assert position == come_to(projection, history, seen[0], batch)
                    seen = position, replayed(projection, history[:position])
            assert (position_of(onlooker, projection.name), live(onlooker, projection)) == seen
            if conn.closed:
                conn = connect(url)
    finally:
        conn.close()
    return crashes


@each_projection
@pytest.mark.parametrize(
    ("batch", "cut"), [(50, False), (500, False), (100, True)], ids=["small batches", "large batches", "cut off"]
)
def test_a_crash_after_any_statement_of_any_batch_changes_nothing(
    tables: Connection[Any], lay: Lay, tables_url: str, projection: Projection, batch: int, cut: bool
) -> None:
    """At every moment, the tables equal a replay up to their stored position."""
    log = lay(told(2))
    crashes = crash_everywhere(tables_url, log, projection, batch, cut=cut, onlooker=tables)
    assert crashes >= 4
    assert live(tables, projection) == replayed(projection, log.history())


def test_rows_are_never_written_without_their_position(
    tables: Connection[Any], lay: Lay, memory: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        assert len(stored(tables, OrderRow)) == 1  # visible in this transaction
        raise Crash

    monkeypatch.setattr(engine, "move_position", crash)
    with pytest.raises(Crash):
        catch_up(tables, lay(log_of(memory, requested)), ORDERS)
    assert (stored(tables, OrderRow), position_of(tables, ORDERS.name)) == ([], 0)


def test_a_position_is_never_moved_without_its_rows(
    tables: Connection[Any], lay: Lay, memory: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = lay(log_of(memory, requested))
    projected(tables, log, ORDERS)

    def crash(*_: object) -> None:
        raise Crash

    monkeypatch.setattr(engine, "upsert_rows", crash)
    with pytest.raises(Crash):
        catch_up(tables, lay(log_of(log, placed)), ORDERS)
    assert [row.state for row in stored(tables, OrderRow)] == ["requested"]
    assert position_of(tables, ORDERS.name) == 1


def test_nobody_else_sees_a_batch_before_it_is_committed(
    tables: Connection[Any], lay: Lay, tables_url: str, memory: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(conn: Connection[Any], name: str, position: int) -> None:
        move_position(conn, name, position)
        with connect(tables_url) as onlooker:
            seen.append((len(stored(onlooker, OrderRow)), position_of(onlooker, name)))

    monkeypatch.setattr(engine, "move_position", look)
    catch_up(tables, lay(log_of(memory, requested)), ORDERS)
    assert seen == [(0, 0)]
    assert len(stored(tables, OrderRow)) == 1


def test_an_event_that_cannot_be_folded_leaves_the_whole_batch_undone(
    tables: Connection[Any], lay: Lay, memory: Log
) -> None:
    log = lay(log_of(memory, requested, but(placed, order_id="order-nobody-requested")))
    with pytest.raises(AssertionError, match="an order starts with its request"):
        catch_up(tables, log, ORDERS)
    assert (stored(tables, OrderRow), position_of(tables, ORDERS.name)) == ([], 0)


def test_a_value_that_a_table_rejects_leaves_the_whole_batch_undone(
    tables: Connection[Any], lay: Lay, memory: Log
) -> None:
    poison: PaymentSetAside = but(no_longer_fits, explanation="a\x00b")
    with pytest.raises(psycopg.DataError):
        catch_up(tables, lay(log_of(memory, requested, placed, poison)), BILLING)
    assert (stored(tables, PaymentRow), position_of(tables, BILLING.name)) == ([], 0)


# --- as of ---------------------------------------------------------------------------------------------------------


@each_projection
def test_as_of_a_position_equals_what_the_tables_showed_at_it(
    tables: Connection[Any], lay: Lay, projection: Projection
) -> None:
    log, random = lay(told(3)), Random(3)  # noqa: S311 - repeatable
    position, count = 0, 1
    while count:
        for account_id in ACCOUNTS:
            as_of = projection.as_of(log, account_id, position)
            assert by_table(projection, as_of.of) == live(tables, projection, account_id=account_id)
        position, count = catch_up(tables, log, projection, batch=random.randint(1, 60))


def test_as_of_ignores_later_events(memory: Log) -> None:
    log = log_of(memory, requested, placed)

    def state(position: int) -> list[str]:
        return [row.state for row in ORDERS.as_of(log, "acme", position).of(OrderRow)]

    assert [state(position) for position in (0, 1, 2, 99)] == [[], ["requested"], ["placed"], ["placed"]]


def test_as_of_shows_an_account_its_own_rows_only(memory: Log) -> None:
    log = log_of(memory, requested)
    assert ORDERS.as_of(log, "slugworth", log.head()).of(OrderRow) == []
    assert TIMELINE.as_of(log, "slugworth", log.head()).of(TimelineRow) == []


def test_every_row_of_an_account_is_found_by_its_account() -> None:
    log = told(1)
    for projection in (ENTITLEMENTS, ALLOCATIONS, ORDERS, BILLING, INVOICE_LINKS, TIMELINE):
        everything = replayed(projection, log.history())
        shares = [by_table(projection, projection.as_of(log, account_id, log.head()).of) for account_id in ACCOUNTS]
        for table, rows in everything.items():
            assert sorted((row for share in shares for row in share[table]), key=lambda row: str(row.key())) == rows
