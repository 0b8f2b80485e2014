"""NATS JetStream: the streams and consumers that Trunkline keeps there, and the relay that feeds them from the log."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import nats
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, StreamConfig
from nats.js.errors import BadRequestError, NotFoundError
from psycopg import Connection
from psycopg.rows import DictRow

from domain.messages import Event
from infra.checkpoints import Checkpoint, NoCheckpoint, checkpoint_of
from infra.cloudevents import cloud_event
from infra.log import Log
from infra.postgres import connect, move_position, only_one, position_of
from infra.pydantic_mapper import Recorded

EVENTS = "TRUNKLINE_EVENTS"
DEAD_LETTERS = "TRUNKLINE_DEAD_LETTERS"
EVENT_SUBJECTS = "trunkline.events.v1"
DEAD_LETTER_SUBJECTS = "trunkline.dead-letters.v1"
CHECKPOINTS = "TRUNKLINE_CHECKPOINTS"
CHECKPOINT_SUBJECT = "trunkline.checkpoints.v1"
PAGE = 200
RELAY = "relay"
ACK_S = 60
PUBLISH_S = 5.0
CONNECT_S = 5
logger = logging.getLogger(__name__)


class BrokerUnavailable(Exception):
    """NATS cannot be reached, or has no JetStream. The text names the setting."""


def subject_of(event: type[Event]) -> str:
    """Where messages of an event go: its aggregate and its name, and never an id."""
    aggregate, name, _version = event.TOPIC.split(".")
    return f"{EVENT_SUBJECTS}.{aggregate}.{name}"


@asynccontextmanager
async def connected(nats_url: str) -> AsyncIterator[Client]:
    """A connection that is made anew, for ever, when it breaks.

    Raises:
        BrokerUnavailable: it cannot be made the first time.
    """
    where = nats_url.rpartition("@")[2]

    async def broken(error: Exception) -> None:
        logger.warning("the connection to NATS at %s: %s", where, error)

    try:
        # With endless reconnecting, the first connection would be tried for ever too: so it has a time of its own.
        async with asyncio.timeout(CONNECT_S):
            client = await nats.connect(nats_url, max_reconnect_attempts=-1, error_cb=broken)
    except (NatsError, OSError, TimeoutError, ValueError) as error:
        reason = str(error) or f"there is no answer in {CONNECT_S} s"
        raise BrokerUnavailable(f"TRUNKLINE_NATS_URL ({where}) does not serve: {reason}.") from error
    try:
        yield client
    finally:
        await client.close()


async def provision(jetstream: JetStreamContext, consumers: dict[str, type[Event]]) -> None:
    """Bring streams and durable consumers to what they should be; several processes may do so at once.

    Args:
        jetstream: where.
        consumers: for each durable consumer's name, the event that it reads.
    """
    await _stream(jetstream, StreamConfig(name=EVENTS, subjects=[f"{EVENT_SUBJECTS}.>"], duplicate_window=120))
    await _stream(
        jetstream,
        StreamConfig(name=DEAD_LETTERS, subjects=[f"{DEAD_LETTER_SUBJECTS}.>"], discard=DiscardPolicy.NEW),
    )
    await provision_checkpoints(jetstream)
    for name, event in consumers.items():
        config = ConsumerConfig(
            name=name,
            durable_name=name,
            filter_subject=subject_of(event),
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_S,
            max_deliver=-1,
        )
        await jetstream.add_consumer(EVENTS, config)


@asynccontextmanager
async def checkpoints_at(nats_url: str) -> AsyncIterator[JetStreamContext]:
    """JetStream, for whoever makes or reads checkpoints from the command line.

    Raises:
        BrokerUnavailable: it cannot be reached, or does not do what is asked; names the setting.
    """
    async with connected(nats_url) as client:
        try:
            yield client.jetstream()
        except (NatsError, TimeoutError) as error:
            where, reason = nats_url.rpartition("@")[2], str(error) or type(error).__name__
            raise BrokerUnavailable(f"TRUNKLINE_NATS_URL ({where}) does not serve: {reason}.") from error


async def provision_checkpoints(jetstream: JetStreamContext) -> None:
    """Bring the stream of signed checkpoints to what it should be; none of its messages can be deleted or purged."""
    config = StreamConfig(name=CHECKPOINTS, subjects=[CHECKPOINT_SUBJECT], deny_delete=True, deny_purge=True)
    config.discard = DiscardPolicy.NEW
    await _stream(jetstream, config)


async def publish_checkpoint(jetstream: JetStreamContext, checkpoint: Checkpoint) -> None:
    """Publish a checkpoint, and wait until it is stored."""
    await jetstream.publish(
        CHECKPOINT_SUBJECT,
        checkpoint.line(),
        stream=CHECKPOINTS,
        timeout=PUBLISH_S,
        headers={"Nats-Msg-Id": checkpoint.signature, "Content-Type": "application/json"},
    )


async def last_checkpoint(jetstream: JetStreamContext) -> Checkpoint | None:
    """The checkpoint that was published last; none where none was."""
    try:
        message = await jetstream.get_last_msg(CHECKPOINTS, CHECKPOINT_SUBJECT)
    except NotFoundError:
        return None
    return checkpoint_of(message.data or b"", f"The last message of {CHECKPOINTS}")


async def published_checkpoints(jetstream: JetStreamContext) -> list[Checkpoint]:
    """Every checkpoint that was published, in the order of positions.

    Raises:
        NoCheckpoint: there is no such stream, or a message of it is none.
    """
    try:
        count = (await jetstream.stream_info(CHECKPOINTS)).state.messages
    except NotFoundError:
        raise NoCheckpoint(f"There is no stream {CHECKPOINTS} of checkpoints on the broker.") from None
    subscription = await jetstream.subscribe(CHECKPOINT_SUBJECT, stream=CHECKPOINTS, ordered_consumer=True)
    messages = [await subscription.next_msg(timeout=PUBLISH_S) for _ in range(count)]
    await subscription.unsubscribe()
    found = [checkpoint_of(message.data, f"A message of {CHECKPOINTS}") for message in messages]
    return sorted(found, key=lambda checkpoint: checkpoint.position)


async def _stream(jetstream: JetStreamContext, config: StreamConfig) -> None:
    try:
        await jetstream.add_stream(config)
    except BadRequestError:
        await jetstream.update_stream(config)


async def relay(database_url: str, log: Log, jetstream: JetStreamContext, stopping: threading.Event) -> None:
    """Publish the log, from where the last relay came to, until ``stopping``; an empty stream gets all of it again.

    One process does so at a time. The position moves after the acknowledgements: a crash in between publishes again,
    under the same ids, and never leaves out.
    """
    with await asyncio.to_thread(connect, database_url) as conn:
        while not stopping.is_set() and not await asyncio.to_thread(only_one, conn, RELAY):
            await asyncio.to_thread(stopping.wait, 1.0)
        if not stopping.is_set() and not (await jetstream.stream_info(EVENTS)).state.messages:
            await asyncio.to_thread(move_position, conn, RELAY, 0)  # it is new, or was wiped with what was to be done
        while not stopping.is_set():
            position = await _relay_page(conn, log, jetstream)
            if position is not None:
                await asyncio.to_thread(log.wait, position, 1.0, stopping)


async def _relay_page(conn: Connection[DictRow], log: Log, jetstream: JetStreamContext) -> int | None:
    """Publish a page. Gives the position where the log had nothing more."""
    position = await asyncio.to_thread(position_of, conn, RELAY)
    events = await asyncio.to_thread(log.read, position, limit=PAGE)
    if not events:
        return position
    await _publish(jetstream, events)
    await asyncio.to_thread(move_position, conn, RELAY, events[-1].position)
    return None


async def _publish(jetstream: JetStreamContext, events: Iterable[Recorded]) -> None:
    acknowledgements = [
        await jetstream.publish_async(
            subject_of(type(recorded.event)),
            cloud_event(recorded).model_dump_json().encode(),
            stream=EVENTS,
            headers={"Nats-Msg-Id": str(recorded.event_id), "Content-Type": "application/cloudevents+json"},
        )
        for recorded in events
    ]
    await asyncio.wait_for(asyncio.gather(*acknowledgements), PUBLISH_S)
