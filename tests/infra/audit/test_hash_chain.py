"""Tampering with the log by SQL is detected: the verifier names the first wrong position."""

from __future__ import annotations

import gc
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from eventsourcing.persistence import StoredEvent
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import Connection

from infra.audit.auditor import Auditor, auditing
from infra.audit.checkpoints import Checkpoint, NoCheckpoint, Trees, append_to, checkpoints_in
from infra.audit.ed25519 import SigningKey, WrongKey
from infra.audit.hash_chain import GENESIS, ChainBroken, End, Raw, Verifier, Walk, linked, raw
from infra.event_log.append import Append, appended
from infra.event_log.log import Change, Log
from infra.event_log.postgres_recorder import postgres_log
from infra.event_log.recorder import LogRow, as_notifications
from infra.postgres.binary_format import microseconds
from infra.postgres.connections import WRITER, connect
from infra.recorded import Cause, event_id
from tests.support.databases import MASTER_KEY, ServerAddresses, as_program, fresh_database
from tests.support.examples import (
    NOW,
    bucket_added,
    contact_chosen,
    opened,
    placed,
    requested,
    wonka_added,
    wonka_default,
)
from tests.support.given_domain import but

KEY = SigningKey(Ed25519PrivateKey.generate())
DORA = Cause("distributor:dora", "request-1", "click-1")
LAST = 10
SIGNED = (4, 9)


def write(log: Log) -> None:
    """Write ten events of four streams; the library's own aggregates begin with version 0."""

    def append(account: str, *changes: Change) -> None:
        log.append(changes, account_id=account, cause=DORA, at=NOW)

    append("acme", Change("account-acme", 0, [opened, wonka_added]))
    append(
        "acme",
        Change("order-order-1", 0, [requested, contact_chosen, placed]),
        Change("account-acme", 2, [wonka_default]),
    )
    log._recorder.insert_events([StoredEvent("ticket-1", n, "ticket.Found.v1", b"\x00golden\xff") for n in (0, 1)])
    append("slugworth", Change("account-slugworth", 0, [but(opened, account_id="slugworth")]))
    append("acme", Change("account-acme", 3, [bucket_added]))


@pytest.fixture
def auditor(owner_url: str) -> Iterator[Auditor]:
    with postgres_log(as_program(owner_url), master_key=MASTER_KEY) as log:
        write(log)
    with auditing(as_program(owner_url)) as auditor:
        yield auditor


@pytest.fixture
def signed(auditor: Auditor) -> list[Checkpoint]:
    """Checkpoints made before any tampering."""
    found = {position: auditor.hash_at(position) for position in SIGNED}
    return [Checkpoint.signed(KEY, position, hash_, NOW) for position, hash_ in found.items() if hash_]


Tamper = Callable[..., None]


@pytest.fixture
def tamper(owner_url: str) -> Tamper:
    """Run statements on the log as its owner, with the trigger disabled."""

    def do(*statements: str) -> None:
        with psycopg.connect(owner_url) as conn:
            conn.execute("ALTER TABLE log.events DISABLE TRIGGER only_added_to")
            for statement in statements:
                conn.execute(statement.encode())
            conn.execute("ALTER TABLE log.events ENABLE TRIGGER only_added_to")

    return do


def broken(auditor: Auditor, checkpoints: Sequence[Checkpoint] = ()) -> ChainBroken:
    with pytest.raises(ChainBroken) as caught:
        Verifier(auditor, checkpoints, [KEY.public]).verify()
    assert str(caught.value) == f"Position {caught.value.position} is the first that is wrong: {caught.value.reason}."
    return caught.value


def whole(auditor: Auditor, checkpoints: Sequence[Checkpoint] = ()) -> list[int]:
    """Verify, and return the positions of the checkpoints that agreed."""
    passed: list[int] = []
    walk = Verifier(
        auditor, checkpoints, [KEY.public], on_checkpoint=lambda one, _: passed.append(one.position)
    ).verify()
    assert walk.hash == auditor.end().hash
    return passed


# --- an untouched log ----------------------------------------------------------------------------------------------


def test_an_untouched_log_is_whole(auditor: Auditor, signed: list[Checkpoint]) -> None:
    assert whole(auditor, signed) == list(SIGNED)


def test_an_empty_log_is_whole(database_url: str) -> None:
    with auditing(database_url) as auditor:
        assert whole(auditor) == []


def test_a_log_is_whole_in_pages_of_any_size(auditor: Auditor, monkeypatch: pytest.MonkeyPatch) -> None:
    for page in (1, 3, 10):
        monkeypatch.setattr("infra.audit.auditor.ROWS_PER_PAGE", page)
        assert whole(auditor) == []


def test_appending_during_a_verification_does_not_disturb_it(auditor: Auditor, postgres: Log) -> None:
    """The walk ends where the log ended when it began, or at a checkpoint that was made since."""
    verifier = Verifier(auditor, [], [KEY.public])

    def append(_position: int, _end: int) -> None:
        if auditor.end().last < 14:
            count = len(postgres.load("account-other"))
            postgres.append([Change("account-other", count, [wonka_added])], account_id="x", cause=DORA, at=NOW)

    verifier.on_progress = append
    assert verifier.verify().position == LAST

    def later() -> Iterator[Checkpoint]:
        end = auditor.end()
        assert end.hash
        yield Checkpoint.signed(KEY, end.last, end.hash, NOW)

    assert Verifier(auditor, later(), [KEY.public]).verify().position == 11


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.fixed_dictionaries({"topic": TEXTS, "correlation_id": TEXTS, "actor": TEXTS}),
    st.fixed_dictionaries({"account_id": st.none() | TEXTS, "causation_id": st.none() | TEXTS}),
    st.binary(max_size=60),
    TEXTS,
    st.datetimes(timezones=st.just(NOW.tzinfo)),
)
def test_the_hash_of_any_row_is_the_one_that_the_database_computes(
    postgres: Log, texts: dict[str, str], others: dict[str, str | None], state: bytes, name: str, recorded_at: datetime
) -> None:
    """Two implementations that share no code: SQL at the append, Python here."""
    head = postgres.head()
    stream = f"{name}-{head}"
    columns = {**texts, **others, "recorded_at": recorded_at}
    given: dict[str, Any] = {"originator_id": stream, "originator_version": 1, "state": state, "id": 0, **columns}
    postgres._recorder.insert_events(as_notifications([LogRow(**given)]))

    moment = microseconds(recorded_at)
    own: dict[str, Any] = {**texts, **others, "recorded_at": moment, "state": state, "stream": stream}
    expected = raw(position=head + 1, version=1, event_id=event_id(stream, 1), **own)
    with psycopg.connect(postgres._recorder._pool.conninfo, options="-c role=trunkline_auditor") as conn:  # type: ignore[attr-defined]  # on PostgreSQL
        found = conn.execute(
            "SELECT hash, (SELECT p.hash FROM log.events AS p WHERE p.position = e.position - 1) FROM log.events AS e "
            "WHERE position = %s",
            (head + 1,),
        ).fetchone()
    assert found
    assert found[0] == linked(found[1] or GENESIS, expected)


def test_the_documented_script_recomputes_the_chain(auditor: Auditor, owner_url: str, tamper: Tamper) -> None:
    def recomputed() -> str:
        with psycopg.connect(owner_url) as conn, conn.cursor() as cursor, cursor.copy(query) as copy:
            copied = b"".join(copy)
        done = subprocess.run([sys.executable, "-I", script], input=copied, capture_output=True, check=True)
        return done.stdout.decode()

    script = Path(__file__).parents[3] / "docs" / "recompute_chain.py"
    usage = script.read_text(encoding="utf-8").split('-c "')[1].split('"')[0]
    query = " ".join(usage.split()).encode()
    end = auditor.end()
    assert end.hash
    assert recomputed() == f"{LAST} positions are whole, to hash {end.hash.hex()}.\n"
    tamper("UPDATE log.events SET actor = 'admin:ada' WHERE position = 5")
    assert recomputed() == "Position 5 is the first that is wrong.\n"


# --- one row -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "state = state || ' '",
        "state = convert_to(replace(convert_from(state, 'UTF8'), 'order-1', 'order-2'), 'UTF8')",
        "topic = 'order.OrderCancelled.v1'",
        "stream = 'order-order-9'",
        "version = 9",
        "recorded_at = recorded_at + interval '1 microsecond'",
        "recorded_at = 'infinity'",
        "account_id = 'slugworth'",
        "account_id = NULL",
        "event_id = gen_random_uuid()",
        "correlation_id = 'request-2'",
        "causation_id = 'click-2'",
        "causation_id = NULL",
        "actor = 'admin:ada'",
        "actor = actor || ''''",
        "hash = sha256('forged')",
    ],
)
def test_a_changed_column_is_found_at_its_position(auditor: Auditor, tamper: Tamper, change: str) -> None:
    tamper(f"UPDATE log.events SET {change} WHERE position = 5")
    assert "has a hash that does not follow" in broken(auditor).reason
    assert broken(auditor).position == 5


@pytest.mark.parametrize("column", ["stream", "version", "topic", "state", "recorded_at", "event_id", "actor", "hash"])
def test_a_column_set_to_null_is_found(auditor: Auditor, tamper: Tamper, column: str) -> None:
    tamper(
        f"ALTER TABLE log.events ALTER COLUMN {column} DROP NOT NULL",
        f"UPDATE log.events SET {column} = NULL WHERE position = 5",
    )
    assert broken(auditor).position == 5


@pytest.mark.parametrize("position", [1, 5, LAST])
def test_the_first_and_the_last_row_are_no_exception(auditor: Auditor, tamper: Tamper, position: int) -> None:
    tamper(f"UPDATE log.events SET actor = 'admin:ada' WHERE position = {position}")
    assert broken(auditor).position == position


def test_of_several_wrong_positions_the_first_is_named(auditor: Auditor, tamper: Tamper) -> None:
    tamper("UPDATE log.events SET actor = 'admin:ada' WHERE position IN (8, 6, 9)")
    assert broken(auditor).position == 6


def test_a_text_that_moves_from_one_column_to_the_next_is_found(auditor: Auditor, tamper: Tamper) -> None:
    """Lengths are part of the canonical form: the same characters, split differently over columns, are another row."""
    tamper("UPDATE log.events SET correlation_id = correlation_id || 'c', causation_id = 'lick-1' WHERE position = 5")
    assert broken(auditor).position == 5


# --- rows deleted, inserted, or swapped ----------------------------------------------------------------------------


@pytest.mark.parametrize("position", [1, 5, 9])
def test_a_deleted_row_is_found(auditor: Auditor, tamper: Tamper, position: int) -> None:
    tamper(f"DELETE FROM log.events WHERE position = {position}")
    assert broken(auditor).position == position
    assert f"its row is missing; the next one is at position {position + 1}" in broken(auditor).reason


def test_a_deleted_row_is_found_though_the_others_moved_up(auditor: Auditor, tamper: Tamper) -> None:
    tamper("DELETE FROM log.events WHERE position = 5", *moved(6, -1), "UPDATE log.head SET position = 9")
    assert broken(auditor).position == 5


def moved(first: int, by: int) -> tuple[str, str]:
    """Return statements that move the tail, by way of unused positions."""
    return (
        f"UPDATE log.events SET position = position + 1000 WHERE position >= {first}",
        f"UPDATE log.events SET position = position - 1000 + {by} WHERE position >= 1000",
    )


INSERT = """
    INSERT INTO log.events
    SELECT {position}, 'order-order-1', 4, 'order.OrderCancelled.v1', state, recorded_at, account_id,
           gen_random_uuid(), correlation_id, causation_id, actor, {hash} FROM log.events WHERE position = 4
"""


def test_an_inserted_row_is_found(auditor: Auditor, tamper: Tamper) -> None:
    tamper(*moved(5, 1), INSERT.format(position=5, hash="hash"), "UPDATE log.head SET position = 11")
    assert broken(auditor).position == 5


def test_an_inserted_row_with_a_fitting_hash_does_not_fit_its_stream(auditor: Auditor, tamper: Tamper) -> None:
    tamper(*moved(5, 1), INSERT.format(position=5, hash="hash"), "UPDATE log.head SET position = 11")
    fit(auditor, tamper, 5, upto=5)
    assert broken(auditor).position == 5
    assert "version 3 comes later, at position 6" in broken(auditor).reason


def test_an_inserted_row_of_a_new_stream_with_a_fitting_hash_breaks_the_next(auditor: Auditor, tamper: Tamper) -> None:
    """The inserted row itself looks valid; the chain shows only that the next one did not follow it."""
    own = INSERT.format(position=5, hash="hash").replace("'order-order-1', 4", "'order-order-9', 1")
    tamper(*moved(5, 1), own, "UPDATE log.head SET position = 11")
    fit(auditor, tamper, 5, upto=5)
    assert broken(auditor).position == 6
    assert "or the row was replaced" in broken(auditor).reason


@pytest.mark.parametrize("position", [11, 12])
def test_a_row_after_the_end_is_found(auditor: Auditor, tamper: Tamper, position: int) -> None:
    tamper(INSERT.format(position=position, hash="hash"))
    assert broken(auditor).position == 11


def test_a_fitting_row_after_the_end_is_found_by_the_head(auditor: Auditor, tamper: Tamper) -> None:
    tamper(INSERT.format(position=11, hash="hash"))
    fit(auditor, tamper, 11, upto=11)
    assert broken(auditor).position == 11
    assert "log.head says that the log ends at 10, but this row follows" in broken(auditor).reason


@pytest.mark.parametrize("position", [0, -5, -(2**63)])
def test_a_row_before_the_first_is_found(auditor: Auditor, tamper: Tamper, position: int) -> None:
    tamper(INSERT.format(position=position, hash="hash"))
    assert broken(auditor).position == 1
    assert f"there is one at position {position}" in broken(auditor).reason


@pytest.mark.parametrize(("one", "other"), [(5, 7), (1, 10), (7, 8)])
def test_two_swapped_rows_are_found_at_the_first(auditor: Auditor, tamper: Tamper, one: int, other: int) -> None:
    tamper(
        f"UPDATE log.events SET position = -1 WHERE position = {one}",
        f"UPDATE log.events SET position = {one} WHERE position = {other}",
        f"UPDATE log.events SET position = {other} WHERE position = -1",
    )
    assert broken(auditor).position == one


# --- the tail ------------------------------------------------------------------------------------------------------

HEAD_OF_8 = "UPDATE log.head SET (position, hash) = (SELECT position, hash FROM log.events WHERE position = 8)"


def test_a_truncated_log_is_found_by_the_head(auditor: Auditor, tamper: Tamper) -> None:
    tamper("DELETE FROM log.events WHERE position > 8")
    assert broken(auditor).position == 9
    assert "log.head says that the log reaches 10, but it ends at 8" in broken(auditor).reason


def test_a_truncated_log_with_an_adjusted_head_is_found_only_by_a_checkpoint(
    auditor: Auditor, tamper: Tamper, signed: list[Checkpoint]
) -> None:
    tamper("DELETE FROM log.events WHERE position > 8", HEAD_OF_8)
    assert whole(auditor) == []
    assert broken(auditor, signed).position == 9
    assert "a signed checkpoint says that the log reached position 9" in broken(auditor, signed).reason


def test_an_emptied_log_is_found_by_a_checkpoint(auditor: Auditor, tamper: Tamper, signed: list[Checkpoint]) -> None:
    tamper("TRUNCATE log.events")
    assert broken(auditor).position == 1
    tamper(f"UPDATE log.head SET position = 0, hash = '\\x{GENESIS.hex()}'")
    assert whole(auditor) == []
    assert broken(auditor, signed).position == 1


def fit(auditor: Auditor, tamper: Tamper, first: int, upto: int | None = None) -> None:
    """Recompute the hashes from a position on, and that of the head, as the log's own function would."""
    rows = [row for page in auditor.pages(0, 2**62) for row in page]
    previous = rows[first - 2][11] if first > 1 else GENESIS
    for position, row in enumerate(rows[first - 1 : upto], start=first):
        assert previous is not None
        previous = linked(previous, row)
        tamper(f"UPDATE log.events SET hash = '\\x{previous.hex()}' WHERE position = {position}")
    if upto is None:
        tamper(
            "UPDATE log.head SET (position, hash) = "
            "(SELECT position, hash FROM log.events ORDER BY position DESC LIMIT 1)"
        )


def test_a_rewritten_tail_is_found_only_by_a_checkpoint(
    auditor: Auditor, tamper: Tamper, signed: list[Checkpoint]
) -> None:
    tamper("UPDATE log.events SET actor = 'admin:ada' WHERE position = 6")
    fit(auditor, tamper, 6)
    assert whole(auditor) == []
    found = broken(auditor, signed)
    assert found.position == 9
    assert "has another hash for it, so the log was rewritten somewhere after position 4" in found.reason


def test_a_rewritten_log_is_found_by_the_first_checkpoint(
    auditor: Auditor, tamper: Tamper, signed: list[Checkpoint]
) -> None:
    tamper("UPDATE log.events SET actor = 'admin:ada' WHERE position = 1")
    fit(auditor, tamper, 1)
    assert whole(auditor) == []
    assert broken(auditor, signed).position == 4


@pytest.mark.parametrize(
    ("statement", "position", "reason"),
    [
        ("DELETE FROM log.head", 11, "log.head, which says where the log ends, is empty"),
        ("UPDATE log.head SET hash = sha256('forged')", 10, "log.head has another hash for it"),
        ("UPDATE log.head SET position = 12", 11, "log.head says that the log reaches 12"),
        ("UPDATE log.head SET position = 7", 8, "log.head says that the log ends at 7"),
    ],
)
def test_a_tampered_head_is_found(auditor: Auditor, tamper: Tamper, statement: str, position: int, reason: str) -> None:
    tamper(statement)
    assert (broken(auditor).position, reason in broken(auditor).reason) == (position, True)


# --- versions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "position", "reason"),
    [
        ("version = 7 WHERE position = 5", 5, "version 7 of order-order-1, and there is no version 6"),
        (
            "version = version + 1 WHERE stream = 'order-order-1'",
            3,
            "version 2 of order-order-1, and there is no version 1",
        ),
        ("version = -1 WHERE position = 7", 7, "versions begin with 1"),
        ("version = 4 - version WHERE stream = 'order-order-1'", 3, "version 2 comes later, at position 4"),
    ],
)
def test_inconsistent_versions_are_found_though_the_chain_fits(
    auditor: Auditor, tamper: Tamper, change: str, position: int, reason: str
) -> None:
    tamper(
        "ALTER TABLE log.events DROP CONSTRAINT events_stream_version_key, DROP CONSTRAINT events_version_check",
        f"UPDATE log.events SET {change}",
        "ALTER TABLE log.events ADD CONSTRAINT events_stream_version_key UNIQUE (stream, version)",
    )
    fit(auditor, tamper, 1)
    assert broken(auditor).position == position
    assert reason in broken(auditor).reason


def test_a_repeated_version_is_found_though_the_chain_fits(auditor: Auditor, tamper: Tamper) -> None:
    tamper(
        "ALTER TABLE log.events DROP CONSTRAINT events_stream_version_key",
        "UPDATE log.events SET version = 2 WHERE position = 5",
    )
    fit(auditor, tamper, 5)
    assert broken(auditor).position == 5
    assert "its version in its stream, is not unique" in broken(auditor).reason


def test_a_repeated_position_is_found(auditor: Auditor, tamper: Tamper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.audit.auditor.ROWS_PER_PAGE", 5)
    tamper("ALTER TABLE log.events DROP CONSTRAINT events_pkey", INSERT.format(position=5, hash="hash"))
    assert broken(auditor).position == 5


def test_a_row_of_an_inheriting_table_is_found_even_between_two_pages(
    auditor: Auditor, tamper: Tamper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader of its stream would take it for the newest event."""
    monkeypatch.setattr("infra.audit.auditor.ROWS_PER_PAGE", 5)
    inserted = INSERT.format(position=5, hash="hash").replace("log.events\n", "log.more\n", 1)
    tamper("CREATE TABLE log.more () INHERITS (log.events)", inserted)
    assert broken(auditor).position == 5


def test_a_row_without_a_position_is_found(auditor: Auditor, tamper: Tamper) -> None:
    tamper(
        "ALTER TABLE log.events DROP CONSTRAINT events_pkey, ALTER position DROP NOT NULL",
        INSERT.format(position="NULL", hash="hash"),
    )
    assert "the log has a row without a position" in broken(auditor).reason


def test_a_row_without_a_position_is_found_even_if_new_ones_are_forbidden(auditor: Auditor, tamper: Tamper) -> None:
    tamper(
        "ALTER TABLE log.events DROP CONSTRAINT events_pkey, ALTER position DROP NOT NULL",
        "ALTER TABLE log.events ADD CONSTRAINT events_pkey UNIQUE (position)",
        INSERT.format(position="NULL", hash="hash"),
        "ALTER TABLE log.events ADD CONSTRAINT from_now_on NOT NULL position NOT VALID",
    )
    assert "the log has a row without a position" in broken(auditor).reason


@pytest.mark.parametrize(
    "statements",
    [
        ("ALTER TABLE log.events ENABLE ROW LEVEL SECURITY", "CREATE POLICY all_of_it ON log.events USING (true)"),
        ("CREATE RULE more AS ON UPDATE TO log.events DO ALSO NOTHING",),
    ],
)
def test_a_log_in_which_others_may_read_other_rows_is_refused(
    auditor: Auditor, tamper: Tamper, statements: tuple[str, ...]
) -> None:
    tamper(*statements)
    assert broken(auditor).reason == "log.events is not a plain table, so others may read other rows in it"


def test_an_untouched_log_without_its_indexes_is_whole(auditor: Auditor, tamper: Tamper) -> None:
    tamper("ALTER TABLE log.events DROP CONSTRAINT events_pkey, DROP CONSTRAINT events_stream_version_key")
    assert whole(auditor) == []


# --- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"hash": 64 * "0"},
        {"position": 5},
        {"time": NOW.replace(year=2030)},
        {"signature": 128 * "0"},
        {"trees": Trees(log_root=64 * "0", accounts=2, accounts_root=64 * "0")},
    ],
)
def test_a_forged_checkpoint_is_named(auditor: Auditor, signed: list[Checkpoint], change: dict[str, object]) -> None:
    forged = signed[0].model_copy(update=change)
    assert broken(auditor, [forged, signed[1]]).position == forged.position
    assert "does not match its signature" in broken(auditor, [forged, signed[1]]).reason


def test_a_checkpoint_signed_with_another_key_is_refused(auditor: Auditor) -> None:
    stranger = SigningKey(Ed25519PrivateKey.generate())
    hash_ = auditor.hash_at(4)
    assert hash_
    with pytest.raises(WrongKey, match=f"names the key {stranger.public.fingerprint[:16]}"):
        whole(auditor, [Checkpoint.signed(stranger, 4, hash_, NOW)])


def test_a_checkpoint_of_another_log_is_found(auditor: Auditor) -> None:
    assert broken(auditor, [Checkpoint.signed(KEY, 4, bytes(32), NOW)]).position == 4
    assert broken(auditor, [Checkpoint.signed(KEY, 14, bytes(32), NOW)]).position == 11


def test_the_trees_of_a_full_checkpoint_are_recomputed(auditor: Auditor) -> None:
    walk = Walk()
    for page in auditor.pages(0, 9):
        for row in page:
            walk.step(row)
    accounts, root = auditor.accounts_root(9)
    right = Trees(log_root=walk.tree.root().hex(), accounts=accounts, accounts_root=root.hex())
    assert accounts == 3  # acme, slugworth, and no account

    def full(**changes: object) -> Checkpoint:
        return Checkpoint.signed(KEY, 9, walk.hash, NOW, right.model_copy(update=changes))

    assert whole(auditor, [full()]) == [9]
    asked: list[int] = []

    def once(upto: int) -> tuple[int, bytes]:
        asked.append(upto)
        return accounts, root

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auditor, "accounts_root", once)
        assert whole(auditor, [full(), full()]) == [9, 9]
    assert asked == [9], "it sorts the whole log"
    assert "tree over the log" in broken(auditor, [full(log_root=64 * "0")]).reason
    assert "tree over the accounts" in broken(auditor, [full(accounts_root=64 * "0")]).reason
    assert "tree over the accounts" in broken(auditor, [full(accounts=2)]).reason
    assert broken(auditor, [full(accounts=2)]).position == 9


def test_checkpoints_in_a_file_are_read_in_order_and_an_incomplete_line_is_ignored(
    tmp_path: Path, signed: list[Checkpoint]
) -> None:
    file = tmp_path / "checkpoints.jsonl"
    append_to(file, signed[0])
    with file.open("ab") as half:
        half.write(signed[1].line()[:50])
    assert list(checkpoints_in(file)) == signed[:1]
    append_to(file, signed[1])
    assert list(checkpoints_in(file)) == signed

    append_to(file, signed[0])
    with pytest.raises(NoCheckpoint, match=r"Line 3 of .* is at position 4, after one at 9"):
        list(checkpoints_in(file))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"golden ticket\n", "Line 1 of .* is not a checkpoint"),
        (b'{"position": 0}\n', "position: input should be greater"),
    ],
)
def test_a_file_without_checkpoints_is_named(tmp_path: Path, text: bytes, sentence: str) -> None:
    (tmp_path / "file").write_bytes(text)
    with pytest.raises(NoCheckpoint, match=sentence):
        list(checkpoints_in(tmp_path / "file"))
    with pytest.raises(NoCheckpoint, match="cannot be read: No such file"):
        list(checkpoints_in(tmp_path / "absent"))


# --- memory --------------------------------------------------------------------------------------------------------


class MadeUp:
    """A log of any length, generated each time that it is read."""

    def __init__(self, length: int) -> None:
        self._end = End(length, None, length)
        for page in self.pages(0, length):
            self._end = End(length, page[-1][11], length)

    def doubled(self) -> None:
        return None

    def end(self) -> End:
        return self._end

    def pages(self, after: int, upto: int) -> Iterator[Sequence[Raw]]:
        previous = GENESIS
        for first in range(after + 1, upto + 1, 1000):
            page = []
            for position in range(first, first + 1000):
                row = self._row(position)
                previous = linked(previous, row)
                page.append((*row, previous, None))
            yield page

    def _row(self, position: int) -> tuple[bytes | None, ...]:
        return tuple(
            raw(
                position=position,
                stream=f"order-{position}",
                version=1,
                topic="order.OrderPlaced.v1",
                state=b"{}",
                recorded_at=position,
                account_id=None,
                event_id=UUID(int=position),
                correlation_id="request",
                causation_id=None,
                actor="system:story",
            )
        )

    def hash_at(self, position: int) -> bytes | None:
        raise NotImplementedError

    def shows_all(self) -> bool:
        return True

    def accounts_root(self, upto: int) -> tuple[int, bytes]:
        raise NotImplementedError


def test_a_walk_holds_a_page_whatever_the_length_of_the_log() -> None:
    def peak(length: int) -> int:
        log = MadeUp(length)
        gc.collect()
        tracemalloc.start()
        try:
            assert Verifier(log).verify().position == length
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2_000)  # warm up: some memory is allocated only once
    assert peak(20_000) < 1.2 * peak(4_000)


def test_texts_are_utf_8_and_times_utc_whatever_the_environment_says(
    owner_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    monkeypatch.setenv("PGTZ", "America/New_York")
    monkeypatch.setenv("PGDATESTYLE", "SQL, DMY")
    with postgres_log(as_program(owner_url), master_key=MASTER_KEY) as log:
        log._recorder.insert_events([StoredEvent("ticket-für-5-€", 0, "ticket.Found.v1", b"golden")])
        (row,) = log._recorder.rows(0, 10, None)
        assert (row.originator_id, row.recorded_at.utcoffset()) == ("ticket-für-5-€", timedelta())
        assert log.position_at(row.recorded_at) == 1
    with connect(as_program(owner_url)) as conn:
        found = conn.execute("SELECT recorded_at FROM log.events").fetchone()
        assert found
        assert (found["recorded_at"], found["recorded_at"].utcoffset()) == (row.recorded_at, timedelta())
    with auditing(as_program(owner_url)) as auditor:
        assert Verifier(auditor).verify().position == 1


def test_a_session_in_another_encoding_does_not_break_the_chain(owner_url: str) -> None:
    """No session of ours does this. Its text is misread, but the hash of its row is right."""
    with connect(as_program(owner_url), WRITER) as conn:
        conn.execute("SET client_encoding TO latin1")
        appended(conn, [Append([StoredEvent("ticket-f\u00fcr-5", 1, "ticket.Found.v1", b"golden")])])
        conn.execute("SET client_encoding TO utf8")
        assert conn.execute("SELECT stream FROM log.events").fetchone() == {"stream": "ticket-f\u00c3\u00bcr-5"}
    with auditing(as_program(owner_url)) as auditor:
        assert Verifier(auditor).verify().position == 1


def contents(conn: Connection[Any]) -> list[Any]:
    return conn.execute("SELECT * FROM log.events ORDER BY position").fetchall()


def test_an_auditor_changes_nothing(servers: ServerAddresses, template: str) -> None:
    with fresh_database(servers, template) as url, postgres_log(as_program(url), master_key=MASTER_KEY) as log:
        write(log)
        with psycopg.connect(url) as conn:
            before = contents(conn)
        with auditing(as_program(url)) as auditor:
            whole(auditor)
        with psycopg.connect(url) as conn:
            assert contents(conn) == before
