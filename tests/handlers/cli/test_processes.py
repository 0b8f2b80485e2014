"""The parts as separate processes: they share the work, report their health, and survive a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from domain.invoice import InvoiceEmailed, InvoiceIssued
from domain.invoice_series import InvoiceNumberAssigned
from domain.order import ExpansionRequested, Method, OrderFulfilled
from infra.event_log.log import Log
from infra.simulators.mail_catcher import mail_catcher
from tests.support.at_work import eventually
from tests.support.broker import Broker
from tests.support.command_line import Run
from tests.support.databases import MASTER_KEY
from tests.support.in_memory import InMemory, check_out, confirm, order
from tests.support.ports import free_port

pytestmark = pytest.mark.long

TRUNKLINE = str(Path(sys.executable).with_name("trunkline"))
Start = Callable[..., "Part"]


class Part:
    """A Trunkline process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout
        self.url = process.stdout.readline().split(" at ")[1].split(";")[0]

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", trust_env=False)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(name="start")
def _start(database_url: str, nats_url: str) -> Iterator[Start]:
    """Start ``trunkline serve``, ``work`` or ``relay``; all end with the test."""
    with ExitStack() as stack:
        catcher = stack.enter_context(mail_catcher())
        given = {
            "TRUNKLINE_DATABASE_URL": database_url,
            "TRUNKLINE_NATS_URL": nats_url,
            "TRUNKLINE_LINK_SECRET": "s" * 32,
            "TRUNKLINE_MASTER_KEY": b64encode(MASTER_KEY).decode(),
            "TRUNKLINE_HTTP_PORT": "0",
            "TRUNKLINE_SMTP_HOST": catcher.host,
            "TRUNKLINE_SMTP_PORT": str(catcher.port),
        }

        def start(name: str) -> Part:
            process = subprocess.Popen(
                [TRUNKLINE, name], env={**os.environ, **given}, stdout=subprocess.PIPE, text=True
            )
            stack.enter_context(ended(process))
            return Part(process)

        yield start


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    with process:
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)


def paid_orders(store: InMemory, numbers: range) -> None:
    for number in numbers:
        store.ask(order(f"order-{number}", extensions=1))
        store.ask(check_out(Method.OFFLINE, f"order-{number}"))
        total = store.all(ExpansionRequested)[-1].quote.total
        store.ask(confirm(total, f"order-{number}"))


@pytest.mark.slow
def test_with_one_of_two_workers_and_relays_killed_nothing_is_lost_or_done_twice(
    postgres: Log, nats_url: str, start: Start
) -> None:
    store = InMemory(log=postgres).opened()
    working = [start("work") for _ in range(2)]
    relaying = [start("relay") for _ in range(2)]
    paid_orders(store, range(1, 11))
    eventually(lambda: store.all(OrderFulfilled), "the first grant")
    active = eventually(
        lambda: [part for part in relaying if part.get("/health").json()["relay"]["active"]], "an active relay"
    )
    assert len(active) == 1
    active[0].kill()
    working[0].kill()
    paid_orders(store, range(11, 21))

    eventually(lambda: len(store.all(InvoiceEmailed)) == 20, "twenty mails")
    assert len(store.all(OrderFulfilled)) == len(store.all(InvoiceIssued)) == 20
    assert [event.sequence for event in store.all(InvoiceNumberAssigned)] == list(range(1, 21))
    broker = Broker(nats_url)
    eventually(lambda: broker.count() == store.head, "every event on its stream")
    assert broker.ordered_positions() == list(range(1, store.head + 1))
    survivor = next(part for part in relaying if part is not active[0])
    eventually(lambda: survivor.get("/health").json()["relay"]["active"], "another active relay")


@pytest.mark.slow
def test_serve_has_the_whole_application_and_the_others_only_health_and_metrics(postgres: Log, start: Start) -> None:
    store = InMemory(log=postgres).settled()
    serving, working = start("serve"), start("work")
    start("relay")

    assert serving.get("/asyncapi").status_code == 200
    assert serving.get("/invoices/some-token").status_code == 200
    nowhere = working.get("/asyncapi")
    assert (nowhere.status_code, nowhere.headers["Content-Type"]) == (404, "application/problem+json")
    for part in (serving, working):
        eventually(lambda p=part: p.get("/health").json()["relay"]["lag"] == 0, "no lag")  # type: ignore[misc]
        report = part.get("/health").json()
        assert report["ok"] is True
        assert report["head"] == store.head
    assert serving.get("/health").json()["worker"] == "elsewhere"


@pytest.mark.slow
def test_the_metrics_are_prometheus_and_report_the_progress_of_everything(postgres: Log, start: Start) -> None:
    store = InMemory(log=postgres).settled()
    working = start("work")
    relaying = start("relay")

    def figures(part: Part) -> dict[str, float]:
        lines = [line for line in part.get("/metrics").text.splitlines() if not line.startswith("#")]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}

    eventually(lambda: figures(working).get('trunkline_projection_lag{projection="orders"}') == 0, "no lag")
    eventually(lambda: figures(working).get("trunkline_relay_lag") == 0, "no lag of the relay")
    found = figures(working)
    assert found["trunkline_up"] == 1
    assert found["trunkline_log_position"] == store.head
    assert found['trunkline_orders{state="fulfilled"}'] == 1
    assert found["trunkline_dead_letters"] == 0
    assert "trunkline_appends_total" in found
    assert "trunkline_group_size_count" in found
    assert figures(relaying)["trunkline_relayed_events_total"] >= store.head
    assert figures(relaying)["trunkline_relay_active"] == 1


@pytest.mark.parametrize("name", ["serve", "work", "relay"])
def test_without_an_address_each_names_the_missing_setting(name: str, command_line: Run) -> None:
    status, _, complaint = command_line(name)
    assert status == 1
    assert complaint.startswith("TRUNKLINE_DATABASE_URL is missing")


def test_without_nats_it_does_not_start_and_says_why(database_url: str) -> None:
    """A supervisor restarts it; after a start it waits for NATS by itself."""
    given = {
        "TRUNKLINE_DATABASE_URL": database_url,
        "TRUNKLINE_NATS_URL": f"nats://127.0.0.1:{free_port()}",
        "TRUNKLINE_LINK_SECRET": "s" * 32,
        "TRUNKLINE_MASTER_KEY": b64encode(MASTER_KEY).decode(),
        "TRUNKLINE_HTTP_PORT": "0",
    }
    done = subprocess.run(
        [TRUNKLINE, "relay"], env={**os.environ, **given}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "TRUNKLINE_NATS_URL" in done.stderr
    assert done.stderr.count("\n") == 1
