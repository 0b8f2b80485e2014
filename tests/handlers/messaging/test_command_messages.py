"""Commands as messages on a real NATS: done once, answered, and only for permitted senders."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import SecretStr

import handlers.messaging.command_messages
import handlers.messaging.commands_consumer
import infra.broker.nats
from domain.allocation import PbxCreated
from domain.order import OrderPlaced, PaymentCaptured
from handlers.contract.commands import offered
from handlers.dispatch import handle
from handlers.messaging.command_messages import Incoming, deal_with
from handlers.runtime.worker import Duties, working
from infra.event_log.log import Log
from infra.settings import Sender
from tests.support.at_work import eventually
from tests.support.broker import Broker
from tests.support.in_memory import InMemory
from tests.support.sending import (
    BOSS,
    COLLECTOR,
    OF_ACME,
    PROVISIONER,
    SENDERS,
    Service,
    body_of,
    create_pbx,
)

pytestmark = pytest.mark.long


@pytest.fixture(name="broker")
def _broker(nats_url: str) -> Broker:
    return Broker(nats_url)


@pytest.fixture(name="acme")
def _acme(postgres: Log, database_url: str, broker: Broker) -> Iterator[InMemory]:
    """ACME with its package, and a worker that consumes commands."""
    store = InMemory(log=postgres).opened()
    with working(store.dependencies, database_url, broker.url, Duties(senders=SENDERS)):
        yield store


@pytest.fixture(name="service")
def _service(acme: InMemory, broker: Broker) -> Service:
    return Service(broker.url)


def test_a_command_is_done_and_answered_with_the_positions_of_its_events(acme: InMemory, service: Service) -> None:
    before = acme.head
    answer = service.ask(create_pbx())

    assert answer["data"] == {"outcome": "accepted", "positions": [before + 1]}
    (created,) = acme.dependencies.log.read(before, limit=10)
    assert isinstance(created.event, PbxCreated)
    assert (created.cause.actor, created.cause.causation_id) == ("service:provisioner", "create-1")
    assert (answer["causationid"], answer["type"]) == ("create-1", "trunkline.answers.v1")


def test_the_same_command_again_gets_the_same_answer_and_does_nothing(acme: InMemory, service: Service) -> None:
    """Also after days: the inbox is in the log's database and has no duplicate window."""
    first = service.ask(create_pbx())
    assert service.ask(create_pbx()) == first | {"time": first["time"]}
    assert len(acme.all(PbxCreated)) == 1


def test_another_command_under_a_used_id_is_not_done(acme: InMemory, service: Service) -> None:
    service.ask(create_pbx())
    answer = service.ask(create_pbx(2, message_id="create-1"))
    assert (answer["data"]["outcome"], answer["data"]["code"]) == ("refused", "message_id_reused")
    assert len(acme.all(PbxCreated)) == 1


def test_two_senders_may_use_the_same_id(acme: InMemory, service: Service) -> None:
    service.ask(create_pbx(1, message_id="one"))
    answer = Service(service.url, OF_ACME).ask(create_pbx(2, message_id="one"))
    assert answer["data"]["outcome"] == "accepted"


def test_a_refusal_is_answered_with_its_code_and_sentence_and_not_retried(
    acme: InMemory, service: Service, broker: Broker
) -> None:
    answer = service.ask(create_pbx(extensions=4711))
    assert answer["data"]["outcome"] == "refused"
    assert answer["data"]["code"] == "pool_exhausted"
    assert answer["data"]["sentence"].endswith(".")
    eventually(lambda: broker.commands() == [], "an empty stream of commands")
    assert broker.dead_letters() == []


def test_commands_of_an_account_are_processed_in_order(acme: InMemory, service: Service) -> None:
    answers = service.ask_all([create_pbx(number) for number in range(1, 41)])
    assert [answer["data"]["outcome"] for answer in answers] == ["accepted"] * 40
    assert [event.pbx_id for event in acme.all(PbxCreated)] == [f"pbx-{number}" for number in range(1, 41)]


def test_a_distributor_confirms_a_payment_and_a_service_may_not(acme: InMemory, service: Service) -> None:
    facts: dict[str, Any] = {"order_id": "order-1", "account_id": "acme"}
    selections = [{"service": "extensions", "quantity": 1}]
    order = body_of("OrderExpansion", "o-1", **facts, package_id="pkg-acme", selections=selections)
    assert service.ask(order, "OrderExpansion")["data"]["outcome"] == "accepted"
    checkout = body_of("CheckOut", "o-2", **facts, method="offline", pi_number="PI-7")
    assert service.ask(checkout, "CheckOut")["data"]["outcome"] == "accepted"
    assert acme.one(OrderPlaced).pi_number == "PI-7"
    requested = acme.dependencies.log.read(acme.head - 10, limit=20)
    total = next(fact.event.quote.total for fact in requested if hasattr(fact.event, "quote"))
    confirm = body_of("ConfirmOfflinePayment", "o-3", order_id="order-1", amount=total.model_dump())

    assert service.ask(confirm, "ConfirmOfflinePayment")["data"]["code"] == "not_permitted"
    answer = Service(service.url, COLLECTOR).ask(confirm, "ConfirmOfflinePayment")
    assert answer["data"]["outcome"] == "accepted"
    assert acme.one(PaymentCaptured).amount == total


def test_a_service_has_its_customer_pay_at_the_provider(acme: InMemory, service: Service) -> None:
    facts: dict[str, Any] = {"order_id": "order-1", "account_id": "acme"}
    selections = [{"service": "extensions", "quantity": 1}]
    service.ask(
        body_of("OrderExpansion", "p-1", **facts, package_id="pkg-acme", selections=selections), "OrderExpansion"
    )
    check_out = body_of("CheckOut", "p-2", **facts, method="paypal")
    answer = service.ask(check_out, "CheckOut")
    opened = answer["data"]["checkout"]

    assert opened["approve_url"].startswith("https://")
    assert service.ask(check_out, "CheckOut") == answer | {"time": answer["time"]}
    acme.provider.approve(opened["checkout_id"])
    back = body_of("CompleteCheckout", "p-3", **facts, checkout_id=opened["checkout_id"])
    assert service.ask(back, "CompleteCheckout")["data"]["outcome"] == "accepted"
    assert acme.one(PaymentCaptured).order_id == "order-1"
    assert "checkout" not in service.ask(check_out, "CheckOut")["data"], "there is nothing left to pay"


# --- permissions ---------------------------------------------------------------------------------------------------

STRANGER = Sender(name="stranger", secret=SecretStr("s" * 32), accounts=("*",))
IMPOSTOR = Sender(name="provisioner", secret=SecretStr("guess" * 8), accounts=("*",))


@pytest.mark.parametrize("sender", [None, STRANGER, IMPOSTOR], ids=["nobody", "a stranger", "a wrong secret"])
def test_an_unknown_signer_is_refused(acme: InMemory, service: Service, sender: Sender | None) -> None:
    answer = Service(service.url, sender).ask(create_pbx())
    assert answer["data"]["code"] == "unknown_sender"
    assert acme.all(PbxCreated) == []


def test_a_body_changed_in_transit_is_refused(acme: InMemory, service: Service) -> None:
    signed = service.signed("trunkline.commands.v1.CreatePbx", "", create_pbx())
    answer = service.ask(create_pbx(extensions=99), **signed)
    assert answer["data"]["code"] == "unknown_sender"


def test_a_foreign_account_is_refused(acme: InMemory, service: Service) -> None:
    answer = Service(service.url, OF_ACME).ask(create_pbx(account_id="slugworth"))
    assert answer["data"]["code"] == "foreign_account"
    assert "slugworth" in answer["data"]["sentence"]


def test_a_sender_limited_to_accounts_may_not_send_a_command_without_one(acme: InMemory, service: Service) -> None:
    some = Sender(**{**COLLECTOR.model_dump(), "name": "crm", "secret": OF_ACME.secret, "accounts": ("acme",)})
    refund = body_of("RefundOrder", "r-1", order_id="order-1", refund_id="refund-1")
    assert Service(service.url, some).ask(refund, "RefundOrder")["data"]["code"] == "foreign_account"


def test_a_package_of_another_account_is_refused(acme: InMemory, service: Service) -> None:
    """The sender may act for the account, but the package belongs to another one."""
    answer = Service(service.url, BOSS).ask(create_pbx(account_id="slugworth"))
    assert answer["data"]["code"] == "unknown_pool"
    assert acme.all(PbxCreated) == []


def test_a_late_copy_is_refused(acme: InMemory, service: Service) -> None:
    """A command that was refused is not done months later because somebody kept a copy."""
    old = create_pbx()
    sent_at = datetime.now(UTC) - timedelta(minutes=6)
    answer = service.ask(json.dumps(json.loads(old) | {"time": sent_at.isoformat()}).encode())
    assert answer["data"]["code"] == "message_out_of_date"


def test_a_command_that_waited_in_the_queue_for_an_hour_is_done(
    postgres: Log, database_url: str, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What counts is when it reached the broker; after that it may wait."""
    store = InMemory(log=postgres).opened()
    with working(store.dependencies, database_url, broker.url):
        pass
    Service(broker.url).tell(create_pbx())
    with working(store.dependencies, database_url, broker.url, Duties(senders=SENDERS)):
        eventually(lambda: store.all(PbxCreated), "the PBX")


def test_a_command_that_outlasts_the_acknowledgement_timeout_is_not_redelivered(
    postgres: Log, database_url: str, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither are the commands of its account that wait for it."""
    monkeypatch.setattr(infra.broker.nats, "ACK_S", 4)
    begun: list[str] = []
    real = deal_with

    def slow(incoming: Incoming, *given: Any) -> object:  # noqa: ANN401 - any arguments
        begun.append(json.loads(incoming.body)["id"])
        time.sleep(5)
        return real(incoming, *given)

    monkeypatch.setattr(handlers.messaging.commands_consumer, "deal_with", slow)
    store = InMemory(log=postgres).opened()
    with working(store.dependencies, database_url, broker.url, Duties(senders=SENDERS)):
        service = Service(broker.url)
        service.tell(create_pbx(1))
        eventually(lambda: begun, "the first one")
        service.tell(create_pbx(2))
        eventually(lambda: len(store.all(PbxCreated)) == 2, "both")
        eventually(lambda: broker.commands() == [], "an empty stream of commands")
    assert begun == ["create-1", "create-2"]


# --- invalid messages ----------------------------------------------------------------------------------------------

GARBAGE = (b"", b"garbage", b"\xff\x00\xfe", b"{}", b"[1, 2]", b'{"specversion": "0.3"}', b"[" * 10_000)


@pytest.mark.parametrize("body", GARBAGE, ids=lambda body: repr(body[:16]))
def test_garbage_is_answered(acme: InMemory, service: Service, body: bytes) -> None:
    answer = service.ask(body)
    assert answer["data"]["code"] == "malformed_command"
    assert "causationid" not in answer


@dataclass(frozen=True)
class Wrong:
    """An invalid message and its answer. It is made when it is sent, because an old one would be refused as late."""

    body: Callable[[], bytes]
    code: str
    says: str
    name: str = "CreatePbx"
    version: str = "v1"


WRONG = (
    Wrong(lambda: body_of("MakeCoffee", "w-1"), "unknown_command_type", "CreatePbx", "MakeCoffee"),
    Wrong(lambda: body_of("FulfilPaidOrder", "w-2"), "unknown_command_type", "CreatePbx", "FulfilPaidOrder"),
    Wrong(lambda: create_pbx(message_id="w-3").replace(b".v1.", b".v9."), "unknown_command_type", "v9", version="v9"),
    Wrong(lambda: create_pbx(message_id="w-4", colour="red"), "malformed_command", "colour"),
    Wrong(lambda: create_pbx(message_id="w-5", extensions="many"), "malformed_command", "extensions"),
    Wrong(lambda: create_pbx(message_id="w-6", at="2026-01-01T00:00:00Z"), "malformed_command", "at"),
    Wrong(lambda: create_pbx(message_id="w-7"), "malformed_command", "subject", "UpgradePbx"),
    Wrong(lambda: create_pbx(message_id="w-8", name="x" * 70_000), "command_too_large", "65536"),
    Wrong(lambda: create_pbx(message_id="w 9"), "malformed_command", "id"),
)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: f"{wrong.code} {wrong.says}")
def test_an_invalid_message_is_answered_with_a_refusal_that_says_why(
    acme: InMemory, service: Service, broker: Broker, wrong: Wrong
) -> None:
    answer = service.ask(wrong.body(), wrong.name, wrong.version)
    assert answer["data"]["code"] == wrong.code
    assert wrong.says in answer["data"]["sentence"]
    eventually(lambda: broker.commands() == [], "an empty stream of commands")
    assert broker.dead_letters() == []


def test_a_refusal_without_a_reply_subject_goes_to_the_dead_letters_at_once(
    acme: InMemory, service: Service, broker: Broker
) -> None:
    service.tell(create_pbx(colour="red"))
    (letter,) = eventually(broker.dead_letters, "the dead letter")
    assert letter.headers is not None
    assert "malformed_command" in letter.headers["Trunkline-Error"]
    assert letter.headers["Trunkline-Deliveries"] == "1"
    eventually(lambda: broker.commands() == [], "an empty stream of commands")


@pytest.mark.parametrize("place", ["trunkline.events.v1.order.PaymentCaptured", "$JS.API.STREAM.DELETE.X", "a.>", ""])
def test_no_answer_goes_to_a_subject_that_is_not_for_answers(
    acme: InMemory, service: Service, broker: Broker, place: str
) -> None:
    """Otherwise a sender could make us publish in our name."""
    body = create_pbx(colour="red")
    signed = service.signed("trunkline.commands.v1.CreatePbx", place, body)
    service.tell(body, **{"Trunkline-Reply": place, **signed})
    eventually(broker.dead_letters, "the dead letter")
    eventually(lambda: len(broker.events()) == acme.head, "our own events and no others")


def test_a_message_of_a_megabyte_is_dead_lettered_with_its_first_part(
    acme: InMemory, service: Service, broker: Broker
) -> None:
    service.tell(b"x" * (1024 * 1024 - 1000))
    (letter,) = eventually(broker.dead_letters, "the dead letter")
    assert letter.headers is not None
    assert "command_too_large" in letter.headers["Trunkline-Error"]
    assert letter.headers["Trunkline-Truncated"] == str(1024 * 1024 - 1000)
    assert service.ask(create_pbx())["data"]["outcome"] == "accepted"


def test_a_command_that_fails_on_our_side_is_retried_until_it_is_done(
    acme: InMemory, service: Service, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter(range(2))
    real = handle

    def stumbling(*given: object, **more: object) -> object:
        if next(failures, None) is not None:
            raise RuntimeError("Augustus fell into the river")
        return real(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(handlers.messaging.command_messages, "handle", stumbling)
    assert service.ask(create_pbx())["data"]["outcome"] == "accepted"
    assert len(acme.all(PbxCreated)) == 1
    assert broker.dead_letters() == []


def test_every_command_that_is_not_internal_is_offered() -> None:
    names = {kind.__name__ for kind in offered().values()}
    assert {"CreatePbx", "AllocateCapacity", "OrderExpansion", "ConfirmOfflinePayment", "OpenAccount"} <= names
    assert names.isdisjoint({"FulfilPaidOrder", "ReconcileCapture", "UseInvoiceLink", "MailInvoiceLink"})


def test_a_secret_is_shown_nowhere() -> None:
    assert "provisionerprovisioner" not in repr(PROVISIONER)
