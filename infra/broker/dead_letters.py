"""Dead letters: messages that could not be processed, stored with the reason, to be inspected, replayed or dropped."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from infra.broker.nats import DEAD_LETTER_SUBJECTS, DEAD_LETTERS, PUBLISH_S, REDELIVERY_SUBJECTS, redelivery_to

ERROR = "Trunkline-Error"
SUBJECT = "Trunkline-Subject"
STREAM = "Trunkline-Stream"
CONSUMER = "Trunkline-Consumer"
STORED_AT = "Trunkline-Stored-At"
DELIVERIES = "Trunkline-Deliveries"
TRUNCATED = "Trunkline-Truncated"
DROPPED = "Trunkline-Dropped"
ABOUT_THE_FAILURE = {ERROR, STREAM, CONSUMER, DELIVERIES, TRUNCATED}
DROPPED_SUBJECTS = f"{DEAD_LETTER_SUBJECTS}.dropped"
BODY_BYTES_MAX = 512 * 1024
"""Of a larger body only the beginning is stored, to show what it was: body and reason have to fit into one message."""


class NoSuchLetter(Exception):
    """There is no dead letter with this number, or it cannot be replayed."""


@dataclass(frozen=True)
class Letter:
    """A dead letter. ``number`` is 0 until it is stored."""

    subject: str
    headers: Mapping[str, str]
    body: bytes
    number: int = 0
    buried_at: datetime | None = None

    @property
    def error(self) -> str:
        """Why it could not be processed."""
        return self.headers.get(ERROR, "")

    @property
    def consumer(self) -> str:
        """The consumer that could not process it."""
        return self.headers.get(CONSUMER, self.subject.rpartition(".")[2])

    @property
    def dropped(self) -> str | None:
        """Why it was dropped, or None if it was not."""
        return self.headers.get(DROPPED)


def one_line(text: str) -> str:
    """Convert a text to a valid header value: one line of ASCII, at most 1000 characters."""
    return " ".join(text.split()).encode("ascii", "backslashreplace").decode()[:1000]


def original_subject(message: Msg) -> str:
    """Return the subject that a message was first published to, even if it is a replayed dead letter."""
    put_back = message.subject.startswith(f"{REDELIVERY_SUBJECTS}.")
    return (message.headers or {}).get(SUBJECT, "") if put_back else message.subject


def first_stored_at(message: Msg) -> datetime:
    """Return when the broker first stored a message. The header counts on redelivery subjects only: those are ours."""
    if message.subject.startswith(f"{REDELIVERY_SUBJECTS}."):
        with suppress(KeyError, ValueError):
            return datetime.fromisoformat((message.headers or {})[STORED_AT])
    return message.metadata.timestamp.astimezone(UTC)


def letter_of(message: Msg, error: Exception) -> Letter:
    """Make a dead letter of a delivery that failed for good."""
    where = message.metadata
    kept = {name: value for name, value in (message.headers or {}).items() if not name.startswith("Nats-")}
    truncated = {TRUNCATED: str(len(message.data))} if len(message.data) > BODY_BYTES_MAX else {}
    headers = {
        **kept,
        ERROR: one_line(f"{type(error).__name__}: {error}"),
        SUBJECT: original_subject(message),
        STREAM: where.stream,
        CONSUMER: where.consumer,
        STORED_AT: first_stored_at(message).isoformat(),
        DELIVERIES: str(where.num_delivered),
        **truncated,
    }
    return Letter(f"{DEAD_LETTER_SUBJECTS}.{where.consumer}", headers, message.data[:BODY_BYTES_MAX])


async def letters(jetstream: JetStreamContext, *, dropped: bool = False) -> AsyncIterator[Letter]:
    """Yield all dead letters, oldest first; or the records of those that were dropped."""
    state = (await jetstream.stream_info(DEAD_LETTERS)).state
    for number in range(max(state.first_seq, 1), state.last_seq + 1):
        with suppress(NoSuchLetter):
            found = await letter(jetstream, number)
            if (found.dropped is not None) == dropped:
                yield found


async def waiting(jetstream: JetStreamContext) -> int:
    """Return the number of dead letters, excluding dropped ones."""
    state = (await jetstream.stream_info(DEAD_LETTERS, subjects_filter=f"{DEAD_LETTER_SUBJECTS}.*")).state
    return sum((state.subjects or {}).values())


async def letter(jetstream: JetStreamContext, number: int) -> Letter:
    """Return a dead letter.

    Raises:
        NoSuchLetter: there is none with this number.
    """
    try:
        kept = await jetstream.get_msg(DEAD_LETTERS, number)
    except NotFoundError:
        raise NoSuchLetter(f"There is no dead letter {number}; trunkline dead-letters list shows them.") from None
    return Letter(kept.subject or "", kept.headers or {}, kept.data or b"", number, kept.time)


async def replay(jetstream: JetStreamContext, number: int) -> Letter:
    """Redeliver a dead letter to the consumer that failed on it, and to no other, and delete it here.

    Raises:
        NoSuchLetter: there is none with this number, it is truncated, or it was dropped.
    """
    found = await letter(jetstream, number)
    if found.dropped is not None or TRUNCATED in found.headers or STREAM not in found.headers:
        raise NoSuchLetter(f"Dead letter {number} cannot be replayed: it is not stored in full.")
    headers = {name: value for name, value in found.headers.items() if name not in ABOUT_THE_FAILURE}
    stream = found.headers[STREAM]
    await jetstream.publish(
        redelivery_to(stream, found.consumer), found.body, timeout=PUBLISH_S, stream=stream, headers=headers
    )
    await jetstream.delete_msg(DEAD_LETTERS, number)
    return found


async def drop(jetstream: JetStreamContext, number: int, *, reason: str, by: str) -> Letter:
    """Drop a dead letter. A record stays of who dropped it and why; the body, which may be personal data, is deleted.

    Raises:
        NoSuchLetter: there is none with this number, or it was already dropped.
    """
    found = await letter(jetstream, number)
    if found.dropped is not None:
        raise NoSuchLetter(f"Dead letter {number} was already dropped: {found.dropped}.")
    about = {name: found.headers[name] for name in (ERROR, SUBJECT, CONSUMER, STORED_AT) if name in found.headers}
    headers = {**about, DROPPED: one_line(f"{by}: {reason}")}
    body = json.dumps({"number": number, "bytes": len(found.body)}).encode()
    subject = f"{DROPPED_SUBJECTS}.{found.consumer}"
    await jetstream.publish(subject, body, timeout=PUBLISH_S, stream=DEAD_LETTERS, headers=headers)
    await jetstream.delete_msg(DEAD_LETTERS, number)
    return found
