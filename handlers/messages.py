"""Reactions and commands on NATS: durable consumers, bound by FastStream. Handlers know nothing of either."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from json import JSONDecodeError
from typing import Any

from faststream import AckPolicy, BaseMiddleware
from faststream.exceptions import NackMessage, RejectMessage
from faststream.message import StreamMessage
from faststream.nats import JStream, NatsBroker, PullSub
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from pydantic import ValidationError

from domain.messages import Event
from handlers.command_messages import Answer, Incoming, Unanswerable, account_named, deal_with
from handlers.commands import handle
from handlers.contract.history import END_HEADER
from handlers.desk import SYSTEM, House
from handlers.history import SENTENCE_HEADER, Part, told
from handlers.reactions import REACTIONS, Reaction
from infra.cloudevents import CloudEvent
from infra.dead_letters import first_stored_at, letter_of, original_subject
from infra.metrics import COMMANDS as OUTCOMES
from infra.metrics import DEAD_LETTERS as BURIED
from infra.metrics import RETRIES
from infra.nats import (
    COMMANDS,
    COMMANDS_CONSUMER,
    DEAD_LETTERS,
    EVENTS,
    HISTORY_SUBJECT,
    PUBLISH_S,
    addresses,
    subject_of,
)
from infra.senders import Sender

TRIES = 12
LONGEST_DELAY_S = 60
STOP_S = 5.0
AT_ONCE = 32
"""So many commands are dealt with at a time: they meet in one commit, and in a commit of 32 each costs little."""
logger = logging.getLogger(__name__)


class UnknownPosition(Exception):
    """A message names an event that the log does not have there."""


HOPELESS = (ValidationError, JSONDecodeError, UnicodeDecodeError, UnknownPosition, Unanswerable)
"""However often it is delivered, it stays what it is."""


def consumers() -> dict[str, type[Event]]:
    """The durable consumer of each reaction, and the event that it reads."""
    return {reaction.__name__: event for event, reactions in REACTIONS.items() for reaction in reactions}


class Delivery(BaseMiddleware):
    """What becomes of a message that could not be dealt with: again later, or to the dead letters.

    What cannot be read goes there at once; all else after `TRIES` deliveries, with growing pauses in between.
    """

    async def consume_scope(
        self, call_next: Callable[[StreamMessage[Any]], Awaitable[Any]], msg: StreamMessage[Any]
    ) -> Any:  # noqa: ANN401 - FastStream's signature
        """Deal with one delivery."""
        try:
            return await call_next(msg)
        except HOPELESS as error:
            await self._bury(msg, error)
        except Exception as error:
            tries = msg.raw_message.metadata.num_delivered
            if tries >= TRIES:
                await self._bury(msg, error)
            RETRIES.labels(msg.raw_message.metadata.consumer).inc()
            logger.warning("delivery %s of %s failed: %s", tries, msg.raw_message.subject, error)
            delay = min(LONGEST_DELAY_S, 0.2 * 2**tries)
            raise NackMessage(delay=delay * random.uniform(0.8, 1.2)) from error  # noqa: S311 - spreads, keeps no secret

    async def _bury(self, msg: StreamMessage[Any], error: Exception) -> None:
        letter = letter_of(msg.raw_message, error)
        logger.error("to the dead letters: %s: %s", msg.raw_message.subject, error)
        broker: NatsBroker = self.context.get("broker")
        await broker.publish(
            letter.body, letter.subject, headers=dict(letter.headers), stream=DEAD_LETTERS, timeout=PUBLISH_S
        )
        BURIED.labels(msg.raw_message.metadata.consumer).inc()
        raise RejectMessage from error


def our_broker(nats_url: str, house: House, senders: Sequence[Sender]) -> NatsBroker:
    """A broker with a subscriber for each reaction, and one for commands.

    Streams and consumers are there already: see `infra.nats`.
    """
    broker = NatsBroker(
        addresses(nats_url),
        max_reconnect_attempts=-1,
        connect_timeout=5,
        middlewares=(Delivery,),
        logger=logger,
        log_level=logging.DEBUG,
    )
    for event, reactions in REACTIONS.items():
        for reaction in reactions:
            subscriber = broker.subscriber(
                subject_of(event),
                stream=JStream(EVENTS, declare=False),
                durable=reaction.__name__,
                pull_sub=PullSub(batch_size=1, timeout=1.0),
                ack_policy=AckPolicy.NACK_ON_ERROR,
            )
            subscriber(_reacting(reaction, house))
    commands = broker.subscriber(
        "trunkline.commands.>",
        stream=JStream(COMMANDS, declare=False),
        durable=COMMANDS_CONSUMER,
        pull_sub=PullSub(batch_size=AT_ONCE, timeout=1.0),
        max_workers=AT_ONCE,
        decoder=_incoming,
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )
    commands(_Commands(house, senders, broker).deal_with)
    return broker


@asynccontextmanager
async def reacting(nats_url: str, house: House, senders: Sequence[Sender] = ()) -> AsyncIterator[None]:
    """Reactions and commands, while the context lasts."""
    broker = our_broker(nats_url, house, senders)
    client = await broker.connect()
    try:
        await broker.start()
        yield
    finally:
        with suppress(NatsError, TimeoutError):  # it drains the connection, which it cannot where that is broken
            async with asyncio.timeout(STOP_S):
                await broker.stop()
        await client.close()


# --- reactions -----------------------------------------------------------------------------------------------------


def _reacting(reaction: Reaction, house: House) -> Callable[[CloudEvent], Awaitable[None]]:
    async def react(message: CloudEvent) -> None:
        await asyncio.to_thread(follow, message, reaction, house)

    return react


def follow(message: CloudEvent, reaction: Reaction, house: House) -> None:
    """Do what follows from the event that a message names."""
    found = house.log.read(message.position - 1, limit=1)
    if not found or str(found[0].event_id) != message.id:
        raise UnknownPosition(f"the log has no event {message.id} at position {message.position}")
    recorded = found[0]
    for number, request in enumerate(reaction(recorded.event)):
        handle(
            request,
            house,
            SYSTEM,
            correlation_id=recorded.cause.correlation_id,
            causation_id=str(recorded.event_id),
            message_id=f"{reaction.__name__}:{recorded.event_id}:{number}",
        )


# --- history -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def telling_history(client: Client, house: House, senders: Sequence[Sender]) -> AsyncIterator[None]:
    """Requests for past events, while the context lasts; each is answered by one of all processes."""

    async def tell(request: Msg) -> None:
        if not request.reply:
            return

        def page() -> list[Part]:
            return list(told(request.reply, request.headers or {}, request.data, house, senders))

        try:
            parts = await asyncio.to_thread(page)
        except Exception as error:  # noqa: BLE001 - whatever it is, who asked is told, and asks again
            logger.warning("a request for past events failed: %s", error)
            parts = [Part({END_HEADER: "failed", SENTENCE_HEADER: "Something that this needs is away; ask again."})]
        for part in parts:
            await client.publish(request.reply, part.body, headers=dict(part.headers))

    subscription = await client.subscribe(HISTORY_SUBJECT, queue="history", cb=tell)
    try:
        yield
    finally:
        with suppress(NatsError):
            await subscription.unsubscribe()


# --- commands ------------------------------------------------------------------------------------------------------


async def _incoming(msg: StreamMessage[Any]) -> Incoming:
    """A message as it came: what is wrong with its body is for `deal_with` to say."""
    raw = msg.raw_message
    return Incoming(original_subject(raw), raw.headers or {}, raw.data, first_stored_at(raw))


class _Commands:
    """Deals with many commands at a time, and with those of one account in the order in which they came."""

    def __init__(self, house: House, senders: Sequence[Sender], broker: NatsBroker) -> None:
        self._house = house
        self._senders = senders
        self._broker = broker
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="command")
        self._queues: dict[str, list[asyncio.Event]] = {}

    async def deal_with(self, incoming: Any) -> None:  # noqa: ANN401 - an `Incoming`, which pydantic need not look at
        """Deal with one delivery, and answer."""
        async with self._turn(account_named(incoming.body)):
            answer: Answer = await asyncio.get_running_loop().run_in_executor(
                self._threads, deal_with, incoming, self._house, self._senders
            )
        OUTCOMES.labels(answer.command, answer.outcome).inc()
        if answer.subject:
            await self._broker.publish(answer.body, answer.subject)

    @asynccontextmanager
    async def _turn(self, account_id: str | None) -> AsyncIterator[None]:
        """Wait until all that came before for an account is dealt with."""
        if account_id is None:
            yield
            return
        queue = self._queues.setdefault(account_id, [])
        mine = asyncio.Event()
        queue.append(mine)
        try:
            if queue[0] is not mine:
                await mine.wait()
            yield
        finally:
            queue.remove(mine)
            if queue:
                queue[0].set()
            else:
                del self._queues[account_id]
