"""NATS JetStream: the connection to it, and the streams and consumers that Trunkline keeps there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StreamConfig
from nats.js.errors import BadRequestError, NotFoundError

from domain.messages import Event
from infra.audit.checkpoints import Checkpoint, NoCheckpoint, checkpoint_of

EVENTS = "TRUNKLINE_EVENTS"
COMMANDS = "TRUNKLINE_COMMANDS"
DEAD_LETTERS = "TRUNKLINE_DEAD_LETTERS"
EVENT_SUBJECTS = "trunkline.events.v1"
COMMAND_SUBJECTS = "trunkline.commands.v1"
DEAD_LETTER_SUBJECTS = "trunkline.dead-letters.v1"
CHECKPOINTS = "TRUNKLINE_CHECKPOINTS"
CHECKPOINT_SUBJECT = "trunkline.checkpoints.v1"
REDELIVERY_SUBJECTS = "trunkline.redelivery.v1"
"""Where a dead letter comes back, for the one consumer that had it: no other is to get the same message again."""

HISTORY_SUBJECT = "trunkline.history.v1"
COMMANDS_CONSUMER = "commands"
DUPLICATES_S = 120.0
ACK_S = 20.0
"""So long after the last that was heard of it, a message comes to somebody else: see `in_work`."""
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

    client = Client()
    try:
        try:
            # With endless reconnecting, the first connection would be tried for ever too: so it has a time of its own.
            async with asyncio.timeout(CONNECT_S):
                await client.connect(urls, max_reconnect_attempts=-1, error_cb=broken)
        except (NatsError, OSError, TimeoutError, ValueError) as error:
            reason = str(client.last_error or error) or f"there is no answer in {CONNECT_S} s"
            raise BrokerUnavailable(f"TRUNKLINE_NATS_URL ({where}) does not serve: {reason}.") from error
        yield client
    finally:
        await close(client)


async def close(client: Client) -> None:
    """Close a connection, whatever it is doing.

    Where nats-py has just begun to make it anew, its own `close` cancels what it then waits for itself, and ends as if
    somebody had cancelled whoever called it.
    """
    closing = asyncio.create_task(client.close())
    await asyncio.wait([closing])
    if not closing.cancelled():
        closing.result()


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
    limits = limits or Limits()
    for stream in streams(limits):
        await _stream(jetstream, stream)
    await jetstream.add_consumer(COMMANDS, _durable(COMMANDS_CONSUMER, []))
    await provision_checkpoints(jetstream, limits)
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


@contextmanager
def in_work(messages: Sequence[Msg]) -> Iterator[None]:
    """Tell the server now and then, while the context lasts, that messages are being dealt with.

    So what somebody had who has died comes to another soon, and what takes long comes to nobody else.
    """
    loop = asyncio.get_running_loop()
    every_s = ACK_S / 4
    telling: set[asyncio.Task[None]] = set()
    timer: asyncio.TimerHandle

    def tell() -> None:
        nonlocal timer
        task = loop.create_task(_in_work(messages))
        telling.add(task)
        task.add_done_callback(telling.discard)
        timer = loop.call_later(every_s, tell)

    timer = loop.call_later(every_s, tell)
    try:
        yield
    finally:
        timer.cancel()


async def _in_work(messages: Sequence[Msg]) -> None:
    for message in messages:
        with suppress(NatsError):  # while NATS is away, it comes again
            await message.in_progress()


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


async def provision_checkpoints(jetstream: JetStreamContext, limits: Limits) -> None:
    """Bring the stream of signed checkpoints to what it should be; none of its messages can be deleted or purged."""
    config = StreamConfig(
        name=CHECKPOINTS,
        subjects=[CHECKPOINT_SUBJECT],
        discard=DiscardPolicy.NEW,
        deny_delete=True,
        deny_purge=True,
        num_replicas=limits.replicas,
    )
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
