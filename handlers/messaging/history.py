"""Past events for whoever comes late: out of the log, page by page, the same messages as over the stream.

A request is signed as commands are, and answered where NATS says (its reply subject): with the messages of events,
each as it was published, and one without a body that ends the page and says where the next one begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from domain.messages import Refusal, what_is_wrong
from handlers.contract.events import encoded
from handlers.contract.history import END_HEADER, NEXT_HEADER, HistoryRequest
from handlers.dependencies import Dependencies
from handlers.messaging.command_messages import FRESH_FOR, UnknownSender
from infra.broker.cloudevents import CONTENT_TYPE
from infra.broker.nats import HISTORY_SUBJECT, subject_of
from infra.broker.signatures import SENDER_HEADER, SIGNATURE_HEADER, signed_by
from infra.clock import SystemClock
from infra.settings import EVERY_ACCOUNT, Sender

SUBJECT_HEADER = "Trunkline-Subject"
SENTENCE_HEADER = "Trunkline-Error"


class MalformedRequest(Refusal):
    """The request is not what it has to be."""


class RequestOutOfDate(Refusal):
    """The request was not sent when it says."""


@dataclass(frozen=True)
class Part:
    """One message of the answer."""

    headers: Mapping[str, str]
    body: bytes = b""


def told(
    reply: str, headers: Mapping[str, str], body: bytes, dependencies: Dependencies, senders: Sequence[Sender]
) -> Iterator[Part]:
    """The answer to a request: events behind a position, of the accounts that the sender may act for."""
    try:
        sender = _sender(reply, headers, body, senders)
        request = _request(body)
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


def _sender(reply: str, headers: Mapping[str, str], body: bytes, senders: Sequence[Sender]) -> Sender:
    name, signature = headers.get(SENDER_HEADER, ""), headers.get(SIGNATURE_HEADER, "")
    sender = signed_by(senders, name, signature, subject=HISTORY_SUBJECT, reply=reply, body=body)
    if sender is None:
        raise UnknownSender(f"Nobody that we know signed this request; give {SENDER_HEADER} and {SIGNATURE_HEADER}.")
    return sender


def _request(body: bytes) -> HistoryRequest:
    try:
        request = HistoryRequest.model_validate_json(body)
    except ValidationError as error:
        raise MalformedRequest(f"The request cannot be read: {what_is_wrong(error)}.") from None
    # It says its time by the clock of the world: a demonstration's clock is its own.
    if abs(SystemClock().now() - request.time) > FRESH_FOR:
        raise RequestOutOfDate("The request was not sent within the last five minutes; sign it anew.")
    return request
