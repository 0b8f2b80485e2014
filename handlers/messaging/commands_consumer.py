"""Commands on NATS: many at a time, those of one account in the order of their arrival.

They are fetched without FastStream: its work for each message takes as long as the command itself.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from nats.aio.client import Client
from nats.aio.msg import Msg

from handlers.dependencies import Dependencies
from handlers.messaging.command_messages import Answer, Incoming, account_named, deal_with
from handlers.messaging.redelivery import bury, retry_delay_s
from infra import tracing
from infra.broker.dead_letters import Letter, first_stored_at, original_subject
from infra.broker.nats import COMMANDS, COMMANDS_CONSUMER, DEAD_LETTERS, PUBLISH_S, in_work
from infra.metrics import COMMANDS as OUTCOMES
from infra.settings import Sender

FETCH_S = 0.25
"""A fetch ends before its worker does: messages that arrive for an abandoned fetch are redelivered late."""

STOP_S = 5.0
COMMAND_CONCURRENCY = 32
"""Commands that are handled at a time: they share one commit, and in a commit of 32 each costs little."""

Outcome = Answer | Exception


class CommandsConsumer:
    """Handles the commands of a stream until it is stopped."""

    def __init__(self, client: Client, dependencies: Dependencies, senders: Sequence[Sender]) -> None:
        self._client = client
        self._jetstream = client.jetstream()
        self._dependencies = dependencies
        self._senders = senders
        self._running: set[asyncio.Task[None]] = set()
        self._last: dict[str, asyncio.Task[None]] = {}

    async def run(self, stopping: threading.Event) -> None:
        """Handle commands until ``stopping``; those in progress are finished.

        Raises:
            nats.errors.Error: the consumer is gone, or a command could be neither acknowledged nor buried.
        """
        subscription = await self._jetstream.pull_subscribe_bind(COMMANDS_CONSUMER, COMMANDS)
        with ThreadPoolExecutor(COMMAND_CONCURRENCY, thread_name_prefix="command") as threads:
            try:
                while not stopping.is_set():
                    await self._wait_for_capacity()
                    with suppress(TimeoutError):  # no command, or NATS is away: fetch again
                        self._begin(await subscription.fetch(COMMAND_CONCURRENCY, timeout=FETCH_S), threads)
            finally:
                if self._running:
                    await asyncio.wait(self._running, timeout=STOP_S)

    async def _wait_for_capacity(self) -> None:
        """Wait until fewer than `COMMAND_CONCURRENCY` chains run; a slow one does not delay the others."""
        while len(self._running) >= COMMAND_CONCURRENCY:
            done, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()

    def _begin(self, messages: Sequence[Msg], threads: ThreadPoolExecutor) -> None:
        """Handle the commands of each account one after another in a thread, after those that arrived earlier."""
        chains: dict[str, list[Msg]] = {}
        for number, message in enumerate(messages):
            account_id = account_named(message.data)
            chains.setdefault(f"account {account_id}" if account_id else f"message {number}", []).append(message)
        for key, chain in chains.items():
            task = asyncio.create_task(self._run_chain(chain, threads, self._last.get(key)))
            self._running.add(task)
            task.add_done_callback(self._ended)
            if key.startswith("account "):
                self._last[key] = task
                task.add_done_callback(lambda ended, key=key: self._forget(key, ended))  # type: ignore[misc]

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            self._running.discard(task)  # one that failed stays, for `run` to raise its error

    def _forget(self, key: str, task: asyncio.Task[None]) -> None:
        if self._last.get(key) is task:
            del self._last[key]

    async def _run_chain(
        self, chain: Sequence[Msg], threads: ThreadPoolExecutor, before: asyncio.Task[None] | None
    ) -> None:
        with in_work(chain):
            if before:
                await asyncio.wait([before])
            outcomes = await asyncio.get_running_loop().run_in_executor(threads, self._handle_chain, chain)
        for message, outcome in zip(chain, outcomes, strict=True):
            await self._settle(message, outcome)

    def _handle_chain(self, chain: Sequence[Msg]) -> list[Outcome]:
        return [self._handle(message) for message in chain]

    def _handle(self, message: Msg) -> Outcome:
        incoming = Incoming(original_subject(message), message.headers or {}, message.data, first_stored_at(message))
        try:
            with tracing.received(incoming.headers, incoming.subject):
                return deal_with(incoming, self._dependencies, self._senders)
        except Exception as error:  # noqa: BLE001 - `retry_delay_s` decides what happens to each kind
            return error

    async def _settle(self, message: Msg, outcome: Outcome) -> None:
        if isinstance(outcome, Answer):
            OUTCOMES.labels(outcome.command, outcome.outcome).inc()
            if outcome.subject:
                await self._client.publish(outcome.subject, outcome.body)
            await message.ack()
        elif (delay := retry_delay_s(message, outcome)) is not None:
            await message.nak(delay=delay)
        else:
            await bury(message, outcome, self._publish)
            await message.term()

    async def _publish(self, letter: Letter) -> None:
        headers = dict(letter.headers)
        await self._jetstream.publish(
            letter.subject, letter.body, timeout=PUBLISH_S, stream=DEAD_LETTERS, headers=headers
        )
