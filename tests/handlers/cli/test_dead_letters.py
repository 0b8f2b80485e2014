"""Dead letters: listed, shown, replayed for the consumer that failed, or dropped with a reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

import handlers.messaging.command_messages
import handlers.messaging.reactions_consumer
import handlers.messaging.redelivery
from domain.allocation import PbxCreated
from domain.invoice import InvoiceEmailed
from domain.order import OrderFulfilled, PaymentCaptured
from handlers.dispatch import handle
from handlers.reactions import Reaction
from handlers.runtime.worker import Duties, working
from infra.broker.nats import subject_of
from infra.event_log.log import Log
from tests.support.at_work import eventually
from tests.support.broker import Broker
from tests.support.command_line import Run
from tests.support.in_memory import InMemory
from tests.support.sending import SENDERS, Service, create_pbx


@pytest.fixture(name="broker")
def _broker(nats_url: str) -> Broker:
    return Broker(nats_url)


@pytest.fixture(name="acme")
def _acme(postgres: Log, database_url: str, broker: Broker) -> Iterator[InMemory]:
    store = InMemory(log=postgres).opened()
    with working(store.dependencies, database_url, broker.url, Duties(senders=SENDERS)):
        yield store


@pytest.fixture(name="run")
def _run(broker: Broker, monkeypatch: pytest.MonkeyPatch, command_line: Run) -> Run:
    """Run ``trunkline dead-letters``. Returns exit status, stdout and stderr."""
    monkeypatch.setenv("TRUNKLINE_NATS_URL", broker.url)
    return partial(command_line, "dead-letters")


def listed(run: Run, *more: str) -> list[dict[str, object]]:
    status, output, _ = run("list", "--json", *more)
    assert status == 0
    found: list[dict[str, object]] = json.loads(output)
    return found


def test_a_dead_letter_is_replayed_for_the_reaction_that_failed_only(
    acme: InMemory, broker: Broker, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = handlers.messaging.reactions_consumer.follow
    drowned = ["fulfil_order"]

    def follow(message: object, reaction: Reaction, dependencies: object) -> None:
        if reaction.name in drowned:
            raise RuntimeError("Augustus fell into the river")
        real(message, reaction, dependencies)  # type: ignore[arg-type]

    monkeypatch.setattr(handlers.messaging.reactions_consumer, "follow", follow)
    monkeypatch.setattr(handlers.messaging.redelivery, "DELIVERIES_MAX", 1)
    acme.paid()
    (letter,) = eventually(lambda: listed(run), "the dead letter")
    assert letter["consumer"] == "fulfil_order"
    assert letter["error"] == "RuntimeError: Augustus fell into the river"
    assert letter["subject"] == subject_of(PaymentCaptured)
    assert letter["deliveries"] == "1"
    assert acme.all(OrderFulfilled) == []

    drowned.clear()
    status, output, _ = run("replay", str(letter["number"]))
    assert (status, output) == (0, f"Dead letter {letter['number']} was put back for fulfil_order.\n")
    eventually(lambda: acme.all(InvoiceEmailed), "the mail")
    assert listed(run) == []
    assert len([1 for message in broker.events() if message.subject == subject_of(PaymentCaptured)]) == 1


def test_a_replayed_command_keeps_its_signature_at_any_age(
    acme: InMemory, broker: Broker, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise RuntimeError("Augustus fell into the river")

    monkeypatch.setattr(handlers.messaging.redelivery, "DELIVERIES_MAX", 1)
    with monkeypatch.context() as patch:
        patch.setattr(handlers.messaging.command_messages, "handle", away)
        Service(broker.url).tell(create_pbx())
        (letter,) = eventually(lambda: listed(run), "the dead letter")
    assert handlers.messaging.command_messages.handle is handle  # type: ignore[attr-defined]
    assert letter["consumer"] == "commands"

    run("replay", str(letter["number"]))
    eventually(lambda: acme.all(PbxCreated), "the PBX")
    assert listed(run) == []


def test_a_dropped_dead_letter_leaves_its_reason_and_no_body(acme: InMemory, broker: Broker, run: Run) -> None:
    Service(broker.url).tell(create_pbx(colour="a personal red"))
    (letter,) = eventually(lambda: listed(run), "the dead letter")
    number = str(letter["number"])
    _, shown, _ = run("show", number)
    assert "a personal red" in json.loads(shown)["body"]

    assert run("drop", number, "--reason", "a slip of the keyboard")[0] == 0

    assert listed(run) == []
    (dropped,) = listed(run, "--dropped")
    assert str(dropped["dropped"]).endswith(": a slip of the keyboard")
    assert b"a personal red" not in b"".join(message.data or b"" for message in broker.dead_letters())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("show", "4711"), "There is no dead letter 4711; trunkline dead-letters list shows them."),
        (("replay", "4711"), "There is no dead letter 4711"),
        (("drop", "4711", "--reason", "x"), "There is no dead letter 4711"),
    ],
)
def test_an_unknown_dead_letter_is_refused_in_one_sentence(
    acme: InMemory, run: Run, arguments: tuple[str, ...], says: str
) -> None:
    status, _, errors = run(*arguments)
    assert status == 1
    assert errors.startswith(says)
    assert errors.count("\n") == 1


def test_a_table_lists_them(acme: InMemory, broker: Broker, run: Run) -> None:
    brackets: dict[str, Any] = {"[/red]": 1}
    Service(broker.url).tell(create_pbx(**brackets))
    eventually(broker.dead_letters, "the dead letter")
    _, output, _ = run("list")
    assert "1 dead letter " in output
    assert "commands" in output
    assert "[/red]" in output
