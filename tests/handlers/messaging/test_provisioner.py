"""The example of a service driven by our messages: it imports none of our code and may be killed at any moment."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from domain.allocation import CapacityAllocated, PbxCreated
from handlers.runtime.worker import Duties, working
from infra.event_log.log import Log
from infra.servers.embedded_postgres import temporary_directory
from infra.settings import Sender
from tests.support.at_work import eventually
from tests.support.broker import Broker
from tests.support.examples import activate
from tests.support.in_memory import InMemory
from tests.support.sending import PROVISIONER

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[3]
PROGRAM = ROOT / "examples" / "provisioner" / "provisioner.py"
TRUNKLINE = str(Path(sys.executable).with_name("trunkline"))
PACKAGES = 12
WITHOUT_URLS = {name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")}


@pytest.fixture(name="broker")
def _broker(nats_url: str) -> Broker:
    return Broker(nats_url)


@contextmanager
def provisioner(url: str, sender: Sender = PROVISIONER) -> Iterator[subprocess.Popen[bytes]]:
    given = {
        "NATS_URL": url,
        "TRUNKLINE_SENDER": sender.name,
        "TRUNKLINE_SENDER_SECRET": sender.secret.get_secret_value(),
        "PATH": os.environ["PATH"],
    }
    # In an unrelated directory, so that it does not find our packages by chance.
    process = subprocess.Popen([sys.executable, "-I", str(PROGRAM)], env=given, cwd="/", stdout=subprocess.DEVNULL)
    with process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)


def test_it_imports_none_of_our_code() -> None:
    tree = ast.parse(PROGRAM.read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    tops = {module.partition(".")[0] for module in modules}
    assert tops - sys.stdlib_module_names == {"nats"}


@pytest.mark.slow
def test_killed_repeatedly_it_still_creates_each_pbx_and_allocates_every_minute_once(
    postgres: Log, database_url: str, broker: Broker
) -> None:
    store = InMemory(log=postgres).opened()
    with working(store.dependencies, database_url, broker.url, Duties(senders=(PROVISIONER,))):
        for number in range(PACKAGES):
            quantities = {"extensions": 10, "recording_minutes": 700}
            facts = {"package_id": f"pkg-{number}", "quantities": quantities}
            store.ask(activate.model_copy(update=facts))
        for kill in range(1, 4):
            with provisioner(broker.url) as process:
                done = len(store.all(PbxCreated)) + 2
                eventually(lambda done=done: len(store.all(PbxCreated)) >= done, f"work before kill {kill}")  # type: ignore[misc]
                process.kill()
        with provisioner(broker.url):
            eventually(lambda: len(store.all(CapacityAllocated)) >= PACKAGES, "every allocation")
            eventually(lambda: broker.idle("provisioner"), "an idle consumer")

    created = [event.pbx_id for event in store.all(PbxCreated)]
    assert sorted(created) == sorted({"pkg-acme-main", *(f"pkg-{number}-main" for number in range(PACKAGES))})
    allocated = [event.pbx_id for event in store.all(CapacityAllocated)]
    assert len(allocated) == len(set(allocated))
    assert {f"pkg-{number}-main" for number in range(PACKAGES)} <= set(allocated)
    assert broker.dead_letters() == []


@pytest.mark.slow
def test_one_command_runs_it_against_trunkline_up() -> None:
    with temporary_directory() as directory:
        data = directory / "data"
        given = WITHOUT_URLS | {"TRUNKLINE_HTTP_PORT": "0"}
        up = subprocess.Popen([TRUNKLINE, "up", "--data", str(data)], stdout=subprocess.PIPE, text=True, env=given)
        with up:
            try:
                assert up.stdout
                up.stdout.readline()
                _send(data, "OpenAccount", OPENED)
                _send(data, "ActivatePackage", ACTIVATED)
                service = subprocess.Popen(
                    [sys.executable, str(PROGRAM), "--data", str(data)], stdout=subprocess.PIPE, text=True
                )
                with service:
                    assert service.stdout
                    service.stdout.readline()
                    told = service.stdout.readline()
                    service.send_signal(signal.SIGTERM)
            finally:
                up.send_signal(signal.SIGTERM)
        assert "PackageActivated: {'outcome': 'accepted'" in told
        assert service.returncode == up.returncode == 0


OPENED = {
    "account_id": "acme",
    "name": "ACME",
    "seller": "YT",
    "currency": "EUR",
    "country": "DE",
    "manager_email": "dora@yt.example",
    "receiver_id": "willy",
    "contact": {
        "name": "Willy",
        "email": "willy@wonka.example",
        "company": "Wonka",
        "address": ["Cherry Street 1"],
        "country": "DE",
    },
}
ACTIVATED = {
    "account_id": "acme",
    "package_id": "pkg-acme",
    "term": {"starts_on": "2026-01-01", "ends_on": "2036-01-01"},
    "quantities": {"extensions": 10},
}


def _send(data: Path, name: str, fields: Mapping[str, object]) -> None:
    subprocess.run(
        [TRUNKLINE, "send", name, json.dumps(fields), "--data", str(data)],
        env=WITHOUT_URLS,
        check=True,
        capture_output=True,
        timeout=60,
    )
