"""Message throughput, out and in, against raw nats-py on the same server; and the latency from payment to invoice."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig
from pydantic import SecretStr
from pydantic_core import from_json

from benchmarks.measure import Measure, Void, in_turn
from domain.account import BillingContact, OpenAccount
from domain.allocation import ALLOCATION, CreatePbx, GrantCapacity, PbxCreated
from domain.invoice import InvoiceIssued
from domain.order import ExpansionRequested, Method
from domain.payment_reference import PaymentReferenceClaimed
from domain.quote import Selection, Term
from domain.subscription import ActivatePackage
from handlers.cli.interpreter import freeze_loaded_objects
from handlers.context import Actor, Role
from handlers.contract.commands import REPLY_HEADER
from handlers.contract.events import encoded
from handlers.demo.prices import PRICES
from handlers.dependencies import Dependencies
from handlers.dispatch import handle
from handlers.messaging.reactions_consumer import durable_consumers
from handlers.requests import CheckOut, ConfirmOfflinePayment, OrderExpansion
from handlers.runtime.adapters import Adapters, dependencies_of
from handlers.runtime.worker import Duties, working
from infra.broker.cloudevents import CONTENT_TYPE
from infra.broker.nats import COMMANDS, COMMANDS_CONSUMER, EVENTS, connected, provision, subject_of
from infra.broker.relay import Relay
from infra.broker.signatures import SENDER_HEADER, SIGNATURE_HEADER, signature
from infra.clock import SystemClock
from infra.event_log.log import Change, Log
from infra.event_log.postgres_recorder import postgres_log
from infra.event_log.recorder import InboxEntry
from infra.event_log.unit_of_work import UnitOfWork
from infra.mail.smtp import SmtpMailer
from infra.payments.paypal import PayPal
from infra.postgres.connections import connect
from infra.postgres.migrate import migrate
from infra.postgres.roles import admit, program_login
from infra.recorded import Cause
from infra.servers.embedded_nats import embedded_nats
from infra.servers.embedded_postgres import embedded_postgres, temporary_directory
from infra.settings import EVERY_ACCOUNT, Sender, settings
from infra.simulators.mail_catcher import HOST, mail_catcher

EVENT_COUNT = 4000
COMMAND_COUNT = 1500
PACKAGES = 150
AT_ONCE = 32
ORDERS_PER_S = 50
ORDERS = 150
P99_BOUND_MS = 300.0
P99_AIM_MS = 100.0
PATIENCE_S = 120.0
QUIET_S = 0.5
"""A pause between preparation and measurement, in which disks and servers finish their work."""

MASTER_KEY = bytes(range(32))
NOW = datetime(2026, 3, 2, tzinfo=UTC)
TERM = Term(starts_on=date(2026, 1, 1), ends_on=date(2036, 1, 1))
CAUSE = Cause("system:benchmark", "benchmark")
ADMIN = Actor(Role.ADMIN, "benchmark")
SENDER = Sender(name="benchmark", secret=SecretStr("benchmark" * 4), accounts=(EVERY_ACCOUNT,))


def measures(rounds: int, done: Callable[[], object]) -> dict[str, Measure]:
    """Relay, commands, and the latency from a payment to its invoice.

    Raises:
        Void: the output or the input is not as expected.
    """
    found: dict[str, Measure] = {}
    for name, measured in (
        ("relay_vs_raw", _relay_vs_raw),
        ("consume_vs_raw", _consume_vs_raw),
        ("paid_to_invoiced_p99_ms", _paid_to_invoiced),
    ):
        with _place() as place:
            found[name] = measured(place, rounds)
        done()
    for _ in range(rounds - len(found)):
        done()
    return found


@dataclass(frozen=True)
class Place:
    """The benchmark's own servers."""

    database_url: str
    nats_url: str
    log: Log
    directory: Path


@contextmanager
def _place() -> Iterator[Place]:
    with (
        temporary_directory() as directory,
        embedded_postgres(directory / "postgres") as owner_url,
        embedded_nats(directory / "nats") as nats_url,
    ):
        database_url = program_login(owner_url)
        migrate(owner_url)
        admit(owner_url, database_url)
        with postgres_log(database_url, master_key=MASTER_KEY) as log:
            yield Place(database_url, nats_url, log, directory)


# --- out -----------------------------------------------------------------------------------------------------------


def _relay_vs_raw(place: Place, rounds: int) -> Measure:
    """From the log to the stream: read, encode by the contract, publish; the baseline only publishes."""
    _events(place.log)
    messages = [(subject_of(type(each.event)), str(each.event_id), encoded(each)) for each in place.log.history()]

    async def relayed() -> float:
        stopping = threading.Event()
        async with connected(place.nats_url) as client:
            await _fresh_stream(client)
            relay = Relay(place.database_url, place.log, encoded)
            with connect(place.database_url) as conn:
                conn.execute("DELETE FROM read.positions")
            begun = time.perf_counter()
            running = asyncio.create_task(relay.run(client, stopping))
            while relay.position < len(messages) and not running.done():  # noqa: ASYNC110 - this is the measurement
                await asyncio.sleep(0.002)
            took = time.perf_counter() - begun
            stopping.set()
            await running
            await _must_hold(client, messages)
        return len(messages) / took

    async def raw() -> float:
        async with connected(place.nats_url) as client:
            await _fresh_stream(client)
            jetstream = client.jetstream()
            begun = time.perf_counter()
            acknowledgements = [
                await jetstream.publish_async(
                    subject, body, stream=EVENTS, headers={"Nats-Msg-Id": event_id, "Content-Type": CONTENT_TYPE}
                )
                for subject, event_id, body in messages
            ]
            await asyncio.gather(*acknowledgements)
            took = time.perf_counter() - begun
            await _must_hold(client, messages)
        return len(messages) / took

    return in_turn(rounds, lambda: asyncio.run(relayed()), lambda: asyncio.run(raw()), lambda: None, floor=0.6, aim=0.9)


def _events(log: Log) -> None:
    """Some events that follow an order, of many accounts."""
    for number in range(EVENT_COUNT // 4):
        package, pbx = f"pkg-{number}", f"pbx-{number}"
        work = UnitOfWork(log)
        who = {"package_id": package, "account_id": f"account-{number}"}
        grant = GrantCapacity(at=NOW, **who, grant_id=package, quantities={"extensions": 50})
        work.do(ALLOCATION, package, grant)
        for n in range(2):
            create = CreatePbx(at=NOW, **who, pbx_id=f"{pbx}-{n}", name="PBX", plan="enterprise", extensions=5)  # type: ignore[arg-type]
            work.do(ALLOCATION, package, create)
        work.commit(account_id=who["account_id"], cause=CAUSE, at=NOW)
    changes = [
        Change(f"payment_reference-{n}", 0, [PaymentReferenceClaimed(reference=f"r-{n}", order_id=f"order-{n}")])
        for n in range(EVENT_COUNT - log.head())
    ]
    log.append(changes, account_id="account-0", cause=CAUSE, at=NOW)


async def _fresh_stream(client: Client) -> None:
    jetstream = client.jetstream()
    await provision(jetstream, {})
    await jetstream.delete_stream(EVENTS)
    await provision(jetstream, {})


async def _must_hold(client: Client, messages: Sequence[tuple[str, str, bytes]]) -> None:
    jetstream = client.jetstream()
    await jetstream.add_consumer(EVENTS, ConsumerConfig(durable_name="check", ack_policy=AckPolicy.NONE))
    subscription = await jetstream.pull_subscribe_bind("check", EVENTS)
    bodies: list[bytes] = []
    while len(bodies) < len(messages):
        bodies += [message.data for message in await subscription.fetch(500, timeout=10)]
    if bodies != [body for _, _, body in messages]:
        raise Void("the stream does not hold the events in their order")


# --- in ------------------------------------------------------------------------------------------------------------


def _consume_vs_raw(place: Place, rounds: int) -> Measure:
    """From queued commands to their commits; the baseline is a loop that fetches, appends and acknowledges."""
    with _dependencies(place) as dependencies:
        for number in range(PACKAGES):
            _open_account(dependencies, _whose(number)["account_id"])
            activation = ActivatePackage(at=NOW, **_whose(number), term=TERM, quantities={"extensions": 1_000_000})
            handle(activation, dependencies, ADMIN, correlation_id="benchmark")
        numbers = iter(range(1_000_000))

        def ours() -> float:
            asyncio.run(_send(place.nats_url, next(numbers)))
            duties = Duties(relays=False, senders=(SENDER,))
            return _rate(place, lambda: working(dependencies, place.database_url, place.nats_url, duties))

        def raw() -> float:
            asyncio.run(_send(place.nats_url, next(numbers)))
            return _rate(place, lambda: _raw_loop(place))

        return in_turn(rounds, ours, raw, lambda: None, floor=0.5, aim=0.85)


def _whose(number: int) -> dict[str, str]:
    return {"package_id": f"pkg-{number}", "account_id": f"account-{number}"}


async def _send(nats_url: str, turn: int) -> None:
    """Publish signed commands to the stream, round-robin over the packages."""
    async with connected(nats_url) as client:
        jetstream = client.jetstream()
        await provision(jetstream, {})
        acknowledgements = []
        for number in range(COMMAND_COUNT):
            name = f"{turn}-{number}"
            data = {**_whose(number % PACKAGES), "pbx_id": name, "name": "PBX", "plan": "enterprise", "extensions": 1}
            subject = "trunkline.commands.v1.CreatePbx"
            event = {
                "specversion": "1.0",
                "id": name,
                "source": "urn:trunkline:benchmark",
                "type": subject,
                "time": datetime.now(UTC).isoformat(),
                "data": data,
            }
            body = json.dumps(event).encode()
            reply = "_INBOX.benchmark"
            signed = signature(SENDER.secret.get_secret_value(), subject, reply, body)
            headers = {SENDER_HEADER: SENDER.name, SIGNATURE_HEADER: signed, REPLY_HEADER: reply}
            acknowledgements.append(await jetstream.publish_async(subject, body, stream=COMMANDS, headers=headers))
        await asyncio.gather(*acknowledgements)


def _rate(place: Place, consuming: Callable[[], AbstractContextManager[object]]) -> float:
    """Commits per second, from the first to the last.

    Raises:
        Void: their number differs from the number of commands.
    """
    before = place.log.head()
    begun, seen = 0.0, before
    deadline = time.monotonic() + PATIENCE_S
    with consuming():
        while (head := place.log.head()) < before + COMMAND_COUNT and time.monotonic() < deadline:
            if head > before and not begun:
                begun, seen = time.perf_counter(), head
            time.sleep(0.005)
        took = time.perf_counter() - begun
    created = [each for each in place.log.read(before, limit=2 * COMMAND_COUNT) if isinstance(each.event, PbxCreated)]
    if len(created) != COMMAND_COUNT or len({each.stream + each.event.pbx_id for each in created}) != COMMAND_COUNT:  # type: ignore[attr-defined]  # see above
        raise Void(f"{COMMAND_COUNT} commands led to {len(created)} PBXs")
    return (before + COMMAND_COUNT - seen) / took


@contextmanager
def _raw_loop(place: Place) -> Iterator[None]:
    """Only nats-py's fetch, the same decision, the same append, and an acknowledgement."""
    stopping = threading.Event()
    threads = ThreadPoolExecutor(AT_ONCE)

    def append(message: Msg) -> None:
        event = from_json(message.data)
        data = event["data"]
        received = InboxEntry(f"raw:{event['id']}", hashlib.sha256(message.data).digest())
        work = UnitOfWork(place.log, use_cache=True)
        work.do(ALLOCATION, data["package_id"], CreatePbx.model_validate({**data, "at": NOW}))
        work.commit(account_id=data["account_id"], cause=CAUSE, at=NOW, received=received)

    async def loop() -> None:
        async with connected(place.nats_url) as client:
            subscription = await client.jetstream().pull_subscribe_bind(COMMANDS_CONSUMER, COMMANDS)
            while not stopping.is_set():
                with suppress(TimeoutError):
                    messages = await subscription.fetch(AT_ONCE, timeout=1)
                    # Commands of one package are PACKAGES apart, so none here conflicts with another.
                    running = asyncio.get_running_loop()
                    await asyncio.gather(*(running.run_in_executor(threads, append, each) for each in messages))
                    for each in messages:
                        await each.ack()

    thread = threading.Thread(target=lambda: asyncio.run(loop()))
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
        threads.shutdown()


# --- through -------------------------------------------------------------------------------------------------------


def _paid_to_invoiced(place: Place, rounds: int) -> Measure:
    """The 99th percentile from the commit of a payment to that of its invoice, at 50 orders/s, by a whole Trunkline.

    The ratio is the bound divided by the measured figure: 1 is exactly on the bound.
    """
    with _dependencies(place) as dependencies:
        _open_shop(dependencies)
        freeze_loaded_objects()
        with _elsewhere(_work, place.database_url, place.nats_url):
            p99s = [_p99_ms(dependencies, place, turn) for turn in range(rounds)]
    ratios = [P99_BOUND_MS / p99 for p99 in p99s]
    return Measure(
        ours=median(p99s),
        baseline=P99_BOUND_MS,
        unit="ms",
        ratio=median(ratios),
        range=(min(ratios), max(ratios)),
        floor=1.0,
        aim=P99_BOUND_MS / P99_AIM_MS,
    )


def _open_account(dependencies: Dependencies, account_id: str) -> None:
    contact = BillingContact(
        name="Willy Wonka", email="willy@wonka.example", company="Wonka", address=("Cherry Street 1",), country="DE"
    )
    opened = OpenAccount(
        at=dependencies.clock.now(),
        account_id=account_id,
        name="ACME",
        seller="YT",
        currency="EUR",
        country="DE",
        manager_email="dora@yt.example",
        receiver_id="willy",
        contact=contact,
    )
    handle(opened, dependencies, ADMIN, correlation_id="benchmark")


def _open_shop(dependencies: Dependencies) -> None:
    handle(PRICES, dependencies, ADMIN, correlation_id="benchmark")
    _open_account(dependencies, "acme")
    for number in range(PACKAGES):
        activation = ActivatePackage(
            at=NOW, account_id="acme", package_id=f"pkg-{number}", term=TERM, quantities={"extensions": 10}
        )
        handle(activation, dependencies, ADMIN, correlation_id="benchmark")


def _p99_ms(dependencies: Dependencies, place: Place, turn: int) -> float:
    """Confirm prepared orders at a fixed pace; record when each is paid and when it is invoiced."""
    totals = {}
    for number in range(ORDERS):
        order_id, package_id = f"order-{turn}-{number}", f"pkg-{number % PACKAGES}"
        selections = (Selection(service="extensions", quantity=1),)
        command = OrderExpansion(order_id=order_id, account_id="acme", package_id=package_id, selections=selections)
        outcome = handle(command, dependencies, ADMIN, correlation_id=order_id)
        placed = CheckOut(order_id=order_id, account_id="acme", method=Method.OFFLINE)
        handle(placed, dependencies, ADMIN, correlation_id=order_id)
        requested = outcome.context.recorded[0].event
        assert isinstance(requested, ExpansionRequested)
        totals[order_id] = requested.quote.total
    asyncio.run(_nothing_waits(place.nats_url))
    time.sleep(QUIET_S)
    paid: dict[str, float] = {}
    invoiced: dict[str, float] = {}
    after = dependencies.log.head()

    def watch() -> None:
        position, deadline = after, time.monotonic() + PATIENCE_S
        while len(invoiced) < ORDERS and time.monotonic() < deadline:
            dependencies.log.wait(position, 1.0)
            for each in dependencies.log.read(position, limit=500):
                position = each.position
                if isinstance(each.event, InvoiceIssued):
                    invoiced[each.event.order_id] = time.perf_counter()

    watching = threading.Thread(target=watch)
    watching.start()
    begun = time.perf_counter()
    collector = Actor(Role.DISTRIBUTOR, "benchmark")
    for number, (order_id, total) in enumerate(totals.items()):
        time.sleep(max(0.0, begun + number / ORDERS_PER_S - time.perf_counter()))
        handle(ConfirmOfflinePayment(order_id=order_id, amount=total), dependencies, collector, correlation_id=order_id)
        paid[order_id] = time.perf_counter()
    pace = ORDERS / (time.perf_counter() - begun)
    watching.join()
    if len(invoiced) != ORDERS:
        raise Void(f"only {len(invoiced)} of {ORDERS} orders were invoiced")
    if pace < 0.9 * ORDERS_PER_S:
        raise Void(f"payments came at only {pace:.0f}/s")
    took = sorted(1000 * (invoiced[order_id] - paid[order_id]) for order_id in totals)
    return took[int(0.99 * len(took))]


async def _nothing_waits(nats_url: str) -> None:
    """Wait until every reaction has caught up."""
    async with connected(nats_url) as client:
        jetstream = client.jetstream()
        for name in durable_consumers():
            while (info := await jetstream.consumer_info(EVENTS, name)).num_pending or info.num_ack_pending:  # noqa: ASYNC110 - another process works on it
                await asyncio.sleep(0.05)


@contextmanager
def _elsewhere(does: Callable[..., None], *given: str) -> Iterator[Any]:
    """Run something in its own process while the context lasts; yields what it reports once ready."""
    spawn = get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=does, args=(theirs, *given))
    process.start()
    theirs.close()  # so that we notice when it dies
    try:
        yield ours.recv()
    finally:
        ours.send("the end")
        process.join()


def _catch_mail(conn: Connection) -> None:
    with mail_catcher() as catcher:
        conn.send(catcher.port)
        conn.recv()


def _work(conn: Connection, database_url: str, nats_url: str) -> None:
    """Do what ``trunkline work`` and ``trunkline relay`` do."""
    with (
        postgres_log(database_url, master_key=MASTER_KEY) as log,
        _dependencies(Place(database_url, nats_url, log, Path())) as dependencies,
        working(dependencies, database_url, nats_url),
    ):
        freeze_loaded_objects()
        conn.send("at work")
        conn.recv()


@contextmanager
def _dependencies(place: Place) -> Iterator[Dependencies]:
    """The dependencies of handlers over a place's log. Nobody pays at a provider here."""
    nobody = PayPal(base_url="http://127.0.0.1:9", client_id="", client_secret="")
    with _elsewhere(_catch_mail) as port, nobody as provider, SmtpMailer(HOST, port) as mailer:
        outside = Adapters(SystemClock(), provider, mailer)
        yield dependencies_of(settings(seller_code="YT"), place.log, outside, b"benchmark" * 4, "http://127.0.0.1")
