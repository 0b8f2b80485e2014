"""Past events from the log: the same messages as on the stream, from any position, for permitted senders."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import nats
import pytest
from nats.aio.msg import Msg

from domain.order import PaymentCaptured
from handlers.runtime.worker import Duties, working
from infra.broker.signatures import SENDER_HEADER, SIGNATURE_HEADER, signature
from infra.event_log.log import Log
from infra.settings import Sender
from tests.support.at_work import eventually
from tests.support.broker import Broker
from tests.support.in_memory import InMemory
from tests.support.sending import OF_ACME, PROVISIONER, SENDERS


@pytest.fixture(name="broker")
def _broker(nats_url: str) -> Broker:
    return Broker(nats_url)


@pytest.fixture(name="acme")
def _acme(postgres: Log, database_url: str, broker: Broker) -> Iterator[InMemory]:
    """ACME after a whole purchase, fully published."""
    store = InMemory(log=postgres).settled()
    with working(store.dependencies, database_url, broker.url, Duties(senders=SENDERS)):
        eventually(lambda: len(broker.events()) == store.head, "every event on its stream")
        yield store


def asked(url: str, sender: Sender | None = PROVISIONER, **request: Any) -> list[Msg]:  # noqa: ANN401 - JSON
    """All answers to a request, up to the message that ends the page."""

    async def ask() -> list[Msg]:
        client = await nats.connect(url)
        reply = client.new_inbox()
        inbox = await client.subscribe(reply)
        body = json.dumps({"time": datetime.now(UTC).isoformat(), **request}).encode()
        headers = {}
        if sender:
            signed = signature(sender.secret.get_secret_value(), "trunkline.history.v1", reply, body)
            headers = {SENDER_HEADER: sender.name, SIGNATURE_HEADER: signed}
        await client.publish("trunkline.history.v1", body, reply=reply, headers=headers)
        parts: list[Msg] = []
        while not parts or "Trunkline-History" not in (parts[-1].headers or {}):
            parts.append(await inbox.next_msg(timeout=20))
        await client.close()
        return parts

    return asyncio.run(ask())


def test_history_equals_the_stream_byte_for_byte(acme: InMemory, broker: Broker) -> None:
    *events, end = asked(broker.url, after=0)

    assert [event.data for event in events] == [message.data for message in broker.events()]
    for event, message in zip(events, broker.events(), strict=True):
        assert event.headers is not None
        assert message.headers is not None
        for name in ("Nats-Msg-Id", "Content-Type", "Trunkline-Position"):
            assert event.headers[name] == message.headers[name]
        assert event.headers["Trunkline-Subject"] == message.subject
    assert end.headers == {"Trunkline-History": "end", "Trunkline-Position": str(acme.head)}


def test_history_is_read_page_by_page_from_any_position(acme: InMemory, broker: Broker) -> None:
    positions: list[int] = []
    after, state = 3, "more"
    while state == "more":
        *events, end = asked(broker.url, after=after, limit=4)
        positions += [int(json.loads(event.data)["position"]) for event in events]
        assert end.headers is not None
        after, state = int(end.headers["Trunkline-Position"]), end.headers["Trunkline-History"]
    assert positions == list(range(4, acme.head + 1))


def test_history_is_complete_even_if_the_stream_has_expired(acme: InMemory, broker: Broker) -> None:
    """This is the point: the stream has a retention limit, and the log keeps everything."""
    before = [message.data for message in broker.events()]
    broker.purge()
    *events, _ = asked(broker.url, after=0)
    assert [event.data for event in events] == before


def test_a_sender_limited_to_one_account_gets_the_history_of_no_other(acme: InMemory, broker: Broker) -> None:
    *events, end = asked(broker.url, OF_ACME, after=0)
    told = [json.loads(event.data) for event in events]
    assert {event["partitionkey"] for event in told} == {"acme"}
    assert [event["type"] for event in told if event["type"].endswith("PaymentCaptured")]
    assert len(told) < acme.head
    assert end.headers is not None
    assert end.headers["Trunkline-Position"] == str(acme.head)


@pytest.mark.parametrize(
    ("request_of", "code"),
    [
        ({"sender": None, "after": 0}, "unknown_sender"),
        ({"after": -1}, "malformed_request"),
        ({"after": 0, "limit": 10**6}, "malformed_request"),
        ({"after": 0, "everything": True}, "malformed_request"),
        ({"after": 0, "time": (datetime.now(UTC) - timedelta(hours=1)).isoformat()}, "message_out_of_date"),
    ],
)
def test_a_request_that_is_not_permitted_is_refused_with_the_reason(
    acme: InMemory, broker: Broker, request_of: dict[str, Any], code: str
) -> None:
    (end,) = asked(broker.url, **request_of)
    assert end.headers is not None
    assert end.headers["Trunkline-History"] == "refused"
    assert end.headers["Trunkline-Error"].startswith(f"{code}: ")
    assert end.data == b""


def test_it_is_the_purchase(acme: InMemory, broker: Broker) -> None:
    """The data of each message follows the contract of its event."""
    *events, _ = asked(broker.url, after=0)
    (captured,) = [json.loads(event.data) for event in events if b"PaymentCaptured" in event.data]
    assert captured["data"]["amount"] == acme.one(PaymentCaptured).amount.model_dump()
