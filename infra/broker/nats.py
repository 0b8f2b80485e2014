"""NATS JetStream: the connection, and the streams and consumers that Trunkline needs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StreamConfig
from nats.js.errors import BadRequestError

from domain.messages import Event
from infra.settings import Limits

EVENTS = "TRUNKLINE_EVENTS"
COMMANDS = "TRUNKLINE_COMMANDS"
DEAD_LETTERS = "TRUNKLINE_DEAD_LETTERS"
EVENT_SUBJECTS = "trunkline.events.v1"
COMMAND_SUBJECTS = "trunkline.commands.v1"
DEAD_LETTER_SUBJECTS = "trunkline.dead-letters.v1"
REDELIVERY_SUBJECTS = "trunkline.redelivery.v1"
"""Replayed dead letters are published here, for the one consumer that failed: no other may get the message twice."""

HISTORY_SUBJECT = "trunkline.history.v1"
COMMANDS_CONSUMER = "commands"
DUPLICATES_S = 120.0
ACK_S = 20.0
"""A message is redelivered if nothing was heard of it for this long: see `in_work`."""
DAY_S = 86_400
PUBLISH_S = 5.0
CONNECT_S = 5
logger = logging.getLogger(__name__)


class BrokerUnavailable(Exception):
    """NATS cannot be reached, or has no JetStream. The message names the setting."""


def subject_of(event: type[Event]) -> str:
    """Return the subject for an event: its aggregate and its name, never an id."""
    aggregate, name, _version = event.TOPIC.split(".")
    return f"{EVENT_SUBJECTS}.{aggregate}.{name}"


@asynccontextmanager
async def connected(nats_url: str) -> AsyncIterator[Client]:
    """Connect to NATS. A broken connection is re-established, with unlimited attempts.

    Raises:
        BrokerUnavailable: the first attempt failed.
    """
    urls = addresses(nats_url)
    where = ", ".join(url.rpartition("@")[2] for url in urls)

    async def broken(error: Exception) -> None:
        logger.warning("the connection to NATS at %s: %s", where, error)

    client = Client()
    try:
        try:
            # Unlimited reconnecting would also retry the first connection forever, so that has its own timeout.
            async with asyncio.timeout(CONNECT_S):
                await client.connect(urls, max_reconnect_attempts=-1, error_cb=broken)
        except (NatsError, OSError, TimeoutError, ValueError) as error:
            reason = str(client.last_error or error) or f"no answer within {CONNECT_S} s"
            raise BrokerUnavailable(f"TRUNKLINE_NATS_URL ({where}) is unavailable: {reason}.") from error
        yield client
    finally:
        await close(client)


async def close(client: Client) -> None:
    """Close a connection in any state.

    If nats-py has just begun to reconnect, its own `close` cancels a task that it then awaits, and so raises
    CancelledError as if its caller had been cancelled.
    """
    closing = asyncio.create_task(client.close())
    await asyncio.wait([closing])
    if not closing.cancelled():
        closing.result()


def addresses(nats_url: str) -> list[str]:
    """Split a setting into server URLs, separated by commas; any of them leads into the cluster."""
    return [url.strip() for url in nats_url.split(",")]


async def provision(
    jetstream: JetStreamContext, consumers: Mapping[str, type[Event]], limits: Limits | None = None
) -> None:
    """Create or update streams and durable consumers. Several processes may do so at once.

    Args:
        jetstream: the server.
        consumers: the event that each durable consumer reads, by the consumer's name.
        limits: the limits of the streams.
    """
    limits = limits or Limits()
    for stream in streams(limits):
        await provision_stream(jetstream, stream)
    await jetstream.add_consumer(COMMANDS, _durable(COMMANDS_CONSUMER, []))
    for name, event in consumers.items():
        await jetstream.add_consumer(EVENTS, _durable(name, [subject_of(event), redelivery_to(EVENTS, name)]))


def redelivery_to(stream: str, consumer: str) -> str:
    """Return the subject that redelivers a dead letter to a consumer of a stream."""
    return f"{REDELIVERY_SUBJECTS}.{'commands' if stream == COMMANDS else 'events'}.{consumer}"


def streams(limits: Limits) -> list[StreamConfig]:
    """Return the configuration of the streams.

    Commands may hold personal data, so they leave their stream as soon as they are processed. That stream also takes
    commands of unknown versions, so that they are answered. When the stream of commands or of dead letters is full,
    publishing fails; the stream of events, which the log has, discards the oldest.
    """
    return [
        StreamConfig(
            name=EVENTS,
            subjects=[f"{EVENT_SUBJECTS}.>", redelivery_to(EVENTS, "*")],
            duplicate_window=DUPLICATES_S,
            max_bytes=limits.events_max_bytes or -1,
            max_age=limits.events_max_age_days * DAY_S,
            num_replicas=limits.replicas,
        ),
        StreamConfig(
            name=COMMANDS,
            subjects=["trunkline.commands.>", redelivery_to(COMMANDS, COMMANDS_CONSUMER)],
            retention=RetentionPolicy.WORK_QUEUE,
            discard=DiscardPolicy.NEW,
            max_bytes=limits.commands_max_bytes or -1,
            num_replicas=limits.replicas,
        ),
        StreamConfig(
            name=DEAD_LETTERS,
            subjects=[f"{DEAD_LETTER_SUBJECTS}.>"],
            discard=DiscardPolicy.NEW,
            max_bytes=limits.dead_letters_max_bytes or -1,
            max_age=limits.dead_letters_max_age_days * DAY_S,
            num_replicas=limits.replicas,
        ),
    ]


def _durable(name: str, subjects: list[str]) -> ConsumerConfig:
    return ConsumerConfig(
        name=name,
        durable_name=name,
        filter_subjects=subjects or None,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ACK_S,
        max_deliver=-1,
    )


@contextmanager
def in_work(messages: Sequence[Msg]) -> Iterator[None]:
    """Tell the server regularly, while the context lasts, that messages are in progress.

    So `ACK_S` can be short: messages of a process that died are redelivered soon, and slow ones are not redelivered.
    """
    loop = asyncio.get_running_loop()
    every_s = ACK_S / 4
    tasks: set[asyncio.Task[None]] = set()
    timer: asyncio.TimerHandle

    def extend() -> None:
        nonlocal timer
        task = loop.create_task(_in_work(messages))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        timer = loop.call_later(every_s, extend)

    timer = loop.call_later(every_s, extend)
    try:
        yield
    finally:
        timer.cancel()


async def _in_work(messages: Sequence[Msg]) -> None:
    for message in messages:
        with suppress(NatsError):  # if NATS is away now, the next one will do
            await message.in_progress()


async def provision_stream(jetstream: JetStreamContext, config: StreamConfig) -> None:
    """Create a stream, or update it if it exists."""
    try:
        await jetstream.add_stream(config)
    except BadRequestError:
        await jetstream.update_stream(config)
