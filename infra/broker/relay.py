"""The relay publishes the log to JetStream in order, and each event exactly once, whatever fails.

Acknowledgements are pipelined: many messages are in flight at a time. To keep their order when one fails, each names
the expected last sequence of the stream, and the expected last message id. After a failure the server refuses all that
follow, and the relay reads where the stream ends and resumes there. Messages still in flight from a relay that was cut
off are refused for the same reason, so nothing depends on the server's duplicate window. (The sequence alone would not
do: a message from another publisher might take the sequence of a refused one.)
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError
from psycopg import Connection
from psycopg.rows import DictRow
from pydantic import BaseModel

from infra import tracing
from infra.broker.cloudevents import CONTENT_TYPE
from infra.broker.nats import DUPLICATES_S, EVENT_SUBJECTS, EVENTS, PUBLISH_S, subject_of
from infra.event_log.log import Log
from infra.event_log.mapper import UnreadableEvent
from infra.event_log.notifications import POLL_S
from infra.metrics import RELAYED
from infra.postgres.connections import connected_aside, only_one
from infra.postgres.positions import move_position, position_of
from infra.recorded import Recorded

NAME: Final = "relay"
POSITION_HEADER: Final = "Trunkline-Position"
REBUILD: Final = -1
"""Saved in place of a position: the active relay is to empty the stream and publish the whole log again."""
EVENTS_PER_PAGE = 500
IN_FLIGHT_MAX = 2000
LOOK_BACK = 1000
"""How many messages at the end of the stream are searched for one of ours; then the saved position is trusted."""
TRIES = 20
RETRY_DELAY_S = 0.25
BLOCKED_S = 1.0
SAVE_EVERY_S = 0.1
"""How often the position is saved. Each save costs a commit; a late one costs nothing, as the stream's end prevails."""

FORGET_S = 0.2
logger = logging.getLogger(__name__)

Encode = Callable[[Recorded], bytes]


class OutOfStep(Exception):
    """The stream refused a message, or does not end where it was expected to."""


class NotForgotten(OutOfStep):
    """The stream rejects a duplicate of a message that it no longer has: it remembers ids longer than messages."""


class AnotherLog(Exception):
    """The stream holds events of another log, or of this log before it was set back."""


class TooLarge(Exception):
    """A message is larger than the server accepts."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish."""

    position: int
    event_id: str
    correlation_id: str
    subject: str
    body: bytes


@dataclass(frozen=True)
class RelayBatch:
    """Messages in order, and the reason why the next one cannot be published, or None."""

    messages: Sequence[Outgoing]
    blocked: str | None = None


class _Acknowledgement(BaseModel):
    """JetStream's answer to a published message."""

    seq: int = 0
    duplicate: bool = False
    error: dict[str, object] | None = None


class Relay:
    """Publishes the log until it is stopped. Over all processes one relay is active at a time; the others wait.

    Attributes:
        active: whether this one is.
        position: JetStream has acknowledged this position and all before it.
        blocked: what is wrong with the next event, or None. It is retried until it can be published.
    """

    def __init__(self, database_url: str, log: Log, encode: Encode) -> None:
        self.active = False
        self.position = 0
        self.blocked: str | None = None
        self._database_url = database_url
        self._log = log
        self._encode = encode
        self._payload_bytes_max = 0
        self._seen = 0

    async def run(self, client: Client, stopping: threading.Event) -> None:
        """Relay until ``stopping``.

        Raises:
            OutOfStep, TimeoutError: JetStream accepts nothing, despite retries.
            AnotherLog: the stream ends with an event that this log does not have there.
        """
        async with connected_aside(self._database_url) as conn:
            try:
                while not stopping.is_set() and not await asyncio.to_thread(only_one, conn, NAME):
                    await asyncio.to_thread(stopping.wait, 0.5)
                self._payload_bytes_max = client.max_payload
                await self._relay(conn, client, stopping)
            finally:
                self.active = False

    async def _relay(self, conn: Connection[DictRow], client: Client, stopping: threading.Event) -> None:
        failures = 0
        while not stopping.is_set():
            self.active = True
            before = self.position
            try:
                async with _Pipeline(client) as pipeline:
                    await self._publish_all(conn, client.jetstream(), pipeline, stopping)
            except OutOfStep as error:
                failures = 1 if self.position > before else failures + 1
                if failures >= TRIES:
                    raise
                logger.warning("the relay is out of step with the stream and resynchronises: %s", error)
                if isinstance(error, NotForgotten):
                    await forget_ids(client.jetstream())
                await asyncio.sleep(RETRY_DELAY_S)

    async def _publish_all(
        self, conn: Connection[DictRow], jetstream: JetStreamContext, pipeline: _Pipeline, stopping: threading.Event
    ) -> None:
        clock = asyncio.get_running_loop().time
        saved, self.position, pipeline.sequence = await self._end_of_stream(conn, jetstream)
        reached, save_at = self.position, clock()
        reading = asyncio.create_task(asyncio.to_thread(self._page, reached))
        try:
            while not stopping.is_set():
                page = await reading
                if page.messages:
                    reached = page.messages[-1].position
                longest_s = POLL_S if reached == saved else SAVE_EVERY_S
                reading = asyncio.create_task(asyncio.to_thread(self._next_page, reached, page, stopping, longest_s))
                for message in page.messages:
                    await pipeline.publish(message)
                if not page.messages or page.blocked:
                    await pipeline.drain()
                self.position = pipeline.acknowledged or self.position
                self.blocked = page.blocked
                if clock() >= save_at:
                    saved = await self._save(conn, saved)
                    save_at = clock() + SAVE_EVERY_S
            await pipeline.drain()
            self.position = pipeline.acknowledged or self.position
            await self._save(conn, saved)
        finally:
            if not reading.done():
                reading.cancel()
            with suppress(asyncio.CancelledError, Exception):  # whatever its result, the page will be read again
                await reading

    def _next_page(self, position: int, before: RelayBatch, stopping: threading.Event, longest_s: float) -> RelayBatch:
        """Return the page after a position. If the previous one was empty, wait for a notification first."""
        if before.blocked:
            stopping.wait(BLOCKED_S)
        elif not before.messages and not stopping.is_set():
            self._log.notifier.wait_past(self._seen, longest_s)
        return self._page(position)

    def _page(self, position: int) -> RelayBatch:
        messages: list[Outgoing] = []
        self._seen = self._log.notifier.count
        try:
            events = self._log.read(position, limit=EVENTS_PER_PAGE, concealing=True)
        except UnreadableEvent:
            return self._page_before_the_unreadable(position)
        for recorded in events:
            try:
                messages.append(self._outgoing(recorded))
            except Exception as error:  # noqa: BLE001 - on any error, send all before it and skip nothing
                return RelayBatch(messages, f"position {recorded.position}: {type(error).__name__}: {error}")
        return RelayBatch(messages)

    def _page_before_the_unreadable(self, position: int) -> RelayBatch:
        messages: list[Outgoing] = []
        try:
            while len(messages) < EVENTS_PER_PAGE and (
                events := self._log.read(position + len(messages), limit=1, concealing=True)
            ):
                messages.append(self._outgoing(events[0]))
        except UnreadableEvent as error:
            return RelayBatch(messages, str(error))
        return RelayBatch(messages)

    def _outgoing(self, recorded: Recorded) -> Outgoing:
        body = self._encode(recorded)
        if len(body) + 512 > self._payload_bytes_max:  # the limit includes the headers
            raise TooLarge(
                f"its message has {len(body)} bytes, and NATS takes {self._payload_bytes_max} with the headers"
            )
        subject = subject_of(type(recorded.event))
        return Outgoing(recorded.position, str(recorded.event_id), recorded.cause.correlation_id, subject, body)

    async def _save(self, conn: Connection[DictRow], saved: int) -> int:
        """Save the position if it moved, and check whether a rebuild was requested.

        Raises:
            OutOfStep: it was.
        """
        if saved != self.position:
            kept = await asyncio.to_thread(save_position, conn, self.position)
        else:
            kept = await asyncio.to_thread(position_of, conn, NAME) != REBUILD
        if not kept:
            raise OutOfStep("a rebuild was requested")
        return self.position

    async def _end_of_stream(self, conn: Connection[DictRow], jetstream: JetStreamContext) -> tuple[int, int, int]:
        """Return the saved position, the last position in the stream, and the stream's last sequence."""
        saved = await asyncio.to_thread(position_of, conn, NAME)
        if saved == REBUILD:
            await empty(jetstream)
            await asyncio.to_thread(move_position, conn, NAME, 0)
            saved = 0
        state = (await jetstream.stream_info(EVENTS)).state
        if state.last_seq == 0:  # it is new, or was deleted, with all work that was pending
            return saved, 0, 0
        if not state.messages:
            return saved, saved, state.last_seq
        for sequence in range(state.last_seq, max(state.first_seq, state.last_seq - LOOK_BACK) - 1, -1):
            with suppress(NotFoundError):
                found = await jetstream.get_msg(EVENTS, sequence)
                headers = found.headers or {}
                ours = str(found.subject).startswith(f"{EVENT_SUBJECTS}.") and "Nats-Msg-Id" in headers
                if ours and headers.get(POSITION_HEADER, "").isdecimal():
                    position = int(headers[POSITION_HEADER])
                    await asyncio.to_thread(self._must_be_ours, position, headers["Nats-Msg-Id"])
                    return saved, position, state.last_seq
        return saved, saved, state.last_seq

    def _must_be_ours(self, position: int, event_id: str) -> None:
        try:
            found = self._log.read(position - 1, limit=1, concealing=True)
        except UnreadableEvent:  # cannot be compared; it was readable when it was published
            return
        if not found or str(found[0].event_id) != event_id:
            raise AnotherLog(
                f"The stream {EVENTS} ends with an event {event_id} at position {position}, which this log does not "
                "have there; to make the stream follow this log, run trunkline relay rebuild."
            )


def save_position(conn: Connection[DictRow], position: int) -> bool:
    """Save the position of the relay. Returns False, and saves nothing, if a rebuild was requested meanwhile."""
    saved = conn.execute(
        "INSERT INTO read.positions AS p (name, position) VALUES (%s, %s) "
        "ON CONFLICT (name) DO UPDATE SET position = excluded.position WHERE p.position <> %s RETURNING 1",
        (NAME, position, REBUILD),
    ).fetchone()
    return saved is not None


def ask_for_rebuild(conn: Connection[DictRow]) -> None:
    """Have the active relay, or the next one, empty the stream and publish the whole log again."""
    move_position(conn, NAME, REBUILD)


async def empty(jetstream: JetStreamContext) -> None:
    """Purge the stream of events. Its consumers stay, and receive everything that is published again."""
    await jetstream.purge_stream(EVENTS)
    await forget_ids(jetstream)


async def forget_ids(jetstream: JetStreamContext) -> None:
    """Make the server forget known message ids, or it would drop the same events when they are published again.

    It remembers ids for its duplicate window, so this shortens the window for a moment. A very busy server may take
    longer to forget; the relay notices (`NotForgotten`).
    """
    config = (await jetstream.stream_info(EVENTS)).config
    window = config.duplicate_window
    await jetstream.update_stream(config.evolve(duplicate_window=FORGET_S / 2))
    await asyncio.sleep(FORGET_S)
    await jetstream.update_stream(config.evolve(duplicate_window=window or DUPLICATES_S))


class _Pipeline:
    """Messages in flight to the stream of events, each bound to follow the one before it."""

    def __init__(self, client: Client) -> None:
        self.sequence = 0
        """The last sequence of the stream once everything in flight has arrived."""
        self.acknowledged = 0
        """This position and all before it are acknowledged."""
        self._client = client
        self._inbox = client.new_inbox()
        self._in_flight: dict[int, int] = {}
        self._last_id = ""
        self._failure: OutOfStep | None = None
        self._moved = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._subscription = await self._client.subscribe(f"{self._inbox}.*", cb=self._on_answer, pending_msgs_limit=-1)
        return self

    async def __aexit__(self, *_: object) -> None:
        with suppress(Exception):  # the connection may be gone, and the subscription with it
            await self._subscription.unsubscribe()

    async def publish(self, message: Outgoing) -> None:
        """Send a message. Waits first if too many are in flight.

        Raises:
            OutOfStep: an earlier message was refused.
            TimeoutError: nothing was acknowledged for too long.
        """
        if len(self._in_flight) >= IN_FLIGHT_MAX:
            await self._wait_for(IN_FLIGHT_MAX // 2)
        self._check()
        expected, self.sequence = self.sequence, self.sequence + 1
        self._in_flight[self.sequence] = message.position
        headers = {
            "Nats-Msg-Id": message.event_id,
            "Content-Type": CONTENT_TYPE,
            POSITION_HEADER: str(message.position),
            "Nats-Expected-Stream": EVENTS,
            "Nats-Expected-Last-Sequence": str(expected),
            **tracing.published(message.subject, message.event_id, message.correlation_id),
        }
        if self._last_id:
            headers["Nats-Expected-Last-Msg-Id"] = self._last_id
        self._last_id = message.event_id
        await self._client.publish(message.subject, message.body, f"{self._inbox}.{self.sequence}", headers)

    async def drain(self) -> None:
        """Wait until nothing is in flight.

        Raises:
            OutOfStep, TimeoutError: as for `publish`.
        """
        await self._wait_for(0)

    async def _wait_for(self, in_flight_max: int) -> None:
        while len(self._in_flight) > in_flight_max:
            self._check()
            self._moved.clear()
            async with asyncio.timeout(PUBLISH_S):
                await self._moved.wait()
        self._check()

    def _check(self) -> None:
        if self._failure:
            raise self._failure

    async def _on_answer(self, answer: Msg) -> None:
        self._moved.set()
        if not answer.data:
            self._failure = self._failure or OutOfStep("no stream answers")
            return
        said = _Acknowledgement.model_validate_json(answer.data)
        sequence = int(answer.subject.rpartition(".")[2])
        if said.error:
            self._failure = self._failure or OutOfStep(str(said.error.get("description")))
            return
        if said.seq != sequence:
            failed = NotForgotten if said.duplicate else OutOfStep
            self._failure = self._failure or failed(f"the stream is at {said.seq}, not {sequence}")
            return
        self.acknowledged = self._in_flight.pop(sequence)
        RELAYED.inc()
