"""Messages on a real NATS: what the relay publishes, and how deliveries are processed."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import dataclass
from itertools import product

import pytest
from nats.js.api import ConsumerConfig, RawStreamMsg

import handlers.messaging.reactions_consumer
import handlers.messaging.redelivery
import infra.broker.nats
import infra.broker.relay
from domain.invoice import InvoiceEmailed, InvoiceIssued
from domain.invoice_series import InvoiceNumberAssigned
from domain.order import ExpansionRequested, Method, OrderFulfilled, OrderPlaced, PaymentCaptured
from handlers.contract.events import encoded
from handlers.dependencies import Dependencies
from handlers.messaging.reactions_consumer import durable_consumers
from handlers.reactions import Reaction
from handlers.runtime.worker import working
from infra.broker.cloudevents import CloudEvent
from infra.broker.nats import DEAD_LETTER_SUBJECTS, EVENTS, connected, provision, subject_of
from infra.broker.relay import NAME as RELAY
from infra.broker.relay import Relay
from infra.event_log.log import Log
from infra.event_log.postgres_recorder import postgres_log
from infra.postgres.connections import connect
from infra.postgres.positions import position_of
from infra.recorded import Recorded
from tests.support.at_work import AtWork, eventually, without_streams
from tests.support.broker import Broker
from tests.support.databases import MASTER_KEY, ServerAddresses, as_program, fresh_database
from tests.support.examples import BUCKET, WONKA
from tests.support.in_memory import InMemory, check_out, complete, confirm, on_the_wire, order

REACTING = tuple(durable_consumers())


@pytest.fixture(name="broker")
def _broker(nats_url: str) -> Broker:
    return Broker(nats_url)


@pytest.fixture(name="on_postgres")
def _on_postgres(postgres: Log) -> InMemory:
    """An application with its log on PostgreSQL, and mail and payment provider in memory."""
    return InMemory(log=postgres)


def relayed(database_url: str, log: Log, broker: Broker) -> None:
    """Run a relay until every event is on its stream and the relay has saved its position."""

    async def run() -> None:
        stopping = threading.Event()
        async with connected(broker.url) as client:
            jetstream = client.jetstream()
            await provision(jetstream, {})
            running = asyncio.create_task(Relay(database_url, log, encoded).run(client, stopping))
            while not running.done():
                on_stream = (await jetstream.stream_info(EVENTS)).state.messages
                if on_stream >= len(list(log.history())) and relay_position(database_url) == log.head():
                    break
                await asyncio.sleep(0.01)
            stopping.set()
            await running

    asyncio.run(asyncio.wait_for(run(), 30))


def relay_position(database_url: str) -> int:
    with connect(database_url) as conn:
        return position_of(conn, RELAY)


# --- the relay -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """A whole purchase with a refund, as the relay published it."""

    history: list[Recorded]
    messages: list[RawStreamMsg]


@pytest.fixture(name="published", scope="module")
def _published(servers: ServerAddresses, template: str) -> Published:
    broker = Broker(without_streams(servers.nats_url))
    with (
        fresh_database(servers, template) as owner_url,
        postgres_log(database_url := as_program(owner_url), master_key=MASTER_KEY) as log,
    ):
        InMemory(log=log).refunded().settle()
        relayed(database_url, log, broker)
        return Published(list(log.history()), broker.events())


def test_every_event_is_published_once_in_order_under_its_own_id(published: Published) -> None:
    assert [CloudEvent.model_validate_json(message.data or b"") for message in published.messages] == [
        on_the_wire(recorded) for recorded in published.history
    ]
    for recorded, message in zip(published.history, published.messages, strict=True):
        assert message.subject == subject_of(type(recorded.event))
        assert message.headers is not None
        assert message.headers["Nats-Msg-Id"] == str(recorded.event_id)
        assert message.headers["Content-Type"] == "application/cloudevents+json"


def test_subjects_carry_no_id(published: Published) -> None:
    subjects = " ".join(str(message.subject) for message in published.messages)
    assert "trunkline.events.v1.order.PaymentCaptured" in subjects
    for part in ("acme", "order-1", "-"):
        assert part not in subjects


def test_messages_carry_no_personal_data(published: Published) -> None:
    everything = b"\n".join(
        (message.data or b"") + json.dumps(message.headers).encode() + str(message.subject).encode()
        for message in published.messages
    )
    assert b"PaymentCaptured" in everything
    for contact in (WONKA, BUCKET):
        for fact in (contact.email, contact.name, contact.company, *contact.address, "DE123456789"):
            assert fact.encode() not in everything, fact
    for fact in ("dora@yt.example", "token"):
        assert fact.encode() not in everything, fact


def test_after_a_restart_the_relay_continues_where_it_was(
    on_postgres: InMemory, database_url: str, broker: Broker
) -> None:
    on_postgres.paid()
    relayed(database_url, on_postgres.dependencies.log, broker)
    before = len(broker.events())
    on_postgres.settle()
    relayed(database_url, on_postgres.dependencies.log, broker)

    assert before < len(broker.events())
    assert broker.positions() == [recorded.position for recorded in on_postgres.dependencies.log.history()]


def test_events_published_before_a_crash_are_not_published_twice(
    on_postgres: InMemory, database_url: str, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_postgres.opened()
    relayed(database_url, on_postgres.dependencies.log, broker)
    on_postgres.ask(order())

    def power_cut(*_: object) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(infra.broker.relay, "save_position", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            relayed(database_url, on_postgres.dependencies.log, broker)
    assert len(broker.events()) == on_postgres.head
    assert relay_position(database_url) < on_postgres.head

    relayed(database_url, on_postgres.dependencies.log, broker)
    assert broker.positions() == [recorded.position for recorded in on_postgres.dependencies.log.history()]


def test_more_than_a_page_is_published_in_order(
    on_postgres: InMemory, database_url: str, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infra.broker.relay, "EVENTS_PER_PAGE", 3)
    on_postgres.settled()
    relayed(database_url, on_postgres.dependencies.log, broker)

    assert broker.positions() == [recorded.position for recorded in on_postgres.dependencies.log.history()]


def test_a_wiped_stream_is_rebuilt_from_the_log(on_postgres: InMemory, database_url: str, broker: Broker) -> None:
    on_postgres.settled()
    relayed(database_url, on_postgres.dependencies.log, broker)
    bodies = [message.data for message in broker.events()]
    broker.wipe()
    assert broker.events() == []

    relayed(database_url, on_postgres.dependencies.log, broker)

    assert [message.data for message in broker.events()] == bodies


def test_a_second_relay_waits_until_the_first_is_gone(on_postgres: InMemory, database_url: str, broker: Broker) -> None:
    on_postgres.settled()
    two = [
        threading.Thread(target=relayed, args=(database_url, on_postgres.dependencies.log, broker)) for _ in range(2)
    ]
    for thread in two:
        thread.start()
    for thread in two:
        thread.join()

    assert broker.positions() == [recorded.position for recorded in on_postgres.dependencies.log.history()]


# --- deliveries ----------------------------------------------------------------------------------------------------


def test_the_worker_catches_up_with_events_from_before_its_start(
    on_postgres: InMemory, database_url: str, broker: Broker
) -> None:
    on_postgres.paid()
    with working(on_postgres.dependencies, database_url, broker.url):
        eventually(lambda: on_postgres.all(InvoiceEmailed), "the mail")


def test_redelivering_everything_changes_nothing(on_postgres: InMemory, database_url: str, broker: Broker) -> None:
    with working(on_postgres.dependencies, database_url, broker.url):
        on_postgres.paid()
        eventually(lambda: on_postgres.all(InvoiceEmailed), "the mail")
        names = on_postgres.names()
        head = on_postgres.head
        eventually(lambda: len(broker.events()) == head, "every event on its stream")
        for number, message in enumerate(broker.events()):
            headers = {"Nats-Msg-Id": f"once-more-{number}"}
            broker.publish(str(message.subject), message.data or b"", headers)
        eventually(lambda: len(broker.events()) >= 2 * head and broker.idle(*REACTING), "idle consumers")

        assert on_postgres.names() == names
        assert len(on_postgres.mailer.messages) == 1
        assert broker.dead_letters() == []


def test_two_workers_share_the_work_and_do_nothing_twice(
    on_postgres: InMemory, database_url: str, broker: Broker
) -> None:
    with (
        working(on_postgres.dependencies, database_url, broker.url),
        working(on_postgres.dependencies, database_url, broker.url),
    ):
        on_postgres.opened()
        for number in range(1, 6):
            on_postgres.ask(order(f"order-{number}", extensions=1))
            on_postgres.ask(check_out(Method.OFFLINE, f"order-{number}"))
            total = on_postgres.all(ExpansionRequested)[-1].quote.total
            on_postgres.ask(confirm(total, f"order-{number}"))
        eventually(lambda: len(on_postgres.all(InvoiceEmailed)) == 5, "five mails")
        eventually(lambda: len(broker.events()) == on_postgres.head, "every event on its stream")
        eventually(lambda: broker.idle(*REACTING), "idle consumers")

    assert len(on_postgres.all(OrderFulfilled)) == len(on_postgres.all(InvoiceIssued)) == 5
    assert [event.sequence for event in on_postgres.all(InvoiceNumberAssigned)] == [1, 2, 3, 4, 5]
    assert broker.positions() == [recorded.position for recorded in on_postgres.dependencies.log.history()]


def test_a_slow_consumer_blocks_nobody_and_misses_nothing(trunkline: AtWork, broker: Broker) -> None:
    """Another service's consumer: it has fetched messages and does not acknowledge them."""
    trunkline.until(InvoiceEmailed, trunkline.buy(recording_minutes=100))
    broker.add_consumer(ConsumerConfig(durable_name="slow", ack_wait=1))
    taken = broker.fetched("slow", 3, acknowledging=False)

    trunkline.until(InvoiceEmailed, trunkline.buy(recording_minutes=200))
    everything = [event.position for event in trunkline.history()]
    eventually(lambda: broker.positions() == everything, "every event on its stream")
    eventually(lambda: broker.idle(*REACTING), "all reactions")
    late = broker.fetched("slow", len(everything))

    assert [int(json.loads(body)["position"]) for body in taken] == everything[:3]
    assert sorted(int(json.loads(body)["position"]) for body in late) == everything


def test_while_the_mail_server_fails_the_mail_waits_and_orders_continue(trunkline: AtWork) -> None:
    trunkline.around.catcher.refusal = "451 4.3.0 the post office is closed"
    first = trunkline.buy()
    trunkline.until(InvoiceIssued, first)
    second = trunkline.buy()
    trunkline.until(InvoiceIssued, second)
    mail_invoice = Broker(trunkline.worker._nats_url)
    eventually(lambda: mail_invoice.consumer("mail_invoice").num_redelivered, "a second attempt")
    assert trunkline.all(InvoiceEmailed) == []

    trunkline.around.catcher.refusal = None
    for order_id in (first, second):
        trunkline.until(InvoiceEmailed, order_id)
    eventually(lambda: mail_invoice.idle(*REACTING), "idle consumers")
    assert len(trunkline.mails("Invoice")) == 2
    assert mail_invoice.dead_letters() == []


UNREADABLE = (
    b"",
    b"garbage",
    b"\xff\x00\xfe",
    b"{}",
    b"[1, 2]",
    b'{"specversion": "0.3"}',
)


CONTENT_TYPES = ({}, *({"content-type": f"{kind}"} for kind in ("application/json", "text/plain", "nonsense")))


def test_an_unreadable_message_goes_to_the_dead_letters_at_once_with_its_error(
    on_postgres: InMemory, database_url: str, broker: Broker
) -> None:
    unreadable = list(product(UNREADABLE, CONTENT_TYPES))
    with working(on_postgres.dependencies, database_url, broker.url):
        for body, headers in unreadable:
            broker.publish(subject_of(PaymentCaptured), body, headers)
        eventually(lambda: len(broker.dead_letters()) == len(unreadable), "the dead letters")

        on_postgres.paid()
        eventually(lambda: on_postgres.all(InvoiceEmailed), "the mail of a later order")
        eventually(lambda: broker.idle("fulfil_order"), "an idle consumer")
        assert broker.consumer("fulfil_order").num_redelivered == 0

    for (body, _), letter in zip(unreadable, broker.dead_letters(), strict=True):
        assert (letter.data or b"") == body
        assert letter.subject == f"{DEAD_LETTER_SUBJECTS}.fulfil_order"
        assert letter.headers is not None
        assert "Error: " in letter.headers["Trunkline-Error"]


def test_a_message_that_names_no_event_in_the_log_goes_to_the_dead_letters_at_once(
    on_postgres: InMemory, database_url: str, broker: Broker
) -> None:
    on_postgres.paid()
    captured = next(fact for fact in on_postgres.dependencies.log.history() if isinstance(fact.event, PaymentCaptured))
    strange = on_the_wire(captured).model_copy(update={"position": 4711, "id": "of-another-log"})
    with working(on_postgres.dependencies, database_url, broker.url):
        eventually(lambda: on_postgres.all(InvoiceEmailed), "the mail")
        broker.publish(subject_of(PaymentCaptured), strange.model_dump_json().encode())
        (letter,) = eventually(broker.dead_letters, "the dead letter")

    assert letter.headers is not None
    assert letter.headers["Trunkline-Error"] == ("EventNotInLog: the log has no event of-another-log at position 4711")


class Stumbling:
    """A reaction that fails a number of times before it succeeds."""

    def __init__(self, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at_s: list[float] = []
        self._times = times
        self._follow = handlers.messaging.reactions_consumer.follow
        monkeypatch.setattr(handlers.messaging.reactions_consumer, "follow", self)

    def __call__(self, message: CloudEvent, reaction: Reaction, dependencies: Dependencies) -> None:
        if reaction.name == "fulfil_order":
            self.at_s.append(time.monotonic())
            if len(self.at_s) <= self._times:
                raise RuntimeError("Augustus fell into the river")
        self._follow(message, reaction, dependencies)


def test_a_failed_delivery_is_retried_with_backoff(
    on_postgres: InMemory, database_url: str, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither within milliseconds nor for ever: after 0.4 s, then 0.8 s, each with 20 % jitter."""
    stumbling = Stumbling(2, monkeypatch)
    with working(on_postgres.dependencies, database_url, broker.url):
        on_postgres.paid()
        eventually(lambda: on_postgres.all(InvoiceEmailed), "the mail")

    first, second, third = stumbling.at_s
    assert second - first >= 0.4 * 0.8
    assert third - second >= 0.8 * 0.8
    assert broker.dead_letters() == []


def test_a_reaction_that_outlasts_the_acknowledgement_timeout_is_not_redelivered(
    on_postgres: InMemory, database_url: str, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infra.broker.nats, "ACK_S", 4)
    begun: list[str] = []
    real = handlers.messaging.reactions_consumer.follow

    def slow(message: CloudEvent, reaction: Reaction, dependencies: Dependencies) -> None:
        begun.append(f"{reaction.name} of {message.id}")
        time.sleep(6 if reaction.name == "mail_invoice" else 0)
        real(message, reaction, dependencies)

    monkeypatch.setattr(handlers.messaging.reactions_consumer, "follow", slow)
    with working(on_postgres.dependencies, database_url, broker.url):
        on_postgres.paid()
        eventually(lambda: on_postgres.all(InvoiceEmailed), "the mail")
        eventually(lambda: broker.idle(*REACTING), "idle consumers")
    assert sorted(begun) == sorted(set(begun))


def test_after_the_last_failure_it_is_a_dead_letter_others_continue_and_it_can_be_replayed(
    on_postgres: InMemory, database_url: str, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers.messaging.redelivery, "DELIVERIES_MAX", 2)
    stumbling = Stumbling(2, monkeypatch)
    with working(on_postgres.dependencies, database_url, broker.url):
        on_postgres.paid()
        (letter,) = eventually(broker.dead_letters, "the dead letter")
        eventually(lambda: broker.idle("fulfil_order"), "an idle consumer")
        assert len(stumbling.at_s) == 2
        assert on_postgres.all(OrderFulfilled) == []

        on_postgres.ask(order("order-2", extensions=1))
        on_postgres.ask(check_out(Method.PAYPAL, "order-2"))
        on_postgres.provider.approve("checkout-2")
        on_postgres.ask(complete("checkout-2", "order-2"))
        eventually(lambda: len(on_postgres.all(InvoiceEmailed)) == 1, "the mail of the other order")

        broker.publish(subject_of(PaymentCaptured), letter.data or b"")
        eventually(lambda: len(on_postgres.all(InvoiceEmailed)) == 2, "the mail of the replayed order")

    assert letter.subject == f"{DEAD_LETTER_SUBJECTS}.fulfil_order"
    assert letter.headers is not None
    assert letter.headers["Trunkline-Error"] == "RuntimeError: Augustus fell into the river"
    assert CloudEvent.model_validate_json(letter.data or b"").type == "trunkline.events.v1.order.PaymentCaptured"


def test_each_reaction_has_a_durable_consumer_with_its_name_and_event(broker: Broker) -> None:
    async def provide_twice() -> None:
        async with connected(broker.url) as client:
            for _ in range(2):
                await provision(client.jetstream(), durable_consumers())

    asyncio.run(provide_twice())
    for name, event in durable_consumers().items():
        config = broker.consumer(name).config
        assert (config.durable_name, config.filter_subjects) == (
            name,
            [subject_of(event), f"trunkline.redelivery.v1.events.{name}"],
        )
        assert config.max_deliver == -1
    assert durable_consumers()["fulfil_order"] is PaymentCaptured
    assert durable_consumers()["tell_account_manager"] is OrderPlaced
