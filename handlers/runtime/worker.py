"""Background work: the relay to NATS, reactions, commands, expiry of orders, snapshots, signed checkpoints."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from nats.js import JetStreamContext

from domain.messages import Refusal
from domain.order import ExpireOrder
from handlers.context import SYSTEM
from handlers.contract.events import encoded
from handlers.dependencies import Dependencies
from handlers.dispatch import handle
from handlers.messaging.commands_consumer import CommandsConsumer
from handlers.messaging.history import serving_history
from handlers.messaging.precedence import Precedence
from handlers.messaging.reactions_consumer import (
    REACTION_CONCURRENCY,
    Check,
    consuming_reactions,
    durable_consumers,
)
from handlers.reactions import REACTIONS
from handlers.runtime.checkpoint_signing import Busy, CannotSign, Signer, sign
from infra.audit.checkpoints import NoCheckpoint
from infra.audit.ed25519 import WrongKey
from infra.audit.published_checkpoints import provision_checkpoints
from infra.broker.dead_letters import waiting
from infra.broker.nats import COMMANDS, COMMANDS_CONSUMER, BrokerUnavailable, connected, provision
from infra.broker.relay import Relay
from infra.event_log.snapshots import NAME as SNAPSHOTS
from infra.event_log.snapshots import take_snapshots
from infra.postgres.connections import connect, connected_aside, only_one
from infra.settings import Limits, Sender
from projections.orders import unpaid_in_time

RESTART_DELAY_S = 1.0
EXPIRY_EVERY_S = 60.0
WATCH_EVERY_S = 5.0
SNAPSHOTS_EVERY_S = 5.0
TAKE_OVER_EVERY_S = 0.2
NUMBERING = "numbering"
CHECKPOINT_EVERY_S = 60.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Duties:
    """What a worker does, whose commands it accepts, and the limits of its streams."""

    relays: bool = True
    works: bool = True
    """Reactions, commands, history, and what is due by time."""
    senders: Sequence[Sender] = ()
    limits: Limits = field(default_factory=Limits)
    signer: Signer | None = None
    """Signs checkpoints, if it works."""


EVERYTHING = Duties()


class Worker:
    """Runs in a thread with its own event loop, and restarts itself when the connection to NATS or PostgreSQL breaks.

    `failing` is the present error, or None while it works. `unsigned` is the reason why checkpoints are not signed.
    """

    def __init__(
        self, dependencies: Dependencies, database_url: str, nats_url: str, duties: Duties = EVERYTHING
    ) -> None:
        self.failing: str | None = "not started yet"
        self.unsigned: str | None = None if duties.signer else "not signed, because TRUNKLINE_SIGNING_KEY is not set"
        self.dead_letters: int | None = None
        """The number of messages that wait for a person; None if unknown."""
        self.relay = Relay(database_url, dependencies.log, encoded)
        self._dependencies = dependencies
        self._database_url = database_url
        self._nats_url = nats_url
        self._duties = duties
        self._threads = ThreadPoolExecutor(
            REACTION_CONCURRENCY * len(durable_consumers()), thread_name_prefix="reaction"
        )
        self._stopped = threading.Event()
        self._begun = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._work()), name="worker", daemon=True)

    def start(self) -> None:
        """Start, and wait for the first attempt to connect.

        Raises:
            BrokerUnavailable: NATS does not serve; nothing runs.
        """
        self._thread.start()
        self._begun.wait()
        if self.failing:
            self.stop()
            raise BrokerUnavailable(self.failing)

    def stop(self) -> None:
        """Stop, after the work in progress."""
        self._stopped.set()
        self._dependencies.log.notifier.notify()  # wakes the relay
        self._thread.join()
        self._threads.shutdown()

    async def _work(self) -> None:
        while not self._stopped.is_set():
            try:
                await self._serve()
            except (Exception, asyncio.CancelledError) as error:  # all of this work is safe to repeat
                causes = error.exceptions if isinstance(error, ExceptionGroup) else [error]
                self.failing = "; ".join(str(cause) or type(cause).__name__ for cause in causes)
                logger.warning("the worker restarts: %s", self.failing, exc_info=logger.isEnabledFor(logging.DEBUG))
            self._begun.set()
            await self._pause(RESTART_DELAY_S)

    async def _serve(self) -> None:
        async with connected(self._nats_url) as client, AsyncExitStack() as stack:
            jetstream = client.jetstream()
            await provision(jetstream, durable_consumers(), self._duties.limits)
            await provision_checkpoints(jetstream, self._duties.limits)
            works: list[Coroutine[Any, Any, None]] = []
            if self._duties.works:
                every = [reaction for found in REACTIONS.values() for reaction in found]
                numbered = [reaction for reaction in every if reaction.numbered]
                shared = [reaction for reaction in every if not reaction.numbered]
                with_these = (self._nats_url, self._dependencies, self._threads, Precedence())
                check_reactions = await stack.enter_async_context(consuming_reactions(*with_these, shared))
                await stack.enter_async_context(serving_history(client, self._dependencies, self._duties.senders))
                works.append(CommandsConsumer(client, self._dependencies, self._duties.senders).run(self._stopped))
                works += [self._expire(), self._take_snapshots(), self._sign(jetstream)]
                works += [
                    self._watch(jetstream, check_reactions),
                    self._number(consuming_reactions(*with_these, numbered)),
                ]
            if self._duties.relays:
                works.append(self.relay.run(client, self._stopped))
            self.failing = None
            self._begun.set()
            await self._together(works)

    async def _together(self, works: Sequence[Coroutine[Any, Any, None]]) -> None:
        """Run all coroutines to their end. If one fails or is cancelled from outside, cancel the others.

        They are cancelled repeatedly, and not once as by a `TaskGroup`: before Python 3.12 a cancellation is lost if it
        comes together with the result that `asyncio.wait_for` waits for, as when a broker answers after a silence.
        """
        tasks = [asyncio.create_task(work) for work in works]
        for task in tasks:
            task.add_done_callback(self._note)
        running = set(tasks)
        while running and not any(task.cancelled() or task.exception() for task in tasks if task.done()):
            _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        while running:
            for task in running:
                task.cancel()
            _, running = await asyncio.wait(running, timeout=RESTART_DELAY_S)
        if errors := [error for task in tasks if not task.cancelled() and (error := task.exception())]:
            raise BaseExceptionGroup("what works together", errors)

    def _note(self, task: asyncio.Task[None]) -> None:
        """Report an error at once, rather than after the others have ended."""
        if not task.cancelled() and (error := task.exception()):
            self.failing = str(error) or type(error).__name__

    async def _expire(self) -> None:
        while not self._stopped.is_set():
            await asyncio.to_thread(expire_orders, self._dependencies, self._database_url)
            await self._pause(EXPIRY_EVERY_S)

    async def _take_snapshots(self) -> None:
        """Take snapshots of long streams, in one process at a time."""
        async with connected_aside(self._database_url) as conn:
            while not self._stopped.is_set():
                if await asyncio.to_thread(only_one, conn, SNAPSHOTS):
                    await asyncio.to_thread(take_snapshots, conn, self._dependencies.log)
                await self._pause(SNAPSHOTS_EVERY_S)

    async def _sign(self, jetstream: JetStreamContext) -> None:
        """Sign the end of the log periodically, and once more on stop.

        A log that was tampered with is not signed: this is reported each time, and all other work goes on.
        """
        last = False
        signer = self._duties.signer
        while signer and not last:
            last = self._stopped.is_set()
            try:
                await sign(signer, self._database_url, jetstream, self._dependencies.clock.now())
                self.unsigned = None
            except Busy:
                logger.info("another process is making a checkpoint")
            except (CannotSign, NoCheckpoint, WrongKey) as error:
                self.unsigned = str(error)
                logger.error("no checkpoint is signed: %s", error)  # noqa: TRY400 - its traceback says nothing
            await self._pause(CHECKPOINT_EVERY_S)

    async def _watch(self, jetstream: JetStreamContext, check_reactions: Check) -> None:
        """Check that each reaction and consumer exists: one that is gone is silent, as is NATS while it is away."""
        while not self._stopped.is_set():
            await check_reactions()
            await jetstream.consumer_info(COMMANDS, COMMANDS_CONSUMER)
            self.dead_letters = await waiting(jetstream)
            await self._pause(WATCH_EVERY_S)

    async def _number(self, numbering: AbstractAsyncContextManager[Check]) -> None:
        """Number documents once no other process does. Another takes over when the connection of this one ends."""
        async with connected_aside(self._database_url) as conn:
            while not await asyncio.to_thread(only_one, conn, NUMBERING):
                await self._pause(TAKE_OVER_EVERY_S)
                if self._stopped.is_set():
                    return
            async with numbering as check_reactions:
                while not self._stopped.is_set():
                    await check_reactions()
                    await asyncio.to_thread(only_one, conn, NUMBERING)  # raises if the connection is broken
                    await self._pause(WATCH_EVERY_S)

    async def _pause(self, at_most_s: float) -> None:
        """Sleep, but not longer than until stop()."""
        end = asyncio.get_running_loop().time() + at_most_s
        while not self._stopped.is_set() and asyncio.get_running_loop().time() < end:  # noqa: ASYNC110 - another thread sets it
            await asyncio.sleep(0.05)


def expire_orders(dependencies: Dependencies, database_url: str) -> None:
    """Expire the orders that were not paid in time. The read model selects them; each order decides for itself."""
    with connect(database_url) as conn:
        due = unpaid_in_time(conn, dependencies.clock.now())
    for order_id in due:
        try:
            command = ExpireOrder(at=dependencies.clock.now(), order_id=order_id)
            handle(command, dependencies, SYSTEM, correlation_id=str(uuid4()))
        except Refusal as refusal:
            logger.info("order %s is not expired: %s", order_id, refusal)


@contextmanager
def working(
    dependencies: Dependencies, database_url: str, nats_url: str, duties: Duties = EVERYTHING
) -> Iterator[Worker]:
    """Run a worker while the context lasts.

    Raises:
        BrokerUnavailable: NATS does not serve.
    """
    worker = Worker(dependencies, database_url, nats_url, duties)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()
