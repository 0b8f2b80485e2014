"""Messages that could not be dealt with: kept with why, looked at, put back for the one that had them, or dropped."""

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
"""Of a larger body the beginning is kept, which tells what it was: with the reason it has to fit into a message."""


class NoSuchLetter(Exception):
    """There is no dead letter of this number, or it cannot be put back."""


@dataclass(frozen=True)
class Letter:
    """A dead letter. ``number`` is 0 before it is kept."""

    subject: str
    headers: Mapping[str, str]
    body: bytes
    number: int = 0
    buried_at: datetime | None = None

    @property
    def error(self) -> str:
        """Why it could not be dealt with."""
        return self.headers.get(ERROR, "")

    @property
    def consumer(self) -> str:
        """Who could not deal with it."""
        return self.headers.get(CONSUMER, self.subject.rpartition(".")[2])

    @property
    def dropped(self) -> str | None:
        """Why it was dropped, where it was."""
        return self.headers.get(DROPPED)


def one_line(text: str) -> str:
    """A text as a header may carry it."""
    return " ".join(text.split()).encode("ascii", "backslashreplace").decode()[:1000]


def original_subject(message: Msg) -> str:
    """The subject that a message was published to at first, also where it was put back."""
    put_back = message.subject.startswith(f"{REDELIVERY_SUBJECTS}.")
    return (message.headers or {}).get(SUBJECT, "") if put_back else message.subject


def first_stored_at(message: Msg) -> datetime:
    """When the broker took a message at first. Only we publish where it could be told something else."""
    if message.subject.startswith(f"{REDELIVERY_SUBJECTS}."):
        with suppress(KeyError, ValueError):
            return datetime.fromisoformat((message.headers or {})[STORED_AT])
    return message.metadata.timestamp.astimezone(UTC)


def letter_of(message: Msg, error: Exception) -> Letter:
    """The dead letter of a delivery that failed for good."""
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
    """All dead letters, oldest first; or what is left of those that were dropped."""
    state = (await jetstream.stream_info(DEAD_LETTERS)).state
    for number in range(max(state.first_seq, 1), state.last_seq + 1):
        with suppress(NoSuchLetter):
            found = await letter(jetstream, number)
            if (found.dropped is not None) == dropped:
                yield found


async def waiting(jetstream: JetStreamContext) -> int:
    """How many dead letters there are, without those that were dropped."""
    state = (await jetstream.stream_info(DEAD_LETTERS, subjects_filter=f"{DEAD_LETTER_SUBJECTS}.*")).state
    return sum((state.subjects or {}).values())


async def letter(jetstream: JetStreamContext, number: int) -> Letter:
    """A dead letter.

    Raises:
        NoSuchLetter: there is none with this number.
    """
    try:
        kept = await jetstream.get_msg(DEAD_LETTERS, number)
    except NotFoundError:
        raise NoSuchLetter(f"There is no dead letter {number}; trunkline dead-letters list shows them.") from None
    return Letter(kept.subject or "", kept.headers or {}, kept.data or b"", number, kept.time)


async def replay(jetstream: JetStreamContext, number: int) -> Letter:
    """Put a dead letter back for the consumer that had it, and for no other; then it is none any longer.

    Raises:
        NoSuchLetter: there is none with this number, or it was not kept whole, or was dropped.
    """
    found = await letter(jetstream, number)
    if found.dropped is not None or TRUNCATED in found.headers or STREAM not in found.headers:
        raise NoSuchLetter(f"The dead letter {number} cannot be put back: it was not kept whole.")
    headers = {name: value for name, value in found.headers.items() if name not in ABOUT_THE_FAILURE}
    stream = found.headers[STREAM]
    await jetstream.publish(
        redelivery_to(stream, found.consumer), found.body, timeout=PUBLISH_S, stream=stream, headers=headers
    )
    await jetstream.delete_msg(DEAD_LETTERS, number)
    return found


async def drop(jetstream: JetStreamContext, number: int, *, reason: str, by: str) -> Letter:
    """Give a dead letter up. That it was, by whom and why, is kept; its body, which may be personal, is not.

    Raises:
        NoSuchLetter: there is none with this number, or it was dropped already.
    """
    found = await letter(jetstream, number)
    if found.dropped is not None:
        raise NoSuchLetter(f"The dead letter {number} was dropped already: {found.dropped}.")
    about = {name: found.headers[name] for name in (ERROR, SUBJECT, CONSUMER, STORED_AT) if name in found.headers}
    headers = {**about, DROPPED: one_line(f"{by}: {reason}")}
    body = json.dumps({"number": number, "bytes": len(found.body)}).encode()
    subject = f"{DROPPED_SUBJECTS}.{found.consumer}"
    await jetstream.publish(subject, body, timeout=PUBLISH_S, stream=DEAD_LETTERS, headers=headers)
    await jetstream.delete_msg(DEAD_LETTERS, number)
    return found
