"""The relay on a real NATS: each event is on the stream once and in order, whatever breaks."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import psycopg
import pytest
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig

import infra.broker.relay
from domain.order import PaymentCaptured
from domain.payment_reference import PaymentReferenceClaimed
from handlers.contract.events import encoded
from handlers.runtime.worker import working
from infra.broker.nats import EVENTS, connected, provision
from infra.broker.relay import NAME, AnotherLog, Encode, Relay, ask_for_rebuild
from infra.event_log.log import Change, Log
from infra.postgres.connections import connect
from infra.postgres.positions import position_of
from infra.recorded import Cause, Recorded
from tests.support.at_work import eventually
from tests.support.broker import Broker
from tests.support.databases import MASTER_KEY, ServerAddresses, as_owner
from tests.support.examples import NOW
from tests.support.in_memory import InMemory, order

pytestmark = pytest.mark.long

TRUNKLINE = str(Path(sys.executable).with_name("trunkline"))


@pytest.fixture(name="broker")
def _broker(nats_url: str) -> Broker:
    return Broker(nats_url)


@pytest.fixture(name="acme")
def _acme(postgres: Log) -> InMemory:
    """ACME after a whole purchase, not yet published."""
    return InMemory(log=postgres).settled()


class Relaying:
    """A relay in its own thread."""

    def __init__(self, database_url: str, log: Log, url: str, encode: Encode = encoded) -> None:
        self.relay = Relay(database_url, log, encode)
        self.failure: BaseException | None = None
        self._url = url
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        async def run() -> None:
            async with connected(self._url) as client:
                await provision(client.jetstream(), {})
                await self.relay.run(client, self._stopping)

        try:
            asyncio.run(run())
        except BaseException as error:  # noqa: BLE001 - the test checks it
            self.failure = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()


@contextmanager
def relaying(store: InMemory, database_url: str, broker: Broker, encode: Encode = encoded) -> Iterator[Relay]:
    with Relaying(database_url, store.dependencies.log, broker.url, encode) as running:
        yield running.relay


def saved(database_url: str) -> int:
    with connect(database_url) as conn:
        return position_of(conn, NAME)


def all_there(store: InMemory, broker: Broker) -> bool:
    return broker.positions() == list(range(1, store.head + 1))


def test_its_position_is_saved_once_everything_is_acknowledged(
    acme: InMemory, database_url: str, broker: Broker
) -> None:
    with relaying(acme, database_url, broker) as relay:
        eventually(lambda: saved(database_url) == acme.head, "the position")
        assert relay.position == acme.head
        assert relay.active
    assert all_there(acme, broker)


def test_after_the_duplicate_window_nothing_is_published_twice(
    acme: InMemory, database_url: str, broker: Broker
) -> None:
    """A crash before the position was saved, after which the server has forgotten all message ids."""
    with relaying(acme, database_url, broker):
        eventually(lambda: saved(database_url) == acme.head, "the position")
    with connect(database_url) as conn:
        conn.execute("UPDATE read.positions SET position = 3 WHERE name = %s", (NAME,))
    broker.forget_ids()
    acme.ask(order("order-2", extensions=1))

    with relaying(acme, database_url, broker):
        eventually(lambda: saved(database_url) == acme.head, "the position")
    assert all_there(acme, broker)


def test_events_lost_by_the_stream_are_published_again(acme: InMemory, database_url: str, broker: Broker) -> None:
    """The broker was restored from a backup older than the saved position."""
    with relaying(acme, database_url, broker):
        eventually(lambda: saved(database_url) == acme.head, "the position")
    bodies = [message.data for message in broker.events()]
    broker.lose_after(4)

    with relaying(acme, database_url, broker):
        eventually(lambda: len(broker.events()) == acme.head, "the lost events")
    assert [message.data for message in broker.events()] == bodies


def test_a_foreign_message_in_between_neither_hides_nor_reorders_an_event(
    acme: InMemory, database_url: str, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the stream sequence of a message in flight; the messages after that one must not overtake it."""
    encoding = threading.Event()
    intruded = threading.Event()

    def slowly(recorded: Recorded) -> bytes:
        if recorded.position == 6:
            encoding.set()
            intruded.wait(20)
        return encoded(recorded)

    monkeypatch.setattr(infra.broker.relay, "EVENTS_PER_PAGE", 5)
    with relaying(acme, database_url, broker, slowly):
        encoding.wait(20)
        for number in range(3):
            broker.publish("trunkline.events.v1.order.PaymentCaptured", b"not ours", {"x": str(number)})
        intruded.set()
        eventually(lambda: saved(database_url) == acme.head, "the position")

    ours = [message for message in broker.events() if message.data != b"not ours"]
    assert [json.loads(message.data or b"")["position"] for message in ours] == [
        str(position) for position in range(1, acme.head + 1)
    ]


def test_a_rebuild_publishes_the_same_messages_and_consumers_stay_and_get_them_again(
    acme: InMemory, database_url: str, broker: Broker
) -> None:
    with working(acme.dependencies, database_url, broker.url):
        eventually(lambda: len(broker.events()) == acme.head, "every event on its stream")
        bodies = [message.data for message in broker.events()]
        broker.add_consumer(ConsumerConfig(durable_name="books"))
        assert broker.fetched("books", acme.head) == bodies

        told = rebuild(database_url, broker)
        assert f"Published {acme.head} events again" in told

        eventually(lambda: [message.data for message in broker.events()] == bodies, "the same messages")
        assert broker.fetched("books", acme.head) == bodies
        assert saved(database_url) == acme.head


def test_a_rebuild_works_around_a_duplicate_window_that_has_not_passed(
    acme: InMemory, database_url: str, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def only_purge(jetstream: JetStreamContext) -> None:
        await jetstream.purge_stream(EVENTS)

    monkeypatch.setattr(infra.broker.relay, "empty", only_purge)
    with relaying(acme, database_url, broker):
        eventually(lambda: saved(database_url) == acme.head, "the position")
        bodies = [message.data for message in broker.events()]
        with connect(database_url) as conn:
            ask_for_rebuild(conn)
        eventually(lambda: saved(database_url) == acme.head, "the position again")
    assert [message.data for message in broker.events()] == bodies


def test_without_an_active_relay_the_command_rebuilds_by_itself(
    acme: InMemory, database_url: str, broker: Broker
) -> None:
    with relaying(acme, database_url, broker):
        eventually(lambda: saved(database_url) == acme.head, "the position")
    bodies = [message.data for message in broker.events()]
    broker.wipe()
    rebuild(database_url, broker)
    assert [message.data for message in broker.events()] == bodies


def rebuild(database_url: str, broker: Broker) -> str:
    given = {
        "TRUNKLINE_DATABASE_URL": database_url,
        "TRUNKLINE_NATS_URL": broker.url,
        "TRUNKLINE_MASTER_KEY": b64encode(MASTER_KEY).decode(),
    }
    return subprocess.run(
        [TRUNKLINE, "relay", "rebuild"],
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout


def test_a_stream_that_was_deleted_is_noticed_and_filled_again(
    acme: InMemory, database_url: str, broker: Broker
) -> None:
    with working(acme.dependencies, database_url, broker.url) as worker:
        eventually(lambda: len(broker.events()) == acme.head, "every event on its stream")
        broker.delete_stream(EVENTS)
        acme.ask(order("order-2", extensions=1))
        eventually(lambda: all_there(acme, broker), "all of it again")
        eventually(lambda: worker.failing is None, "a good report")


def test_a_stream_of_another_log_is_not_written_to(
    acme: InMemory, database_url: str, broker: Broker, memory: Log
) -> None:
    with relaying(acme, database_url, broker):
        eventually(lambda: saved(database_url) == acme.head, "the position")
    with connect(database_url) as conn:
        conn.execute("DELETE FROM read.positions")
    strange = InMemory(log=memory).opened()
    with Relaying(database_url, strange.dependencies.log, broker.url) as running:
        eventually(lambda: running.failure, "the report of the failure")
    assert isinstance(running.failure, AnotherLog)
    assert "trunkline relay rebuild" in str(running.failure)
    assert len(broker.events()) == acme.head


# --- a poison event ------------------------------------------------------------------------------------------------


def test_an_event_that_cannot_be_encoded_stops_the_relay_and_is_named(
    acme: InMemory, database_url: str, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events before it are published, no later event overtakes it, and health says where and why."""
    monkeypatch.setattr(infra.broker.relay, "BLOCKED_S", 0.05)
    poisoned = threading.Event()
    poisoned.set()

    def told(recorded: Recorded) -> bytes:
        if isinstance(recorded.event, PaymentCaptured) and poisoned.is_set():
            raise ValueError("the gobstopper is not everlasting")
        return encoded(recorded)

    captured = next(
        fact.position for fact in acme.dependencies.log.history() if isinstance(fact.event, PaymentCaptured)
    )
    with relaying(acme, database_url, broker, told) as relay:
        eventually(lambda: relay.blocked, "the report of the failure")
        assert relay.blocked == f"position {captured}: ValueError: the gobstopper is not everlasting"
        eventually(lambda: broker.positions() == list(range(1, captured)), "the events before it")
        assert saved(database_url) == captured - 1

        poisoned.clear()
        eventually(lambda: all_there(acme, broker), "all of it")
        eventually(lambda: relay.blocked is None, "a good report")


def test_a_stored_event_that_cannot_be_read_stops_the_relay_and_health_names_it(
    acme: InMemory, database_url: str, broker: Broker, servers: ServerAddresses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infra.broker.relay, "BLOCKED_S", 0.05)
    with tampered(servers, database_url, 5), working(acme.dependencies, database_url, broker.url) as worker:
        blocked = eventually(lambda: worker.relay.blocked, "the report of the failure")
        assert blocked is not None
        assert "at position 5" in blocked
        assert broker.positions() == [1, 2, 3, 4]


@contextmanager
def tampered(servers: ServerAddresses, database_url: str, position: int) -> Iterator[None]:
    """A row whose topic is unknown to every version of the application."""
    with psycopg.connect(as_owner(servers, database_url), autocommit=True) as owner:
        owner.execute("ALTER TABLE log.events DISABLE TRIGGER ALL")
        owner.execute("UPDATE log.events SET topic = 'order.TicketFound.v9' WHERE position = %s", (position,))
        yield


def test_a_message_too_large_for_nats_stops_the_relay_and_is_named(
    acme: InMemory, database_url: str, broker: Broker
) -> None:
    def swollen(recorded: Recorded) -> bytes:
        return encoded(recorded) + (b" " * 1024 * 1024 if recorded.position == 3 else b"")

    with relaying(acme, database_url, broker, swollen) as relay:
        blocked = eventually(lambda: relay.blocked, "the report of the failure")
        assert blocked is not None
        assert blocked.startswith("position 3: TooLarge: its message has 10")
        assert broker.positions() == [1, 2]


# --- several relays and their deaths -------------------------------------------------------------------------------

KILLED = """
import asyncio, sys, threading
from handlers.contract.events import encoded
from infra.broker.nats import connected, provision
from infra.event_log.postgres_recorder import postgres_log
from infra.broker.relay import Relay
import infra.broker.relay
infra.broker.relay.EVENTS_PER_PAGE = 20

async def run(database_url, nats_url):
    with postgres_log(database_url, master_key=bytes(range(32))) as log:
        async with connected(nats_url) as client:
            await provision(client.jetstream(), {})
            await Relay(database_url, log, encoded).run(client, threading.Event())

asyncio.run(run(*sys.argv[1:]))
"""


@pytest.mark.slow
def test_after_the_active_relay_is_killed_another_takes_over_and_nothing_is_lost_or_doubled(
    acme: InMemory, database_url: str, broker: Broker
) -> None:
    """`kill -9` three times, each in the middle of thousands of events."""
    many(acme, 3000)
    environment = {**os.environ, "PYTHONPATH": "."}
    for kills in (1, 2, 3):
        process = subprocess.Popen([sys.executable, "-c", KILLED, database_url, broker.url], env=environment)
        eventually(lambda n=kills: broker.count() > n * 600, "some of it")  # type: ignore[misc]
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert broker.count() < acme.head
    with relaying(acme, database_url, broker):
        eventually(lambda: saved(database_url) == acme.head, "the position")
    assert broker.count() == acme.head
    assert broker.ordered_positions() == list(range(1, acme.head + 1))


def many(store: InMemory, count: int) -> None:
    """Many small events of many accounts, in large commits."""
    for number in range(0, count, 500):
        changes = [
            Change(f"payment_reference-{n}", 0, [PaymentReferenceClaimed(reference=f"r-{n}", order_id=f"order-{n}")])
            for n in range(number, min(number + 500, count))
        ]
        store.dependencies.log.append(changes, account_id=f"account-{number}", cause=Cause("admin:ada", "many"), at=NOW)


def test_two_relays_active_at_once_do_not_break_the_order(
    acme: InMemory, database_url: str, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay that lost its lock does not know it yet and continues with its messages in flight."""
    monkeypatch.setattr(infra.broker.relay, "only_one", lambda _conn, _name: True)
    monkeypatch.setattr(infra.broker.relay, "TRIES", 10_000)
    monkeypatch.setattr(infra.broker.relay, "RETRY_DELAY_S", 0.01)
    monkeypatch.setattr(infra.broker.relay, "EVENTS_PER_PAGE", 10)
    many(acme, 400)
    with relaying(acme, database_url, broker), relaying(acme, database_url, broker):
        eventually(lambda: broker.count() >= acme.head, "all of it")
    assert broker.ordered_positions() == list(range(1, acme.head + 1))
