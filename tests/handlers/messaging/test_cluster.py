"""A cluster of three NATS servers that go down one after another while orders come in."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from nats.errors import TimeoutError as NatsTimeout

import infra.broker.nats
from domain.invoice import InvoiceEmailed, InvoiceIssued
from domain.invoice_series import InvoiceNumberAssigned
from domain.order import ExpansionRequested, Method, OrderFulfilled
from handlers.runtime.worker import Duties, working
from infra.event_log.log import Log
from tests.support.at_work import eventually
from tests.support.broker import Broker
from tests.support.cluster import REPLICATED, STREAMS, Cluster
from tests.support.in_memory import InMemory, check_out, confirm, order
from tests.support.sending import SENDERS, Service, create_pbx

pytestmark = [
    pytest.mark.long,
    pytest.mark.slow,
    # nats-py leaks a socket if a server goes away during the handshake; the next connection goes elsewhere
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

FROZEN_S = 5.0


@pytest.fixture(name="cluster")
def _cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as cluster:
        yield cluster
    gc.collect()  # collect those sockets here, so that no other test gets their warning


class Buying:
    """A thread that keeps buying and counts the accepted orders."""

    def __init__(self, store: InMemory) -> None:
        self.orders = 0
        self._dependencies = store
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._buy, daemon=True)

    def _buy(self) -> None:
        for number in count(1):
            if self._stopping.is_set():
                return
            order_id = f"order-{number}"
            requested = self._dependencies.ask(order(order_id, extensions=1)).context.recorded[0].event
            assert isinstance(requested, ExpansionRequested)
            self._dependencies.ask(check_out(Method.OFFLINE, order_id))
            self._dependencies.ask(confirm(requested.quote.total, order_id))
            self.orders = number
            self._stopping.wait(0.1)

    def __enter__(self) -> Buying:  # noqa: PYI034 - Self would say the same
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def flow(self, more: int, what: str) -> None:
        """Wait until further orders get through to their invoices."""
        invoiced = len(self._dependencies.all(InvoiceIssued))
        eventually(lambda: len(self._dependencies.all(InvoiceIssued)) >= invoiced + more, what)


@pytest.fixture(name="bought")
def _bought(postgres: Log, database_url: str, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Buying]:
    """Buy in the background. At the end, check that every order is complete and that the stream equals the log.

    Messages fetched when the broker went away are redelivered after the acknowledgement timeout, which is shorter here.
    """
    monkeypatch.setattr(infra.broker.nats, "ACK_S", 10)
    store = InMemory(log=postgres).opened()
    duties = Duties(senders=SENDERS, limits=REPLICATED)
    with working(store.dependencies, database_url, cluster.url, duties) as worker:
        with Buying(store) as buying:
            buying.flow(3, "invoices at first")
            assert cluster.replicas() == dict.fromkeys(STREAMS, 3)
            yield buying
        bought = buying.orders
        eventually(lambda: len(store.all(InvoiceEmailed)) == bought, "every mail")
        eventually(cluster.whole, "three servers that agree")
        eventually(lambda: worker.failing is None, "a good report")
        answer = eventually(lambda: _answer_at(cluster), "the answer to a command")
        assert answer
        assert answer["data"]["outcome"] == "accepted"
        broker = Broker(cluster.url)
        eventually(lambda: broker.count() >= store.head, "every event on its stream")

    assert len(store.all(OrderFulfilled)) == len(store.all(InvoiceIssued)) == bought
    assert [event.sequence for event in store.all(InvoiceNumberAssigned)] == list(range(1, bought + 1))
    assert broker.ordered_positions() == list(range(1, store.head + 1))
    assert broker.dead_letters() == []


def _answer_at(cluster: Cluster) -> dict[str, Any] | None:
    """The answer to a service that retries with the same id until it gets one, as after a server went away."""
    with suppress(NatsTimeout):
        return Service(cluster.url).ask(create_pbx())
    return None


def test_killed_and_paused_servers_under_load_lose_and_reorder_nothing(cluster: Cluster, bought: Buying) -> None:
    leader = cluster.leader()
    leader.kill()
    bought.flow(3, "invoices without the leader")
    leader.start()

    follower = cluster.follower()
    follower.kill()
    bought.flow(3, "invoices without a follower")
    follower.start()

    frozen = cluster.leader()
    frozen.freeze()
    time.sleep(FROZEN_S)
    frozen.thaw()
    bought.flow(3, "invoices after the pause")


def test_a_partitioned_leader_under_load_loses_and_reorders_nothing(cluster: Cluster, bought: Buying) -> None:
    """It still listens to its clients but has no quorum; the others elect a new leader."""
    parted = cluster.leader()
    cluster.part(parted)
    bought.flow(10, "invoices during the partition")
    eventually(lambda: cluster.leader() is not parted, "another leader")
    cluster.join()
    bought.flow(3, "invoices after that")
