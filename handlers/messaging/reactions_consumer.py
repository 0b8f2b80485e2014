"""Reactions on NATS: each one a durable consumer of its own, by FastStream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from concurrent.futures import Executor
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from functools import partial
from typing import Any

from faststream import AckPolicy, BaseMiddleware
from faststream.exceptions import NackMessage, RejectMessage
from faststream.message import StreamMessage
from faststream.nats import JStream, NatsBroker, PullSub
from nats.aio.client import Client
from nats.errors import Error as NatsError

from domain.messages import Event
from handlers.context import SYSTEM
from handlers.dependencies import Dependencies
from handlers.dispatch import handle
from handlers.messaging.precedence import Precedence
from handlers.messaging.redelivery import PermanentFailure, bury, retry_delay_s
from handlers.reactions import REACTIONS, Reaction
from infra import tracing
from infra.broker.cloudevents import CloudEvent
from infra.broker.dead_letters import Letter
from infra.broker.nats import DEAD_LETTERS, EVENTS, PUBLISH_S, addresses, close, in_work, subject_of

FETCH_S = 1.0
STOP_S = 5.0
REACTION_CONCURRENCY = 8
"""Events that each reaction handles at a time: most of that time it waits for a mail server or a document."""

logger = logging.getLogger(__name__)

Check = Callable[[], Awaitable[None]]
"""Raises `SubscriberEnded`, or the error of NATS, if a reaction is not served."""


class EventNotInLog(PermanentFailure):
    """A message names an event that the log does not have at that position."""


class SubscriberEnded(Exception):
    """A subscriber no longer fetches: FastStream does not restart one whose task was cancelled, as nats-py may do."""


def durable_consumers() -> dict[str, type[Event]]:
    """Return the durable consumer of each reaction, and the event that it reads."""
    return {reaction.name: event for event, reactions in REACTIONS.items() for reaction in reactions}


@asynccontextmanager
async def consuming_reactions(
    nats_url: str, dependencies: Dependencies, threads: Executor, precedence: Precedence, wanted: Collection[Reaction]
) -> AsyncIterator[Check]:
    """Run reactions while the context lasts. Yields a check that they are served.

    The check uses the connection that the reactions fetch over: a connection to a server that is cut off from its
    cluster, or one that is dead, delivers nothing for minutes, which looks the same as an empty stream.
    """
    broker = _broker(nats_url, dependencies, threads, precedence, wanted)
    client = await connect(broker)

    async def check() -> None:
        check_subscribers(broker)
        for reaction in wanted:
            await client.jetstream().consumer_info(EVENTS, reaction.name)

    try:
        await broker.start()
        yield check
    finally:
        await asyncio.shield(_end(broker, client))  # nothing stays open, however often the caller is cancelled


def follow(message: CloudEvent, reaction: Reaction, dependencies: Dependencies) -> None:
    """Handle the requests that follow from the event that a message names.

    Raises:
        EventNotInLog: the log has no such event there.
    """
    found = dependencies.log.read(message.position - 1, limit=1)
    if not found or str(found[0].event_id) != message.id:
        raise EventNotInLog(f"the log has no event {message.id} at position {message.position}")
    recorded = found[0]
    for number, request in enumerate(reaction.requests(recorded.event)):
        handle(
            request,
            dependencies,
            SYSTEM,
            correlation_id=recorded.cause.correlation_id,
            causation_id=str(recorded.event_id),
            message_id=f"{reaction.name}:{recorded.event_id}:{number}",
        )


async def connect(broker: NatsBroker) -> Client:
    """Connect a broker. If this is cancelled, its connection is closed rather than leaked."""
    connecting = asyncio.create_task(broker.connect())
    try:
        return await asyncio.shield(connecting)
    except asyncio.CancelledError:
        with suppress(NatsError, OSError, TimeoutError):
            async with asyncio.timeout(STOP_S):
                await close(await connecting)
        raise


def check_subscribers(broker: NatsBroker) -> None:
    """Check that every subscriber is fetching.

    Raises:
        SubscriberEnded: one is not, and would never notice.
    """
    for subscriber in broker.subscribers:
        for task in getattr(subscriber, "tasks", ()):
            if not task.done() or (not task.cancelled() and task.exception()):
                continue  # it runs, or FastStream has restarted it
            raise SubscriberEnded("a reaction's subscriber has ended")


class Delivery(BaseMiddleware):
    """Redelivers an event that a reaction could not handle, or moves it to the dead letters."""

    async def consume_scope(
        self, call_next: Callable[[StreamMessage[Any]], Awaitable[Any]], msg: StreamMessage[Any]
    ) -> Any:  # noqa: ANN401 - FastStream's signature
        """Handle one delivery."""
        try:
            with tracing.received(msg.headers, msg.raw_message.metadata.consumer), in_work([msg.raw_message]):
                return await call_next(msg)
        except Exception as error:
            delay = retry_delay_s(msg.raw_message, error)
            if delay is not None:
                raise NackMessage(delay=delay) from error
            await bury(msg.raw_message, error, self._publish)
            raise RejectMessage from error

    async def _publish(self, letter: Letter) -> None:
        broker: NatsBroker = self.context.get("broker")
        headers = dict(letter.headers)
        await broker.publish(letter.body, letter.subject, headers=headers, stream=DEAD_LETTERS, timeout=PUBLISH_S)


def _broker(
    nats_url: str, dependencies: Dependencies, threads: Executor, precedence: Precedence, wanted: Collection[Reaction]
) -> NatsBroker:
    """A broker with a subscriber for each reaction in ``wanted``. Their streams and consumers exist already."""
    broker = NatsBroker(
        addresses(nats_url),
        max_reconnect_attempts=-1,
        connect_timeout=5,
        middlewares=(Delivery,),
        decoder=_cloud_event,
        apply_types=False,  # nothing is injected, and looking for it costs time for each message
        logger=logger,
        log_level=logging.DEBUG,
    )
    for event, reactions in REACTIONS.items():
        for reaction in reactions:
            if reaction not in wanted:
                continue
            subscriber = broker.subscriber(
                subject_of(event),
                stream=JStream(EVENTS, declare=False),
                durable=reaction.name,
                pull_sub=PullSub(batch_size=1, timeout=FETCH_S),
                max_workers=REACTION_CONCURRENCY,
                ack_policy=AckPolicy.NACK_ON_ERROR,
            )
            subscriber(_subscriber(reaction, dependencies, threads, precedence))
    return broker


def _subscriber(
    reaction: Reaction, dependencies: Dependencies, threads: Executor, precedence: Precedence
) -> Callable[[CloudEvent], Awaitable[None]]:
    async def react(message: CloudEvent) -> None:
        follows = partial(copy_context().run, follow, message, reaction, dependencies)
        async with precedence.of(reaction):
            await asyncio.get_running_loop().run_in_executor(threads, follows)

    return react


async def _cloud_event(message: StreamMessage[Any]) -> CloudEvent:
    return CloudEvent.model_validate_json(message.body)


async def _end(broker: NatsBroker, client: Client) -> None:
    """Stop the reactions after the events in progress, and close the connection.

    The broker's own `stop` drains the connection first, which needs a server that answers.
    """
    try:
        async with asyncio.timeout(STOP_S):
            await super(NatsBroker, broker).stop()
    except* (NatsError, TimeoutError) as errors:
        logger.debug("the reactions were stopped before they ended: %s", errors.exceptions)
    finally:
        await close(client)
