"""A message with an id is processed once; a duplicate gets the same answer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from domain.allocation import AllocateCapacity, PoolExhausted
from domain.messages import Message
from handlers.dispatch import Outcome, handle
from infra.event_log.log import Log
from infra.event_log.recorder import MessageIdReused
from tests.support.examples import NOW, allocate, create_factory
from tests.support.given_domain import but
from tests.support.in_memory import InMemory, order, permitted


@pytest.fixture
def shop(log: Log) -> InMemory:
    """An application, in memory or on PostgreSQL, with ACME, its package and a PBX."""
    return InMemory(log=log).with_factory()


def send(shop: InMemory, message: Message, message_id: str = "message-1") -> Outcome:
    return handle(message, shop.dependencies, permitted(message), correlation_id="wish-1", message_id=message_id)


def test_a_repeated_message_returns_the_same_events_and_appends_nothing(shop: InMemory) -> None:
    first = send(shop, allocate)
    head = shop.head
    again = send(shop, but(allocate, at=NOW + timedelta(minutes=3)))
    assert again.context.recorded == first.context.recorded
    assert len(first.context.recorded) == 1
    assert shop.head == head


def test_another_message_under_a_known_id_is_refused_and_changes_nothing(shop: InMemory) -> None:
    send(shop, allocate)
    head = shop.head
    with pytest.raises(MessageIdReused, match=r"message-1 was used for another message"):
        send(shop, but(allocate, quantity=1, allocation_id="allocation-2"))
    with pytest.raises(MessageIdReused):
        send(shop, create_factory)
    assert shop.head == head


def test_a_message_without_effect_is_remembered_too(shop: InMemory) -> None:
    assert send(shop, create_factory).context.recorded == []
    with pytest.raises(MessageIdReused):
        send(shop, allocate)


def test_a_refusal_is_not_remembered(shop: InMemory) -> None:
    with pytest.raises(PoolExhausted):
        send(shop, but(allocate, quantity=1_000))
    assert len(send(shop, allocate).context.recorded) == 1


def test_two_messages_with_the_same_content_are_both_processed(shop: InMemory) -> None:
    send(shop, order(), "message-1")
    assert send(shop, order(), "message-2").context.recorded == []


def test_one_of_many_copies_at_once_is_processed_and_all_get_its_answer(postgres: Log) -> None:
    shop = InMemory(log=postgres).with_factory()
    head = shop.head
    copies = [but(allocate, at=NOW + timedelta(seconds=n)) for n in range(16)]
    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(lambda copy: send(shop, copy), copies))
    assert shop.head == head + 1
    assert {outcome.context.recorded[0].position for outcome in outcomes} == {head + 1}


def test_messages_of_many_senders_at_once_are_each_processed_once(postgres: Log) -> None:
    shop = InMemory(log=postgres).with_factory()
    wishes = [
        AllocateCapacity.model_validate(
            {**dict(allocate), "allocation_id": f"minutes-{n}", "service": "recording_minutes", "quantity": 1}
        )
        for n in range(12)
    ]
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda n: send(shop, wishes[n % 12], f"message-{n % 12}"), range(36)))
    stream = postgres.load("allocation-pkg-acme")
    done = [recorded.event.allocation_id for recorded in stream if hasattr(recorded.event, "allocation_id")]
    assert sorted(done) == sorted(f"minutes-{n}" for n in range(12))
