"""The worker: it reports that a server is down, and continues once the server is back."""

from __future__ import annotations

import asyncio
import gc
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
from faststream.nats import NatsBroker
from nats.js import JetStreamContext

import handlers.messaging.reactions_consumer
import handlers.runtime.worker
import infra.broker.nats
import infra.broker.relay
from domain.invoice import InvoiceEmailed, InvoiceIssued
from domain.order import CancelOrder, ExpansionRequested, Method, OrderExpired, OrderFulfilled
from handlers.messaging.commands_consumer import CommandsConsumer
from handlers.messaging.precedence import Precedence
from handlers.messaging.reactions_consumer import Check, check_subscribers, connect, consuming_reactions
from handlers.reactions import ISSUE_CREDIT_NOTE, ISSUE_INVOICE
from handlers.runtime.worker import TAKE_OVER_EVERY_S, Worker, expire_orders, working
from infra.broker.nats import BrokerUnavailable, addresses, connected, provision
from infra.broker.relay import Relay
from infra.event_log.log import Log
from projections.billing import BILLING
from projections.maintenance.runner import bring_up_to_date, running
from projections.orders import ORDERS
from tests.support.at_work import SOON_S, AtWork, at_work, eventually
from tests.support.broker import Broker, OwnNats
from tests.support.databases import ServerAddresses, as_owner
from tests.support.examples import DEADLINE
from tests.support.in_memory import InMemory, check_out, complete, confirm, order
from tests.support.lines import Line
from tests.support.ports import free_port

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def _watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that detect a lost connection soon."""
    monkeypatch.setattr(handlers.runtime.worker, "WATCH_EVERY_S", 0.1)


@pytest.fixture(name="broker")
def _broker(trunkline: AtWork, nats_url: str) -> Broker:
    return Broker(nats_url)


# --- NATS ----------------------------------------------------------------------------------------------------------


def test_without_nats_nothing_begins_and_the_setting_is_named(
    postgres: Log, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infra.broker.nats, "CONNECT_S", 0.5)
    port = free_port()
    with (
        pytest.raises(BrokerUnavailable, match=rf"TRUNKLINE_NATS_URL \(127\.0\.0\.1:{port}\) is unavailable"),
        working(InMemory(log=postgres).dependencies, database_url, f"nats://wonka:everlasting@127.0.0.1:{port}"),
    ):
        pytest.fail("it began")
    assert not [thread for thread in threading.enumerate() if thread.name == "worker"]


def test_a_password_that_nats_rejects_is_reported_without_repeating_it(
    postgres: Log, database_url: str, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infra.broker.nats, "CONNECT_S", 0.5)
    wrong = f"nats://slugworth:stolen-recipe@{nats_url.rpartition('@')[2]}"
    with (
        pytest.raises(BrokerUnavailable, match="TRUNKLINE_NATS_URL") as unavailable,
        working(InMemory(log=postgres).dependencies, database_url, wrong),
    ):
        pytest.fail("it began")
    assert "stolen-recipe" not in str(unavailable.value)


@pytest.fixture(name="own_nats")
def _own_nats(tmp_path: Path) -> Iterator[OwnNats]:
    with OwnNats(tmp_path / "nats", free_port()) as server:
        yield server


OUTAGE_S = 3.0
WINDOW_S = 1.0
"""A short duplicate window, so that NATS is down for longer, as five minutes are longer than two."""


def test_while_nats_is_down_orders_are_accepted_and_health_says_so_and_nothing_is_lost(
    database_url: str, own_nats: OwnNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infra.broker.nats, "DUPLICATES_S", WINDOW_S)
    monkeypatch.setattr(infra.broker.relay, "PUBLISH_S", 0.5)
    monkeypatch.setattr(infra.broker.nats, "CONNECT_S", 0.5)
    with at_work(database_url, own_nats.url) as trunkline:
        before = trunkline.buy()
        trunkline.until(InvoiceEmailed, before)

        own_nats.stop()
        stopped = time.monotonic()
        meanwhile = trunkline.buy()
        report = eventually(lambda: not (found := trunkline.running.health())["ok"] and found, "a bad report")
        assert isinstance(report, dict)
        time.sleep(max(0.0, stopped + OUTAGE_S - time.monotonic()))
        later = trunkline.buy()
        assert trunkline.all(OrderFulfilled, meanwhile) == trunkline.all(OrderFulfilled, later) == []

        own_nats.start()
        trunkline.until(InvoiceEmailed, meanwhile)
        trunkline.until(InvoiceEmailed, later)
        eventually(lambda: trunkline.running.health()["ok"], "a good report")
        broker = Broker(own_nats.url)
        eventually(lambda: len(broker.events()) == len(trunkline.history()), "every event on its stream")

        assert broker.positions() == [recorded.position for recorded in trunkline.history()]
        assert len(trunkline.mails("Invoice")) == 3


def test_a_deleted_consumer_is_noticed_and_created_again(trunkline: AtWork, broker: Broker) -> None:
    broker.delete_consumer("fulfil_order")
    order_id = trunkline.buy()

    trunkline.until(InvoiceEmailed, order_id)
    eventually(lambda: trunkline.running.health()["ok"], "a good report")


def test_wiped_streams_are_rebuilt_and_pending_work_is_done(trunkline: AtWork, broker: Broker) -> None:
    """The mail server is down, so that work is pending when the broker loses it."""
    trunkline.around.catcher.refusal = "451 4.3.0 the post office is closed"
    order_id = trunkline.buy()
    trunkline.until(InvoiceIssued, order_id)
    eventually(lambda: len(broker.events()) == len(trunkline.history()), "every event on its stream")

    broker.wipe()
    trunkline.around.catcher.refusal = None

    trunkline.until(InvoiceEmailed, order_id)
    eventually(lambda: broker.positions() == [recorded.position for recorded in trunkline.history()], "all of it again")
    assert len(trunkline.all(OrderFulfilled, order_id)) == len(trunkline.all(InvoiceIssued, order_id)) == 1


# --- PostgreSQL ----------------------------------------------------------------------------------------------------


def cut_all_lines(owner: psycopg.Connection, name: object) -> int:
    """Terminate all sessions of a database; returns their number."""
    query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
    return len(owner.execute(query, (name,)).fetchall())


def test_after_its_database_connections_are_cut_everything_continues(
    trunkline: AtWork, servers: ServerAddresses
) -> None:
    first = trunkline.buy()
    trunkline.until(InvoiceEmailed, first)
    with psycopg.connect(as_owner(servers, trunkline.running.database_url)) as owner:
        assert cut_all_lines(owner, owner.info.dbname) > 5

    second = trunkline.buy()
    trunkline.until(InvoiceEmailed, second)
    eventually(lambda: trunkline.running.health()["ok"], "a good report")
    head = trunkline.dependencies.log.head()
    eventually(lambda: set(trunkline.running.health()["projections"].values()) == {head}, "all projections")
    assert httpx.get(f"{trunkline.url}/health", trust_env=False).status_code == 200


def test_while_its_database_is_down_health_fails_and_later_everything_continues(
    trunkline: AtWork, servers: ServerAddresses
) -> None:
    """Connections are refused, which is what a restart of PostgreSQL looks like to a client."""
    name = psycopg.conninfo.conninfo_to_dict(trunkline.running.database_url)["dbname"]
    with psycopg.connect(servers.database_url, autocommit=True) as owner:
        owner.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
        cut_all_lines(owner, name)
        answer = httpx.get(f"{trunkline.url}/health", trust_env=False)
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:trunkline:problem:unavailable")
        eventually(lambda: trunkline.worker.failing, "a worker that reports it")
        owner.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'.encode())

    eventually(lambda: trunkline.running.health()["ok"], "a good report")
    order_id = trunkline.buy()
    trunkline.until(InvoiceEmailed, order_id)


def test_a_worker_that_fails_says_what_is_wrong_until_it_works_again(
    trunkline: AtWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_conn: object, _name: str) -> int:
        raise psycopg.OperationalError("the database is having its tea")

    with monkeypatch.context() as patch:
        patch.setattr(infra.broker.relay, "position_of", away)
        report = eventually(lambda: not (found := trunkline.running.health())["ok"] and found, "a bad report")
        assert isinstance(report, dict)
        assert report["worker"] == "the database is having its tea"

        def bad_answer() -> httpx.Response | None:  # while it restarts, it does not know yet
            answer = httpx.get(f"{trunkline.url}/health", trust_env=False)
            return answer if answer.status_code == 503 else None

        answer = eventually(bad_answer, "a bad answer")
        assert answer
        assert answer.json()["ok"] is False

    eventually(lambda: trunkline.running.health()["worker"] == "working", "a good report")
    order_id = trunkline.buy()
    trunkline.until(InvoiceEmailed, order_id)


def test_a_halted_projection_fails_health_and_is_named_while_everything_else_continues(
    trunkline: AtWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(_rows: object, _recorded: object) -> None:
        raise ValueError("the gobstopper is not everlasting")

    runner = next(runner for runner in trunkline.running.runners if runner.projection is BILLING)
    monkeypatch.setattr(runner, "projection", replace(BILLING, fold=poisoned))
    order_id = trunkline.buy()

    eventually(lambda: httpx.get(f"{trunkline.url}/health", trust_env=False).status_code == 503, "a 503")
    report = httpx.get(f"{trunkline.url}/health", trust_env=False).json()
    assert report["ok"] is False
    assert re.fullmatch(r"position \d+: ValueError: the gobstopper is not everlasting", report["halted"]["billing"])
    trunkline.until(InvoiceEmailed, order_id)
    head = trunkline.dependencies.log.head()
    eventually(lambda: trunkline.running.health()["projections"]["orders"] >= head, "the orders' projection")
    assert trunkline.running.health()["projections"]["billing"] < head


# --- time ----------------------------------------------------------------------------------------------------------


@pytest.fixture(name="on_postgres")
def _on_postgres(postgres: Log) -> InMemory:
    """An application with its log on PostgreSQL, and mail and payment provider in memory."""
    return InMemory(log=postgres)


def test_orders_not_paid_in_time_are_closed_and_no_others(on_postgres: InMemory, database_url: str) -> None:
    on_postgres.paid()
    for number in (2, 3, 4):
        on_postgres.ask(order(f"order-{number}", extensions=1))
    on_postgres.ask(check_out(Method.OFFLINE, "order-3"))
    on_postgres.ask(CancelOrder(at=on_postgres.clock.now(), order_id="order-4", account_id="acme"))
    bring_up_to_date(database_url, on_postgres.dependencies.log, SOON_S)

    expire_orders(on_postgres.dependencies, database_url)
    assert on_postgres.all(OrderExpired) == [], "there is still time"

    on_postgres.clock.at = DEADLINE
    expire_orders(on_postgres.dependencies, database_url)
    expire_orders(on_postgres.dependencies, database_url)
    assert {event.order_id for event in on_postgres.all(OrderExpired)} == {"order-2", "order-3"}
    assert len(on_postgres.all(OrderExpired)) == 2


def test_an_order_that_was_paid_while_the_read_model_lagged_is_not_closed(
    on_postgres: InMemory, database_url: str
) -> None:
    """The order itself decides; the read model only finds candidates."""
    on_postgres.approved()
    bring_up_to_date(database_url, on_postgres.dependencies.log, SOON_S)
    on_postgres.ask(complete())
    on_postgres.clock.at = DEADLINE
    expire_orders(on_postgres.dependencies, database_url)

    assert on_postgres.all(OrderExpired) == []


def test_an_order_that_only_the_read_model_knows_is_left_alone(
    on_postgres: InMemory, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_postgres.ordered()
    on_postgres.clock.at = DEADLINE
    monkeypatch.setattr(handlers.runtime.worker, "unpaid_in_time", lambda _conn, _at: ["order-4711", "order-1"])
    expire_orders(on_postgres.dependencies, database_url)

    assert on_postgres.one(OrderExpired).order_id == "order-1"


def test_the_worker_closes_orders_by_itself(
    on_postgres: InMemory, database_url: str, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers.runtime.worker, "EXPIRY_EVERY_S", 0.1)
    on_postgres.ordered()
    with (
        running(database_url, on_postgres.dependencies.log, [ORDERS]),
        working(on_postgres.dependencies, database_url, nats_url),
    ):
        on_postgres.clock.at = DEADLINE
        eventually(lambda: on_postgres.all(OrderExpired), "the expiry of the order")


def test_a_subscriber_whose_task_was_cancelled_is_noticed_and_restarted(
    trunkline: AtWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nats-py cancels it if a connection breaks at the wrong moment, and FastStream does not restart it."""
    monkeypatch.setattr(infra.broker.nats, "ACK_S", 5)  # its pending fetch is redelivered after that
    ended: list[str] = []
    real = check_subscribers

    def cancel_first(broker: NatsBroker) -> None:
        if not ended:
            subscriber = next(iter(broker.subscribers))
            task = subscriber.tasks[-1]  # type: ignore[attr-defined]  # the one that fetches; the other continues
            task.cancel()
            ended.append(task.get_name())
        real(broker)

    monkeypatch.setattr(handlers.messaging.reactions_consumer, "check_subscribers", cancel_first)
    eventually(lambda: ended, "the end of a subscriber")
    order_id = trunkline.buy()
    trunkline.until(InvoiceEmailed, order_id)
    eventually(lambda: trunkline.running.health()["ok"], "a good report")


def line_to(nats_url: str) -> Line:
    """A proxied connection to a server."""
    at = urlsplit(nats_url)
    assert at.hostname
    assert at.port
    return Line(at.port, at.hostname)


def by_line(nats_url: str, line: Line) -> str:
    """The same server through the proxy."""
    at = urlsplit(nats_url)
    return nats_url.replace(f"{at.hostname}:{at.port}", f"127.0.0.1:{line.port}")


def test_reactions_on_a_silently_dead_connection_are_noticed_and_restarted_on_another(
    on_postgres: InMemory, database_url: str, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This simulates a server cut off from its cluster: everything else is connected elsewhere and works.

    NATS itself would notice after minutes; until then there seems to be nothing to fetch.
    """
    monkeypatch.setattr(infra.broker.nats, "ACK_S", 5)
    with closing(line_to(nats_url)) as line:
        first = iter([[by_line(nats_url, line)]] * 2)  # for the reactions and for the numbering ones
        monkeypatch.setattr(handlers.messaging.reactions_consumer, "addresses", lambda url: next(first, addresses(url)))
        with working(on_postgres.dependencies, database_url, nats_url):
            on_postgres.paid()
            eventually(lambda: on_postgres.all(InvoiceEmailed), "the mail")
            assert next(first, None) is None

            line.cut()
            on_postgres.ask(order("order-2", extensions=1))
            on_postgres.ask(check_out(Method.OFFLINE, "order-2"))
            on_postgres.ask(confirm(on_postgres.all(ExpansionRequested)[-1].quote.total, "order-2"))
            eventually(lambda: len(on_postgres.all(InvoiceEmailed)) == 2, "the second mail")


def test_one_worker_at_a_time_numbers_documents_and_another_takes_over(
    postgres: Log, database_url: str, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dependencies = InMemory(log=postgres).dependencies
    numbering: list[object] = []
    real = handlers.messaging.reactions_consumer.consuming_reactions

    @asynccontextmanager
    async def watched(*given: Any) -> AsyncIterator[Check]:  # noqa: ANN401 - passed on
        async with real(*given) as check_reactions:
            if set(given[-1]) == {ISSUE_INVOICE, ISSUE_CREDIT_NOTE}:
                numbering.append(given)
            yield check_reactions

    monkeypatch.setattr(handlers.runtime.worker, "consuming_reactions", watched)
    first, second = (Worker(dependencies, database_url, nats_url) for _ in range(2))
    first.start()
    eventually(lambda: numbering, "a numbering worker")
    second.start()
    try:
        time.sleep(3 * TAKE_OVER_EVERY_S)
        assert len(numbering) == 1
    finally:
        first.stop()
    try:
        eventually(lambda: len(numbering) == 2, "the other")
    finally:
        second.stop()


def test_a_connection_cancelled_while_connecting_is_closed(nats_url: str) -> None:
    """Otherwise Python warns of an unclosed socket, and warnings are errors here."""

    async def cancel_sooner_and_later() -> None:
        for moment in range(40):
            connecting = asyncio.create_task(connect(NatsBroker([nats_url])))
            for _ in range(moment):
                await asyncio.sleep(0.0001)
            connecting.cancel()
            with suppress(asyncio.CancelledError):
                await (await connecting).close()
            del connecting
            await asyncio.sleep(0.002)
            gc.collect()

    asyncio.run(cancel_sooner_and_later())
    gc.collect()


@pytest.mark.parametrize("moment", range(4))
def test_a_connection_that_breaks_while_closing_cancels_nothing(nats_url: str, moment: int) -> None:
    """Otherwise a worker would end silently and for good."""

    async def close_soon_after() -> None:
        with closing(line_to(nats_url)) as line:
            async with connected(by_line(nats_url, line)) as client:
                line.hang_up()
                while not client.is_reconnecting:  # noqa: ASYNC110 - must react in the same moment
                    await asyncio.sleep(0)
                for _ in range(moment):
                    await asyncio.sleep(0)
                raise EOFError("what was wrong")

    with pytest.raises(EOFError, match="what was wrong"):
        asyncio.run(close_soon_after())


def test_reactions_cancelled_repeatedly_while_ending_leave_no_connection_open(
    on_postgres: InMemory, nats_url: str
) -> None:
    """A worker cancels tasks that do not end; an open connection would cause a warning, as above."""

    async def react(begun: asyncio.Event) -> None:
        with ThreadPoolExecutor(1) as threads:
            async with consuming_reactions(nats_url, on_postgres.dependencies, threads, Precedence(), ()):
                begun.set()
                await asyncio.sleep(60)

    async def cancel() -> None:
        begun = asyncio.Event()
        task = asyncio.create_task(react(begun))
        await begun.wait()
        while not task.done():
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.sleep(0.2)

    asyncio.run(cancel())
    gc.collect()


# --- supervised tasks ----------------------------------------------------------------------------------------------


def test_the_worker_restarts_even_if_a_task_loses_its_cancellation(
    postgres: Log, database_url: str, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Python 3.12, `asyncio.wait_for` loses a cancellation that arrives together with the result."""
    begun: list[Relay] = []
    deaf: list[bool] = []

    async def breaks_once(relay: Relay, _client: object, stopping: threading.Event) -> None:
        begun.append(relay)
        if len(begun) == 1:
            await asyncio.sleep(0.1)
            raise ConnectionError("cut")
        await asyncio.to_thread(stopping.wait)

    async def deaf_once(_worker: Worker) -> None:
        deaf.append(True)
        if len(deaf) == 1:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(30)
            await asyncio.sleep(30)

    monkeypatch.setattr(Relay, "run", breaks_once)
    monkeypatch.setattr(Worker, "_expire", deaf_once)
    monkeypatch.setattr(handlers.runtime.worker, "RESTART_DELAY_S", 0.1)
    with working(InMemory(log=postgres).dependencies, database_url, nats_url) as worker:
        eventually(lambda: len(begun) == 2, "another start", within_s=25)
        assert worker.failing is None


def test_the_worker_restarts_if_a_library_cancels_a_task(
    postgres: Log, database_url: str, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nats-py cancels tasks that wait for a message when it reconnects."""
    begun: list[CommandsConsumer] = []

    async def cancelled_once(commands: CommandsConsumer, stopping: threading.Event) -> None:
        begun.append(commands)
        if len(begun) == 1:
            await asyncio.sleep(0.1)
            raise asyncio.CancelledError
        await asyncio.to_thread(stopping.wait)

    monkeypatch.setattr(CommandsConsumer, "run", cancelled_once)
    with working(InMemory(log=postgres).dependencies, database_url, nats_url) as worker:
        eventually(lambda: len(begun) == 2, "another start", within_s=25)
        assert worker.failing is None


def test_the_worker_restarts_if_a_library_cancels_its_start(
    postgres: Log, database_url: str, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[JetStreamContext] = []

    async def cancelled_the_second_time(jetstream: JetStreamContext, *given: Any) -> None:  # noqa: ANN401 - passed on
        begun.append(jetstream)
        if len(begun) == 2:
            raise asyncio.CancelledError
        await provision(jetstream, *given)

    async def broken(_commands: CommandsConsumer, _stopping: threading.Event) -> None:
        raise EOFError

    monkeypatch.setattr(handlers.runtime.worker, "provision", cancelled_the_second_time)
    monkeypatch.setattr(CommandsConsumer, "run", broken)
    with working(InMemory(log=postgres).dependencies, database_url, nats_url):
        eventually(lambda: len(begun) == 3, "another start", within_s=25)
