"""Signed checkpoints on the broker, in a stream whose messages cannot be deleted or purged."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, StreamConfig
from nats.js.errors import NotFoundError

from infra.audit.checkpoints import Checkpoint, NoCheckpoint, checkpoint_of
from infra.broker.nats import PUBLISH_S, BrokerUnavailable, connected, provision_stream
from infra.settings import Limits

CHECKPOINTS = "TRUNKLINE_CHECKPOINTS"
CHECKPOINT_SUBJECT = "trunkline.checkpoints.v1"


@asynccontextmanager
async def checkpoints_at(nats_url: str) -> AsyncIterator[JetStreamContext]:
    """Connect to JetStream, for commands that make or read checkpoints.

    Raises:
        BrokerUnavailable: it cannot be reached, or a request fails; names the setting.
    """
    async with connected(nats_url) as client:
        try:
            yield client.jetstream()
        except (NatsError, TimeoutError) as error:
            where, reason = nats_url.rpartition("@")[2], str(error) or type(error).__name__
            raise BrokerUnavailable(f"TRUNKLINE_NATS_URL ({where}) is unavailable: {reason}.") from error


async def provision_checkpoints(jetstream: JetStreamContext, limits: Limits) -> None:
    """Create or update the stream of signed checkpoints, whose messages cannot be deleted or purged."""
    config = StreamConfig(
        name=CHECKPOINTS,
        subjects=[CHECKPOINT_SUBJECT],
        discard=DiscardPolicy.NEW,
        deny_delete=True,
        deny_purge=True,
        num_replicas=limits.replicas,
    )
    await provision_stream(jetstream, config)


async def publish_checkpoint(jetstream: JetStreamContext, checkpoint: Checkpoint) -> None:
    """Publish a checkpoint and wait until it is stored."""
    await jetstream.publish(
        CHECKPOINT_SUBJECT,
        checkpoint.line(),
        stream=CHECKPOINTS,
        timeout=PUBLISH_S,
        headers={"Nats-Msg-Id": checkpoint.signature, "Content-Type": "application/json"},
    )


async def last_checkpoint(jetstream: JetStreamContext) -> Checkpoint | None:
    """Return the last published checkpoint, or None if there is none."""
    try:
        message = await jetstream.get_last_msg(CHECKPOINTS, CHECKPOINT_SUBJECT)
    except NotFoundError:
        return None
    return checkpoint_of(message.data or b"", f"The last message of {CHECKPOINTS}")


async def published_checkpoints(jetstream: JetStreamContext) -> list[Checkpoint]:
    """Return all published checkpoints in the order of positions.

    Raises:
        NoCheckpoint: the stream does not exist, or one of its messages is not a checkpoint.
    """
    try:
        count = (await jetstream.stream_info(CHECKPOINTS)).state.messages
    except NotFoundError:
        raise NoCheckpoint(f"The broker has no stream {CHECKPOINTS}.") from None
    subscription = await jetstream.subscribe(CHECKPOINT_SUBJECT, stream=CHECKPOINTS, ordered_consumer=True)
    messages = [await subscription.next_msg(timeout=PUBLISH_S) for _ in range(count)]
    await subscription.unsubscribe()
    found = [checkpoint_of(message.data, f"A message of {CHECKPOINTS}") for message in messages]
    return sorted(found, key=lambda checkpoint: checkpoint.position)
