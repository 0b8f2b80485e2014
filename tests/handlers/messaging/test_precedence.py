"""Work that a customer waits for goes before mails."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

import handlers.messaging.precedence
from handlers.messaging.precedence import MAIL_THROTTLE_THRESHOLD, Precedence
from handlers.reactions import FULFIL_ORDER, ISSUE_INVOICE, MAIL_CREDIT_NOTE, MAIL_INVOICE


async def _mails_at_once(precedence: Precedence) -> int:
    """The number of mails, out of three, that are sent concurrently."""
    running = most = 0

    async def mail() -> None:
        nonlocal running, most
        async with precedence.of(MAIL_INVOICE if most % 2 else MAIL_CREDIT_NOTE):
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.01)
            running -= 1

    await asyncio.gather(mail(), mail(), mail())
    return most


def test_mails_are_sent_one_at_a_time_under_load_and_concurrently_otherwise() -> None:
    async def all_of_it() -> list[int]:
        precedence = Precedence()
        found = [await _mails_at_once(precedence)]
        async with AsyncExitStack() as under_way:
            for number in range(MAIL_THROTTLE_THRESHOLD):
                await under_way.enter_async_context(precedence.of(ISSUE_INVOICE if number else FULFIL_ORDER))
            found.append(await _mails_at_once(precedence))
        return [*found, await _mails_at_once(precedence)]

    assert asyncio.run(all_of_it()) == [3, 1, 3]


def test_a_hanging_mail_delays_the_next_one_for_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers.messaging.precedence, "MAIL_WAIT_MAX_S", 0.01)

    async def all_of_it() -> int:
        precedence = Precedence()
        async with AsyncExitStack() as under_way:
            for _ in range(MAIL_THROTTLE_THRESHOLD):
                await under_way.enter_async_context(precedence.of(ISSUE_INVOICE))
            async with precedence.of(MAIL_INVOICE), precedence.of(MAIL_INVOICE):
                pass
            monkeypatch.undo()
            return await _mails_at_once(precedence)

    assert asyncio.run(asyncio.wait_for(all_of_it(), 5)) == 1, "and one at a time again"


def test_nothing_that_a_customer_waits_for_waits_for_a_mail() -> None:
    async def all_of_it() -> None:
        precedence = Precedence()
        async with AsyncExitStack() as under_way:
            await under_way.enter_async_context(precedence.of(MAIL_INVOICE))
            for _ in range(2 * MAIL_THROTTLE_THRESHOLD):
                await under_way.enter_async_context(precedence.of(ISSUE_INVOICE))

    asyncio.run(asyncio.wait_for(all_of_it(), 5))
