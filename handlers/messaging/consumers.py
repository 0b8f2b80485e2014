"""Reactions, commands and history on NATS: what binds them to it. Handlers know nothing of NATS or FastStream."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, nullcontext, suppress
from contextvars import copy_context
from functools import partial
from json import JSONDecodeError
from typing import Any

from faststream import AckPolicy, BaseMiddleware
from faststream.exceptions import NackMessage, RejectMessage
from faststream.message import StreamMessage
from faststream.nats import JStream, NatsBroker, PullSub
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from pydantic import ValidationError

from domain.messages import Event
from handlers.context import SYSTEM
from handlers.contract.history import END_HEADER
from handlers.dependencies import Dependencies
from handlers.dispatch import handle
from handlers.messaging.command_messages import Answer, Incoming, Unanswerable, account_named, deal_with
from handlers.messaging.history import SENTENCE_HEADER, Part, told
from handlers.reactions import REACTIONS, Reaction
from infra import tracing
from infra.broker.cloudevents import CloudEvent
from infra.broker.dead_letters import Letter, first_stored_at, letter_of, original_subject
from infra.broker.nats import (
    COMMANDS,
    COMMANDS_CONSUMER,
    DEAD_LETTERS,
    EVENTS,
    HISTORY_SUBJECT,
    PUBLISH_S,
    addresses,
    close,
    in_work,
    subject_of,
)
from infra.metrics import COMMANDS as OUTCOMES
from infra.metrics import DEAD_LETTERS as BURIED
from infra.metrics import RETRIES
from infra.settings import Sender

TRIES = 12
LONGEST_DELAY_S = 60
STOP_S = 5.0
FETCH_S = 1.0
REACTIONS_AT_ONCE = 8
"""So many events are followed at a time by each reaction: what is slow about them is a mail server, or a document."""
MAIL_THROTTLE_THRESHOLD = 2
"""With so many payments on their way to a grant or an invoice, mails are sent one at a time."""

MAIL_WAITS_S = 5.0
COMMANDS_FETCH_S = 0.25
"""A fetch of commands comes to its end before its worker does: what it had asked for would come late elsewhere."""
AT_ONCE = 32
"""So many commands are dealt with at a time: they meet in one commit, and in a commit of 32 each costs little."""
logger = logging.getLogger(__name__)


class UnknownPosition(Exception):
    """A message names an event that the log does not have there."""


HOPELESS = (ValidationError, JSONDecodeError, UnicodeDecodeError, UnknownPosition, Unanswerable)
"""However often it is delivered, it stays what it is."""


def consumers() -> dict[str, type[Event]]:
    """The durable consumer of each reaction, and the event that it reads."""
    return {reaction.name: event for event, reactions in REACTIONS.items() for reaction in reactions}


def again_in(message: Msg, error: Exception) -> float | None:
    """In how many seconds a message that could not be dealt with is to come again; none where it never is.

    What cannot be read never is; all else after growing pauses, `TRIES` times. They are spread, so that what failed
    together does not come together.
    """
    tries: int = message.metadata.num_delivered
    if isinstance(error, HOPELESS) or tries >= TRIES:
        return None
    RETRIES.labels(message.metadata.consumer).inc()
    logger.warning("delivery %s of %s failed: %s", tries, message.subject, error)
    longest: float = min(LONGEST_DELAY_S, 0.2 * 2**tries)
    return longest * random.uniform(0.8, 1.2)  # noqa: S311 - it keeps no secret


async def bury(message: Msg, error: Exception, keep: Callable[[Letter], Awaitable[object]]) -> None:
    """Put a message to the dead letters, with what was wrong."""
    logger.error("to the dead letters: %s: %s", message.subject, error)
    await keep(letter_of(message, error))
    BURIED.labels(message.metadata.consumer).inc()


class Delivery(BaseMiddleware):
    """What becomes of an event that a reaction could not deal with: again later, or to the dead letters."""

    async def consume_scope(
        self, call_next: Callable[[StreamMessage[Any]], Awaitable[Any]], msg: StreamMessage[Any]
    ) -> Any:  # noqa: ANN401 - FastStream's signature
        """Deal with one delivery."""
        try:
            with tracing.received(msg.headers, msg.raw_message.metadata.consumer), in_work([msg.raw_message]):
                return await call_next(msg)
        except Exception as error:
            delay = again_in(msg.raw_message, error)
            if delay is not None:
                raise NackMessage(delay=delay) from error
            await bury(msg.raw_message, error, self._keep)
            raise RejectMessage from error

    async def _keep(self, letter: Letter) -> None:
        broker: NatsBroker = self.context.get("broker")
        headers = dict(letter.headers)
        await broker.publish(letter.body, letter.subject, headers=headers, stream=DEAD_LETTERS, timeout=PUBLISH_S)


def reactions_broker(
    nats_url: str, dependencies: Dependencies, threads: Executor, precedence: Precedence, wanted: Collection[Reaction]
) -> NatsBroker:
    """A broker with a subscriber for each reaction that is wanted. Their streams and consumers are there already."""
    broker = NatsBroker(
        addresses(nats_url),
        max_reconnect_attempts=-1,
        connect_timeout=5,
        middlewares=(Delivery,),
        decoder=_cloud_event,
        apply_types=False,  # nobody is injected anything, and to look for it at each message costs
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
                max_workers=REACTIONS_AT_ONCE,
                ack_policy=AckPolicy.NACK_ON_ERROR,
            )
            subscriber(_reacting(reaction, dependencies, threads, precedence))
    return broker


async def _cloud_event(message: StreamMessage[Any]) -> CloudEvent:
    return CloudEvent.model_validate_json(message.body)


@asynccontextmanager
async def reacting(
    nats_url: str, dependencies: Dependencies, threads: Executor, precedence: Precedence, wanted: Collection[Reaction]
) -> AsyncIterator[See]:
    """Reactions, while the context lasts; and what sees whether they are served.

    It asks over the connection that they fetch over: one to a server that is cut off from its cluster, or a line that
    is dead, gives them nothing for minutes, and looks as if there were nothing.
    """
    broker = reactions_broker(nats_url, dependencies, threads, precedence, wanted)
    client = await connection_of(broker)

    async def see() -> None:
        must_be_fetching(broker)
        for reaction in wanted:
            await client.jetstream().consumer_info(EVENTS, reaction.name)

    try:
        await broker.start()
        yield see
    finally:
        await asyncio.shield(_end(broker, client))  # however often we are cancelled, nothing stays open


async def _end(broker: NatsBroker, client: Client) -> None:
    """Stop the reactions, after what they are doing, and close the connection.

    Their broker's own `stop` drains the connection first, for which the server has to answer.
    """
    try:
        async with asyncio.timeout(STOP_S):
            await super(NatsBroker, broker).stop()
    except* (NatsError, TimeoutError) as errors:
        logger.debug("the reactions were stopped in the middle: %s", errors.exceptions)
    finally:
        await close(client)


async def connection_of(broker: NatsBroker) -> Client:
    """Connect; where that is cancelled, the connection is closed that nobody would have got."""
    connecting = asyncio.create_task(broker.connect())
    try:
        return await asyncio.shield(connecting)
    except asyncio.CancelledError:
        with suppress(NatsError, OSError, TimeoutError):
            async with asyncio.timeout(STOP_S):
                await close(await connecting)
        raise


See = Callable[[], Awaitable[None]]
"""Raises `SubscriberEnded`, or what NATS says, where a reaction is not served."""


class SubscriberEnded(Exception):
    """A subscriber fetches no longer: FastStream does not begin anew where its task was cancelled, as by nats-py."""


def must_be_fetching(broker: NatsBroker) -> None:
    """See that every subscriber is at work.

    Raises:
        SubscriberEnded: one is not, and would not notice.
    """
    for subscriber in broker.subscribers:
        for task in getattr(subscriber, "tasks", ()):
            if not task.done() or (not task.cancelled() and task.exception()):
                continue  # it runs, or FastStream has begun it anew
            raise SubscriberEnded("a reaction's subscriber has ended")


# --- reactions -----------------------------------------------------------------------------------------------------


class Precedence:
    """What a customer waits for goes before mails: where much of it is on its way, these are sent one at a time.

    None waits for long: a mail server that hangs holds up one, and a message that is not acknowledged comes again.
    """

    def __init__(self) -> None:
        self._waited_for = 0
        self._one_mail = asyncio.Lock()

    @asynccontextmanager
    async def of(self, reaction: Reaction) -> AsyncIterator[None]:
        """Follow an event in here."""
        if reaction.mails:
            async with self._one_at_a_time() if self._waited_for >= MAIL_THROTTLE_THRESHOLD else nullcontext():
                yield
        else:
            self._waited_for += 1
            try:
                yield
            finally:
                self._waited_for -= 1

    @asynccontextmanager
    async def _one_at_a_time(self) -> AsyncIterator[None]:
        ours = False
        with suppress(TimeoutError):
            async with asyncio.timeout(MAIL_WAITS_S):
                ours = await self._one_mail.acquire()
        try:
            yield
        finally:
            if ours:
                self._one_mail.release()


def _reacting(
    reaction: Reaction, dependencies: Dependencies, threads: Executor, precedence: Precedence
) -> Callable[[CloudEvent], Awaitable[None]]:
    async def react(message: CloudEvent) -> None:
        follows = partial(copy_context().run, follow, message, reaction, dependencies)
        async with precedence.of(reaction):
            await asyncio.get_running_loop().run_in_executor(threads, follows)

    return react


def follow(message: CloudEvent, reaction: Reaction, dependencies: Dependencies) -> None:
    """Do what follows from the event that a message names.

    Raises:
        UnknownPosition: the log has no such event there.
    """
    found = dependencies.log.read(message.position - 1, limit=1)
    if not found or str(found[0].event_id) != message.id:
        raise UnknownPosition(f"the log has no event {message.id} at position {message.position}")
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


# --- history -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def telling_history(client: Client, dependencies: Dependencies, senders: Sequence[Sender]) -> AsyncIterator[None]:
    """Requests for past events, while the context lasts; each is answered by one of all processes."""

    async def tell(request: Msg) -> None:
        if not request.reply:
            return

        def page() -> list[Part]:
            return list(told(request.reply, request.headers or {}, request.data, dependencies, senders))

        try:
            parts = await asyncio.to_thread(page)
        except Exception as error:  # noqa: BLE001 - whatever it is, who asked is told, and asks again
            logger.warning("a request for past events failed: %s", error)
            parts = [Part({END_HEADER: "failed", SENTENCE_HEADER: "Something that this needs is away; ask again."})]
        for part in parts:
            await client.publish(request.reply, part.body, headers=dict(part.headers))

    subscription = await client.subscribe(HISTORY_SUBJECT, queue="history", cb=tell)
    try:
        yield
    finally:
        with suppress(NatsError):
            await subscription.unsubscribe()


# --- commands ------------------------------------------------------------------------------------------------------

Dealt = Answer | Exception


class Commands:
    """Deals with many commands at a time, and with those of one account in the order in which they came.

    They are fetched without FastStream: what it does for each message takes as long as the command itself. What
    becomes of one that fails is decided as for reactions, by `again_in`.
    """

    def __init__(self, client: Client, dependencies: Dependencies, senders: Sequence[Sender]) -> None:
        self._client = client
        self._jetstream = client.jetstream()
        self._dependencies = dependencies
        self._senders = senders
        self._running: set[asyncio.Task[None]] = set()
        self._last: dict[str, asyncio.Task[None]] = {}

    async def obey(self, stopping: threading.Event) -> None:
        """Take commands until ``stopping``; those that are being dealt with come to their end.

        Raises:
            nats.errors.Error: the consumer is gone, or a command could be neither acknowledged nor buried.
        """
        subscription = await self._jetstream.pull_subscribe_bind(COMMANDS_CONSUMER, COMMANDS)
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="command") as threads:
            try:
                while not stopping.is_set():
                    await self._room()
                    with suppress(TimeoutError):  # nothing came, or NATS is away: it is asked again
                        self._begin(await subscription.fetch(AT_ONCE, timeout=COMMANDS_FETCH_S), threads)
            finally:
                if self._running:
                    await asyncio.wait(self._running, timeout=STOP_S)

    async def _room(self) -> None:
        """Wait until not too many are being dealt with; one that takes long holds up no other."""
        while len(self._running) >= AT_ONCE:
            done, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()

    def _begin(self, messages: Sequence[Msg], threads: ThreadPoolExecutor) -> None:
        """Deal with those of each account one after another, in a thread; after those that came before them."""
        chains: dict[str, list[Msg]] = {}
        for number, message in enumerate(messages):
            account_id = account_named(message.data)
            chains.setdefault(f"account {account_id}" if account_id else f"message {number}", []).append(message)
        for key, chain in chains.items():
            task = asyncio.create_task(self._deal_with(chain, threads, self._last.get(key)))
            self._running.add(task)
            task.add_done_callback(self._ended)
            if key.startswith("account "):
                self._last[key] = task
                task.add_done_callback(lambda ended, key=key: self._forget(key, ended))  # type: ignore[misc]

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            self._running.discard(task)  # one that failed stays, for `obey` to raise its error

    def _forget(self, key: str, task: asyncio.Task[None]) -> None:
        if self._last.get(key) is task:
            del self._last[key]

    async def _deal_with(
        self, chain: Sequence[Msg], threads: ThreadPoolExecutor, before: asyncio.Task[None] | None
    ) -> None:
        with in_work(chain):
            if before:
                await asyncio.wait([before])
            all_dealt = await asyncio.get_running_loop().run_in_executor(threads, self._dealt_with, chain)
        for message, dealt in zip(chain, all_dealt, strict=True):
            await self._settle(message, dealt)

    def _dealt_with(self, chain: Sequence[Msg]) -> list[Dealt]:
        return [self._one(message) for message in chain]

    def _one(self, message: Msg) -> Dealt:
        incoming = Incoming(original_subject(message), message.headers or {}, message.data, first_stored_at(message))
        try:
            with tracing.received(incoming.headers, incoming.subject):
                return deal_with(incoming, self._dependencies, self._senders)
        except Exception as error:  # noqa: BLE001 - what becomes of it is decided for each kind, by `again_in`
            return error

    async def _settle(self, message: Msg, dealt: Dealt) -> None:
        if isinstance(dealt, Answer):
            OUTCOMES.labels(dealt.command, dealt.outcome).inc()
            if dealt.subject:
                await self._client.publish(dealt.subject, dealt.body)
            await message.ack()
        elif (delay := again_in(message, dealt)) is not None:
            await message.nak(delay=delay)
        else:
            await bury(message, dealt, self._keep)
            await message.term()

    async def _keep(self, letter: Letter) -> None:
        headers = dict(letter.headers)
        await self._jetstream.publish(
            letter.subject, letter.body, timeout=PUBLISH_S, stream=DEAD_LETTERS, headers=headers
        )
