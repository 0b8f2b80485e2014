"""The reactions on NATS: one durable consumer each, bound by FastStream. Handlers know nothing of either."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from json import JSONDecodeError
from typing import Any

from faststream import AckPolicy, BaseMiddleware
from faststream.exceptions import NackMessage, RejectMessage
from faststream.message import StreamMessage
from faststream.nats import JStream, NatsBroker, PullSub
from nats.errors import Error as NatsError
from pydantic import ValidationError

from domain.messages import Event
from handlers.commands import handle
from handlers.desk import SYSTEM, House
from handlers.reactions import REACTIONS, Reaction
from infra.cloudevents import CloudEvent
from infra.nats import DEAD_LETTER_SUBJECTS, DEAD_LETTERS, EVENTS, PUBLISH_S, subject_of

TRIES = 12
LONGEST_DELAY_S = 60
STOP_S = 5.0
logger = logging.getLogger(__name__)


class UnknownPosition(Exception):
    """A message names an event that the log does not have there."""


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
        except (ValidationError, JSONDecodeError, UnicodeDecodeError, UnknownPosition) as error:
            await self._bury(msg, error)
        except Exception as error:
            tries = msg.raw_message.metadata.num_delivered
            if tries >= TRIES:
                await self._bury(msg, error)
            logger.warning("delivery %s of %s failed: %s", tries, msg.raw_message.subject, error)
            delay = min(LONGEST_DELAY_S, 0.2 * 2**tries)
            raise NackMessage(delay=delay * random.uniform(0.8, 1.2)) from error  # noqa: S311 - spreads, keeps no secret

    async def _bury(self, msg: StreamMessage[Any], error: Exception) -> None:
        logger.error("to the dead letters: %s: %s", msg.raw_message.subject, error)
        broker: NatsBroker = self.context.get("broker")
        await broker.publish(
            msg.body,
            f"{DEAD_LETTER_SUBJECTS}.{msg.raw_message.metadata.consumer}",
            headers={"Trunkline-Error": " ".join(f"{type(error).__name__}: {error}".split())[:1000]},
            stream=DEAD_LETTERS,
            timeout=PUBLISH_S,
        )
        raise RejectMessage from error


def reactions_broker(nats_url: str, house: House) -> NatsBroker:
    """A broker with a subscriber for each reaction. Streams and consumers are there already: see `infra.nats`."""
    broker = NatsBroker(
        nats_url,
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
    return broker


@asynccontextmanager
async def reacting(nats_url: str, house: House) -> AsyncIterator[None]:
    """Reactions, while the context lasts."""
    broker = reactions_broker(nats_url, house)
    client = await broker.connect()
    try:
        await broker.start()
        yield
    finally:
        with suppress(NatsError, TimeoutError):  # it drains the connection, which it cannot where that is broken
            async with asyncio.timeout(STOP_S):
                await broker.stop()
        await client.close()


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
