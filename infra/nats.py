"""NATS JetStream: the connection to it, and the streams and consumers that Trunkline keeps there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import nats
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StreamConfig
from nats.js.errors import BadRequestError

from domain.messages import Event

EVENTS = "TRUNKLINE_EVENTS"
COMMANDS = "TRUNKLINE_COMMANDS"
DEAD_LETTERS = "TRUNKLINE_DEAD_LETTERS"
EVENT_SUBJECTS = "trunkline.events.v1"
COMMAND_SUBJECTS = "trunkline.commands.v1"
DEAD_LETTER_SUBJECTS = "trunkline.dead-letters.v1"
REDELIVERY_SUBJECTS = "trunkline.redelivery.v1"
"""Where a dead letter comes back, for the one consumer that had it: no other is to get the same message again."""

HISTORY_SUBJECT = "trunkline.history.v1"
COMMANDS_CONSUMER = "commands"
DUPLICATES_S = 120.0
ACK_S = 60
DAY_S = 86_400
PUBLISH_S = 5.0
CONNECT_S = 5
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """How large the streams may grow, how long they keep, and on how many servers. 0 is without a limit."""

    replicas: int = 1
    events_max_bytes: int = 0
    events_max_age_days: int = 0
    commands_max_bytes: int = 0
    dead_letters_max_bytes: int = 0
    dead_letters_max_age_days: int = 0


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
    urls = addresses(nats_url)
    where = ", ".join(url.rpartition("@")[2] for url in urls)

    async def broken(error: Exception) -> None:
        logger.warning("the connection to NATS at %s: %s", where, error)

    try:
        # With endless reconnecting, the first connection would be tried for ever too: so it has a time of its own.
        async with asyncio.timeout(CONNECT_S):
            client = await nats.connect(urls, max_reconnect_attempts=-1, error_cb=broken)
    except (NatsError, OSError, TimeoutError, ValueError) as error:
        reason = str(error) or f"there is no answer in {CONNECT_S} s"
        raise BrokerUnavailable(f"TRUNKLINE_NATS_URL ({where}) does not serve: {reason}.") from error
    try:
        yield client
    finally:
        await client.close()


def addresses(nats_url: str) -> list[str]:
    """The servers that a setting names, with commas between them: any of them leads into their cluster."""
    return [url.strip() for url in nats_url.split(",")]


async def provision(
    jetstream: JetStreamContext, consumers: Mapping[str, type[Event]], limits: Limits | None = None
) -> None:
    """Bring streams and durable consumers to what they should be; several processes may do so at once.

    Args:
        jetstream: where.
        consumers: for each durable consumer's name, the event that it reads.
        limits: of the streams.
    """
    for stream in streams(limits or Limits()):
        await _stream(jetstream, stream)
    await jetstream.add_consumer(COMMANDS, _durable(COMMANDS_CONSUMER, []))
    for name, event in consumers.items():
        await jetstream.add_consumer(EVENTS, _durable(name, [subject_of(event), redelivery_to(EVENTS, name)]))


def redelivery_to(stream: str, consumer: str) -> str:
    """Where a dead letter comes back to a consumer of a stream."""
    return f"{REDELIVERY_SUBJECTS}.{'commands' if stream == COMMANDS else 'events'}.{consumer}"


def streams(limits: Limits) -> list[StreamConfig]:
    """The streams as they should be.

    Commands leave theirs as soon as they are dealt with: they hold what persons wrote. Those of a version that we do
    not know come there too, to be answered. A sender notices when it is full, as does whoever buries a message; of
    events, which the log has, the oldest go.
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


async def _stream(jetstream: JetStreamContext, config: StreamConfig) -> None:
    try:
        await jetstream.add_stream(config)
    except BadRequestError:
        await jetstream.update_stream(config)
