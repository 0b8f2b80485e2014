"""Past events for services that join late: from the log, page by page, the same messages as over the stream.

A request is signed as commands are. The answer goes to its reply subject: the messages of events, each as it was
published, and a last one without a body that ends the page and says where the next one begins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from pydantic import ValidationError

from domain.messages import Refusal, what_is_wrong
from handlers.contract.events import encoded
from handlers.contract.history import END_HEADER, NEXT_HEADER, HistoryRequest
from handlers.dependencies import Dependencies
from handlers.messaging.senders import authenticate, check_fresh
from infra.broker.cloudevents import CONTENT_TYPE
from infra.broker.nats import HISTORY_SUBJECT, subject_of
from infra.clock import SystemClock
from infra.settings import EVERY_ACCOUNT, Sender

SUBJECT_HEADER = "Trunkline-Subject"
SENTENCE_HEADER = "Trunkline-Error"
logger = logging.getLogger(__name__)


class MalformedRequest(Refusal):
    """The request is not valid."""


@dataclass(frozen=True)
class Part:
    """One message of the answer."""

    headers: Mapping[str, str]
    body: bytes = b""


@asynccontextmanager
async def serving_history(client: Client, dependencies: Dependencies, senders: Sequence[Sender]) -> AsyncIterator[None]:
    """Answer requests for past events while the context lasts. One process of all answers each."""

    async def answer(request: Msg) -> None:
        if not request.reply:
            return

        def page() -> list[Part]:
            return list(history_page(request.reply, request.headers or {}, request.data, dependencies, senders))

        try:
            parts = await asyncio.to_thread(page)
        except Exception as error:  # noqa: BLE001 - whatever it is, the sender learns of it and asks again
            logger.warning("a request for past events failed: %s", error)
            parts = [Part({END_HEADER: "failed", SENTENCE_HEADER: "Something that this needs is away; ask again."})]
        for part in parts:
            await client.publish(request.reply, part.body, headers=dict(part.headers))

    subscription = await client.subscribe(HISTORY_SUBJECT, queue="history", cb=answer)
    try:
        yield
    finally:
        with suppress(NatsError):
            await subscription.unsubscribe()


def history_page(
    reply: str, headers: Mapping[str, str], body: bytes, dependencies: Dependencies, senders: Sequence[Sender]
) -> Iterator[Part]:
    """Yield the answer to a request: events after a position, of the accounts that the sender may act for."""
    try:
        sender = authenticate(senders, headers, subject=HISTORY_SUBJECT, reply=reply, body=body)
        request = _request(body)
        # Real time, because the request names real time: the clock of a demo is shifted.
        check_fresh(request.time, SystemClock().now())
    except Refusal as refusal:
        yield Part({END_HEADER: "refused", SENTENCE_HEADER: f"{refusal.code}: {refusal}"})
        return
    events = dependencies.log.read(request.after, limit=request.limit)
    for recorded in events:
        if EVERY_ACCOUNT in sender.accounts or recorded.account_id in sender.accounts:
            yield Part(
                {
                    "Nats-Msg-Id": str(recorded.event_id),
                    "Content-Type": CONTENT_TYPE,
                    NEXT_HEADER: str(recorded.position),
                    SUBJECT_HEADER: subject_of(type(recorded.event)),
                },
                encoded(recorded),
            )
    reached = events[-1].position if events else request.after
    yield Part({END_HEADER: "more" if len(events) == request.limit else "end", NEXT_HEADER: str(reached)})


def _request(body: bytes) -> HistoryRequest:
    try:
        return HistoryRequest.model_validate_json(body)
    except ValidationError as error:
        raise MalformedRequest(f"The request cannot be read: {what_is_wrong(error)}.") from None
