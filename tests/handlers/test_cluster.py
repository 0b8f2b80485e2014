"""A cluster of three NATS servers, of which one after another is away while orders come in."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

import infra.nats
from domain.invoice import InvoiceEmailed, InvoiceIssued
from domain.invoice_series import InvoiceNumberAssigned
from domain.order import ExpansionRequested, Method, OrderFulfilled
from handlers.worker import Duties, working
from infra.log import Log
from infra.nats import CHECKPOINTS, COMMANDS, DEAD_LETTERS, EVENTS
from tests.handlers.at_work import eventually
from tests.handlers.broker import Broker
from tests.handlers.cluster import REPLICATED, Cluster
from tests.handlers.in_memory import InMemory, check_out, confirm, order
from tests.handlers.sending import SENDERS, Service, create_pbx

pytestmark = pytest.mark.long

FROZEN_S = 5.0


@pytest.fixture(name="cluster")
def _cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as cluster:
        yield cluster


class Buying:
    """Somebody who buys on and on, in a thread. Each order that was accepted is counted."""

    def __init__(self, house: InMemory) -> None:
        self.orders = 0
        self._house = house
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._buy, daemon=True)

    def _buy(self) -> None:
        for number in count(1):
            if self._stopping.is_set():
                return
            order_id = f"order-{number}"
            requested = self._house.ask(order(order_id, extensions=1)).desk.recorded[0].event
            assert isinstance(requested, ExpansionRequested)
            self._house.ask(check_out(Method.OFFLINE, order_id))
            self._house.ask(confirm(requested.quote.total, order_id))
            self.orders = number
            self._stopping.wait(0.1)

    def __enter__(self) -> Buying:  # noqa: PYI034 - Self would say the same
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def flow(self, more: int, what: str) -> None:
        """Orders go on, through to their invoices, from now on."""
        invoiced = len(self._house.all(InvoiceIssued))
        eventually(lambda: len(self._house.all(InvoiceIssued)) >= invoiced + more, what)


def test_leader_and_follower_are_killed_and_one_is_cut_off_under_load_and_nothing_is_missing_or_reordered(
    postgres: Log, database_url: str, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What somebody had fetched when the broker went away comes again after the time to acknowledge: shorter here."""
    monkeypatch.setattr(infra.nats, "ACK_S", 10)
    house = InMemory(log=postgres).opened()
    duties = Duties(senders=SENDERS, limits=REPLICATED)
    with working(house.house, database_url, cluster.url, duties) as worker:
        with Buying(house) as buying:
            buying.flow(3, "invoices at first")
            assert cluster.replicas() == dict.fromkeys((EVENTS, COMMANDS, DEAD_LETTERS, CHECKPOINTS), 3)

            leader = cluster.leader()
            leader.kill()
            buying.flow(3, "invoices without the leader")
            leader.start()

            follower = cluster.follower()
            follower.kill()
            buying.flow(3, "invoices without a follower")
            follower.start()

            cut_off = cluster.leader()
            cut_off.freeze()
            time.sleep(FROZEN_S)
            cut_off.thaw()
            buying.flow(3, "invoices after a partition")
        bought = buying.orders
        eventually(lambda: len(house.all(InvoiceEmailed)) == bought, "every mail")
        eventually(lambda: worker.failing is None, "a good report")
        answer = Service(cluster.url).ask(create_pbx())
        assert answer["data"]["outcome"] == "accepted"
        broker = Broker(cluster.url)
        eventually(lambda: broker.count() >= house.head, "every event on its stream")

    assert len(house.all(OrderFulfilled)) == len(house.all(InvoiceIssued)) == bought
    assert [event.sequence for event in house.all(InvoiceNumberAssigned)] == list(range(1, bought + 1))
    assert broker.ordered_positions() == list(range(1, house.head + 1))
    assert broker.dead_letters() == []
