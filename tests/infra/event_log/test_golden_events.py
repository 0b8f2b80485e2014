"""One stored event of every topic, as it was stored when the topic was new. It must stay readable forever.

A golden file has the bytes of ``log.events.state``, and is never overwritten: a shape that no longer matches it needs a
new topic. Topics with personal fields have two: as they were stored before such fields were encrypted, and, in
``golden/sealed``, encrypted with `KEY`. ``python -m tests.infra.event_log.test_golden_events`` writes those of new
topics.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from eventsourcing.persistence import StoredEvent

from domain.invoice_link import LinkRefused, LinkRevoked, RefusalReason
from domain.messages import Event
from domain.personal import personal_fields
from infra.event_log.log import Log
from infra.event_log.mapper import PydanticMapper, UnreadableEvent
from infra.event_log.topics import topics
from infra.event_log.upcasts import UPCASTS, stored_topics
from infra.personal_data.person_keys import MemoryPersonKeys
from infra.recorded import Cause, Recorded
from tests.support import examples as an

REPOSITORY = Path(__file__).parents[3]
GOLDEN = Path(__file__).with_name("golden")

SEALED = GOLDEN / "sealed"
KEY = bytes(range(32))
"""The key of the person acme/wonka."""

ROUND_TRIP = """
import json, sys
from pathlib import Path
from eventsourcing.persistence import StoredEvent
from domain.personal import personal_fields
from infra.personal_data.person_keys import MemoryPersonKeys
from infra.event_log.mapper import PydanticMapper
from infra.event_log.upcasts import UPCASTS

mapper = PydanticMapper(MemoryPersonKeys({"acme/wonka": bytes.fromhex(sys.argv[2])}))

def rewritten(read, stored):
    fields = personal_fields(type(read.event))
    if not fields:
        return mapper.to_stored_event(read).state
    before = json.loads(stored.state)
    if not all("sealed" in before[field] for field in fields):
        return read.event.model_dump_json(exclude_unset=True).encode()
    row = mapper.to_stored_event(read._replace(account_id="acme"))
    if mapper.to_domain_event(row).event != read.event:
        return b"something else"
    after = json.loads(row.state)
    for field in fields:  # each encryption has a nonce of its own
        if after[field]["ciphertext"] == before[field]["ciphertext"]:
            return b"the same nonce"
        after[field] = before[field]
    return json.dumps(after, separators=(",", ":"), ensure_ascii=False).encode()

def outcome(path):
    stored = StoredEvent("golden-" + path.stem, 1, path.stem, path.read_bytes())
    try:
        read = mapper.to_domain_event(stored)
    except Exception as error:
        return f"{path.name}: {error}"
    if read.event.TOPIC != path.stem and path.stem not in UPCASTS:
        return f"{path.name}: it is read as {read.event.TOPIC}"
    written = rewritten(read, stored)
    if path.stem in UPCASTS:
        return "read as " + read.event.TOPIC + ": " + written.decode()
    if written != stored.state:
        return f"{path.name}: it is written as {written!r}"
    return "read and written: " + read.event.model_dump_json(exclude_unset=True)

print(json.dumps({path.stem: outcome(path) for path in Path(sys.argv[1]).glob("*.json")}))
"""


def outcomes(folder: Path) -> dict[str, str]:
    """Return the outcome of each golden file of a folder, in a process that has imported only the mapper."""
    process = subprocess.run(
        [sys.executable, "-c", ROUND_TRIP, folder, KEY.hex()],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
        timeout=60,
    )
    found: dict[str, str] = json.loads(process.stdout)
    return found


@pytest.fixture(scope="module")
def fresh() -> dict[str, str]:
    """The outcome of each golden file."""
    return outcomes(GOLDEN)


@pytest.fixture(scope="module")
def fresh_encrypted() -> dict[str, str]:
    """The outcome of each encrypted golden file."""
    return outcomes(SEALED)


PERSONAL = sorted(topic for topic, event in topics().items() if personal_fields(event))


@pytest.mark.parametrize("topic", sorted(topics()))
def test_a_fresh_process_reads_a_golden_event_and_writes_the_same_bytes(fresh: dict[str, str], topic: str) -> None:
    assert fresh.get(topic, f"there is no {topic}.json").startswith("read and written: ")


@pytest.mark.parametrize("topic", PERSONAL)
def test_an_encrypted_golden_event_equals_the_plain_one_and_changes_only_its_nonce_when_written(
    fresh: dict[str, str], fresh_encrypted: dict[str, str], topic: str
) -> None:
    plain, decrypted = (found[topic].partition("read and written: ")[2] for found in (fresh, fresh_encrypted))
    assert json.loads(decrypted) == json.loads(plain) | {"receiver_id": "wonka"}
    stored = (SEALED / f"{topic}.json").read_bytes()
    for needle in (b"Wonka", b"acme.example", b"Chocolate Street", b"Bucket"):
        assert needle not in stored


@pytest.mark.parametrize("topic", PERSONAL)
def test_an_encrypted_golden_event_without_its_key_is_read_as_erased(topic: str) -> None:
    stored = StoredEvent(f"golden-{topic}", 1, topic, (SEALED / f"{topic}.json").read_bytes())
    event = PydanticMapper(MemoryPersonKeys()).to_domain_event(stored).event
    assert {getattr(event, field) == mark.erased for field, mark in personal_fields(type(event)).items()} == {True}


UPCAST = {
    "invoice_link.LinkRevoked.v1": (
        'read as invoice_link.LinkRevoked.v2: {"link_id":"link-1","replaced_by":null,'
        '"revoked_at":"2026-10-20T10:00:00Z"}'
    ),
}


@pytest.mark.parametrize("topic", sorted(UPCASTS))
def test_a_fresh_process_reads_a_golden_event_of_a_retired_topic_as_its_successor(
    fresh: dict[str, str], topic: str
) -> None:
    assert fresh.get(topic, f"there is no {topic}.json") == UPCAST[topic]


def test_each_topic_has_a_golden_event_also_if_retired_and_each_golden_event_has_a_topic() -> None:
    assert sorted(path.name for path in GOLDEN.glob("*.json")) == sorted(
        f"{topic}.json" for topic in [*topics(), *UPCASTS]
    )
    assert sorted(path.name for path in SEALED.iterdir()) == [f"{topic}.json" for topic in PERSONAL]


def test_reading_a_topic_includes_the_topics_that_it_replaced() -> None:
    assert stored_topics(["invoice_link.LinkRevoked.v2"]) == [
        "invoice_link.LinkRevoked.v1",
        "invoice_link.LinkRevoked.v2",
    ]
    assert stored_topics(["order.OrderPlaced.v1"]) == ["order.OrderPlaced.v1"]


def test_old_and_new_versions_share_a_log_and_stored_bytes_do_not_change(postgres: Log) -> None:
    recorder = postgres._recorder
    states = [(GOLDEN / f"invoice_link.{name}.json").read_bytes() for name in ("LinkRevoked.v1", "LinkRevoked.v2")]
    recorder.insert_events([StoredEvent("invoice_link-1", 1, "invoice_link.LinkRevoked.v1", states[0])])
    recorder.insert_events([StoredEvent("invoice_link-2", 1, "invoice_link.LinkRevoked.v2", states[1])])

    first, second = (recorded.event for recorded in postgres.history())
    assert isinstance(first, LinkRevoked)
    assert isinstance(second, LinkRevoked)
    assert (first.replaced_by, second.replaced_by) == (None, "link-2")
    assert [row.state for row in recorder.rows(0, 10, None)] == states


def test_a_later_version_is_named_and_other_streams_stay_readable(log: Log) -> None:
    state = (GOLDEN / "invoice_link.LinkRevoked.v2.json").read_bytes()
    log._recorder.insert_events([StoredEvent("invoice_link-1", 1, "invoice_link.LinkRevoked.v9", state)])
    log._recorder.insert_events([StoredEvent("invoice_link-2", 1, "invoice_link.LinkRevoked.v2", state)])
    message = (
        "Event invoice_link-1 version 1, at position 1, cannot be read: the topic 'invoice_link.LinkRevoked.v9' is "
        "unknown to this version of Trunkline; it knows v1 and v2 of it, so a later version wrote this"
    )
    with pytest.raises(UnreadableEvent, match=re.escape(message)):
        log.load("invoice_link-1")
    assert len(log.load("invoice_link-2")) == 1


def test_a_failing_golden_event_is_named(tmp_path: Path) -> None:
    fulfilled = (GOLDEN / "order.OrderFulfilled.v1.json").read_bytes()
    broken = {
        "order.OrderExpired.v1": (b"golden ticket", "Invalid JSON"),
        "order.OrderPlaced.v1": (fulfilled, "fulfilled_at"),
        "order.OrderFulfilled.v1": (fulfilled + b"\n", "it is written as"),
        "order.TicketFound.v1": (b"{}", "'order.TicketFound.v1' is unknown to"),
    }
    for topic, (state, _) in broken.items():
        (tmp_path / f"{topic}.json").write_bytes(state)
    found = outcomes(tmp_path)
    assert found.keys() == broken.keys()
    for topic, (_, reason) in broken.items():
        assert found[topic].startswith(f"{topic}.json: ")
        assert reason in found[topic]


# --- new topics ----------------------------------------------------------------------------------------------------

EXAMPLES: tuple[Event, ...] = (
    an.opened,
    an.wonka_added,
    an.wonka_changed,
    an.wonka_default,
    an.wonka_erased,
    an.published,
    an.activated,
    an.expanded("extensions", 50),
    an.subscribed("custom_domain"),
    an.reversed_("order-1", "custom_domain", extensions=50, ultimate_plan=20),
    an.granted,
    an.withdrawn,
    an.factory_created,
    an.allocated,
    an.released,
    an.factory_upgraded,
    an.factory_removed,
    an.requested,
    an.contact_chosen,
    an.placed_offline,
    an.captured,
    an.declined,
    an.no_longer_fits,
    an.fulfilled,
    an.cancelled,
    an.expired,
    an.refunded,
    an.claimed,
    an.assigned,
    an.invoice_issued,
    an.emailed,
    an.credit_note_issued,
    an.document_deleted,
    an.link_issued,
    an.consumed,
    LinkRefused(link_id="link-1", reason=RefusalReason.USED, refused_at=an.LATER),
    an.revoked,
)


def write_missing() -> None:
    """Write the golden files that are missing. Existing ones stay unchanged."""
    cause = Cause("distributor:dora", "c0441e1a-0000-4000-8000-000000000001", "ca05a1e0-0000-4000-8000-000000000002")
    for event in EXAMPLES:
        path = (SEALED if personal_fields(type(event)) else GOLDEN) / f"{event.TOPIC}.json"
        if not path.exists():
            recorded = Recorded(f"golden-{event.TOPIC}", 1, event, "acme", cause, an.LATER)
            path.write_bytes(PydanticMapper(MemoryPersonKeys({"acme/wonka": KEY})).to_stored_event(recorded).state)


if __name__ == "__main__":
    write_missing()
