"""NATS seen from outside: the messages in its streams, and the progress of each consumer."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import nats
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, ConsumerInfo, RawStreamMsg
from nats.js.errors import NotFoundError

from infra.broker.nats import COMMANDS, DEAD_LETTERS, EVENTS
from infra.servers.embedded_nats import NAME, _program
from infra.servers.supervisor import SupervisedProcess, exclusive

T = TypeVar("T")


@dataclass(frozen=True)
class Broker:
    """NATS at a URL. Each query opens its own connection."""

    url: str

    def events(self) -> list[RawStreamMsg]:
        """The messages of all events, in order of arrival."""
        return self._do(lambda jetstream: _messages(jetstream, EVENTS))

    def dead_letters(self) -> list[RawStreamMsg]:
        return self._do(lambda jetstream: _messages(jetstream, DEAD_LETTERS))

    def commands(self) -> list[RawStreamMsg]:
        """The commands that are not processed yet."""
        return self._do(lambda jetstream: _messages(jetstream, COMMANDS))

    def positions(self) -> list[int]:
        """The log positions of the messages."""
        return [int(json.loads(message.data or b"")["position"]) for message in self.events()]

    def publish(self, subject: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Publish a message on an event subject."""

        async def send(jetstream: JetStreamContext) -> None:
            await jetstream.publish(subject, body, stream=EVENTS, headers=headers)

        self._do(send)

    def consumer(self, name: str) -> ConsumerInfo:
        async def ask(jetstream: JetStreamContext) -> ConsumerInfo:
            info: ConsumerInfo = await jetstream.consumer_info(EVENTS, name)
            return info

        return self._do(ask)

    def idle(self, *names: str) -> bool:
        """Whether these consumers have processed all messages."""
        found = [self.consumer(name) for name in names]
        return not any(info.num_pending or info.num_ack_pending for info in found)

    def delete_consumer(self, name: str) -> None:
        self._do(lambda jetstream: jetstream.delete_consumer(EVENTS, name))

    def purge(self) -> None:
        """Purge the event stream, as its retention would; its consumers stay."""
        self._do(lambda jetstream: jetstream.purge_stream(EVENTS))

    def count(self) -> int:
        """The number of event messages."""

        async def ask(jetstream: JetStreamContext) -> int:
            try:
                return int((await jetstream.stream_info(EVENTS)).state.messages)
            except NotFoundError:
                return 0

        return self._do(ask)

    def ordered_positions(self) -> list[int]:
        """Like `positions`, for many messages: read by an ephemeral consumer.

        It is created and used on one connection, because another server of a cluster might not know it yet.
        """

        async def look(jetstream: JetStreamContext) -> list[bytes]:
            count = (await jetstream.stream_info(EVENTS)).state.messages
            name = f"look-{secrets.token_hex(4)}"
            await jetstream.add_consumer(EVENTS, ConsumerConfig(durable_name=name))
            return await _fetched(jetstream, name, count, acknowledging=True)

        return [int(json.loads(body)["position"]) for body in self._do(look)]

    def add_consumer(self, config: ConsumerConfig) -> None:
        """Create another service's consumer of all events."""
        self._do(lambda jetstream: jetstream.add_consumer(EVENTS, config))

    def fetched(self, durable: str, count: int, *, acknowledging: bool = True) -> list[bytes]:
        """Fetch ``count`` messages from a durable consumer."""
        return self._do(lambda jetstream: _fetched(jetstream, durable, count, acknowledging=acknowledging))

    def forget_ids(self) -> None:
        """Let the duplicate window pass."""

        async def shorten(jetstream: JetStreamContext) -> None:
            config = (await jetstream.stream_info(EVENTS)).config
            await jetstream.update_stream(config.evolve(duplicate_window=0.1))
            await asyncio.sleep(0.3)
            await jetstream.update_stream(config)

        self._do(shorten)

    def lose_after(self, sequence: int) -> None:
        """Truncate the stream, as if the server had been restored from an older backup."""

        async def lose(jetstream: JetStreamContext) -> None:
            kept = [await jetstream.get_msg(EVENTS, number) for number in range(1, sequence + 1)]
            config = (await jetstream.stream_info(EVENTS)).config
            await jetstream.delete_stream(EVENTS)
            await jetstream.add_stream(config)
            for message in kept:
                headers = {k: v for k, v in (message.headers or {}).items() if not k.startswith("Nats-Expected")}
                await jetstream.publish(str(message.subject), message.data or b"", stream=EVENTS, headers=headers)

        self._do(lose)

    def delete_stream(self, name: str) -> None:
        self._do(lambda jetstream: jetstream.delete_stream(name))

    def wipe(self) -> None:
        """Delete all streams, with their consumers."""

        async def delete(jetstream: JetStreamContext) -> None:
            for name in (EVENTS, COMMANDS, DEAD_LETTERS):
                await jetstream.delete_stream(name)

        self._do(delete)

    def _do(self, work: Callable[[JetStreamContext], Awaitable[T]]) -> T:
        async def connected() -> T:
            client = await nats.connect(self.url.split(","))
            try:
                return await work(client.jetstream())
            finally:
                await client.close()

        return asyncio.run(connected())


async def _messages(jetstream: JetStreamContext, stream: str) -> list[RawStreamMsg]:
    try:
        state = (await jetstream.stream_info(stream)).state
    except NotFoundError:
        return []
    found = []
    for number in range(max(state.first_seq, 1), state.last_seq + 1):
        with suppress(NotFoundError):  # acknowledged or deleted
            found.append(await jetstream.get_msg(stream, number))
    return found


async def _fetched(jetstream: JetStreamContext, durable: str, count: int, *, acknowledging: bool) -> list[bytes]:
    subscription = await jetstream.pull_subscribe_bind(durable, EVENTS)
    bodies: list[bytes] = []
    while len(bodies) < count:
        for message in await subscription.fetch(min(500, count - len(bodies)), timeout=20):
            bodies.append(message.data)
            if acknowledging:
                await message.ack()
    return bodies


class OwnNats:
    """A test's own NATS server, which restarts at the same address with its stored data."""

    def __init__(self, directory: Path, port: int) -> None:
        self.url = f"nats://127.0.0.1:{port}"
        self._directory = directory
        self._port = port
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start, and wait until JetStream answers."""
        lock = self._stack.enter_context(exclusive(self._directory, NAME))
        configuration = self._directory / "nats.conf"
        configuration.write_text(
            json.dumps(
                {
                    "host": "127.0.0.1",
                    "port": self._port,
                    "jetstream": {"store_dir": str(self._directory), "sync_interval": "always"},
                }
            )
        )
        command = [str(_program()), "--config", str(configuration)]
        log = self._directory / "nats.log"
        server = SupervisedProcess(NAME, command, log, lock=lock, stop_signal=signal.SIGTERM)
        self._stack.enter_context(server).wait_until(self._answers)

    def stop(self) -> None:
        """Stop the server and cut off its clients."""
        self._stack.close()

    def _answers(self) -> bool:
        async def ask() -> None:
            client = await nats.connect(self.url, allow_reconnect=False, connect_timeout=1, error_cb=_quiet)
            try:
                await client.jetstream().account_info()
            finally:
                await client.close()

        try:
            asyncio.run(ask())
        except (OSError, nats.errors.Error, TimeoutError):
            return False
        return True


async def _quiet(_error: Exception) -> None:
    """The server is not up yet."""
