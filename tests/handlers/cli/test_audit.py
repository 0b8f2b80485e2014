"""``trunkline audit`` with an auditor's login, and the signing of checkpoints."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import nats
import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from eventsourcing.persistence import StoredEvent
from nats.js import JetStreamContext
from psycopg import sql
from psycopg.conninfo import make_conninfo

import handlers.runtime.worker
from domain.subscription import CapacityExpanded
from handlers.cli.explain import DECIDERS
from handlers.cli.views import VIEWS, shown
from handlers.runtime.checkpoint_signing import Busy, CannotSign, Signer, alone, sign
from handlers.runtime.secrets import checkpoint_file, signer_of
from handlers.runtime.worker import Duties, working
from infra.audit.auditor import Auditor
from infra.audit.checkpoints import Checkpoint, checkpoints_in
from infra.audit.ed25519 import SigningKey
from infra.audit.published_checkpoints import (
    CHECKPOINT_SUBJECT,
    CHECKPOINTS,
    provision_checkpoints,
    published_checkpoints,
)
from infra.event_log.log import Change, Log
from infra.event_log.postgres_recorder import postgres_log
from infra.event_log.recorder import as_notifications
from infra.recorded import Cause, Recorded
from infra.servers.embedded_nats import _program
from infra.settings import Limits, WrongSetting, settings
from tests.support.at_work import eventually
from tests.support.command_line import Run
from tests.support.databases import MASTER_KEY, ServerAddresses, as_program, fresh_database
from tests.support.examples import NOW, activated, opened, wonka_added, wonka_default
from tests.support.histories import tell
from tests.support.in_memory import InMemory

pytestmark = pytest.mark.long

T = TypeVar("T")
DORA = Cause("distributor:dora", "wish-1", "click-1")


@pytest.fixture(scope="module")
def history(servers: ServerAddresses, template: str) -> Iterator[tuple[str, list[Recorded]]]:
    """A database, with the application's login, that has a history of two accounts; and that history."""
    with fresh_database(servers, template) as url:
        with postgres_log(as_program(url), master_key=MASTER_KEY) as log:
            tell(log, seed=6, steps=150)
            recorded = list(log.history())
        yield as_program(url), recorded


@pytest.fixture(scope="module")
def auditor_url(servers: ServerAddresses, history: tuple[str, list[Recorded]]) -> Iterator[str]:
    """The same database with a login that is only an auditor."""
    name, password = f"auditor_{secrets.token_hex(6)}", secrets.token_hex(16)
    with psycopg.connect(servers.database_url, autocommit=True) as conn:
        make = sql.SQL("CREATE ROLE {} LOGIN NOINHERIT PASSWORD {} IN ROLE trunkline_auditor")
        conn.execute(make.format(sql.Identifier(name), sql.Literal(password)))
        yield make_conninfo(history[0], user=name, password=password)
        conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@pytest.fixture
def run_at(monkeypatch: pytest.MonkeyPatch, command_line: Run) -> Run:
    """Run a command line on a database. Returns exit status, stdout and stderr."""

    def run_one(database_url: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setenv("TRUNKLINE_DATABASE_URL", database_url)
        return command_line("audit", *arguments)

    return run_one


@pytest.fixture
def run(run_at: Run, auditor_url: str) -> Run:
    """Run a command line as the auditor."""
    return lambda *arguments: run_at(auditor_url, *arguments)


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer(SigningKey.kept_in(tmp_path / "key.pem"), tmp_path / "checkpoints.jsonl")


@pytest.fixture
def signing(signer: Signer, tmp_path: Path, nats_url: str, monkeypatch: pytest.MonkeyPatch) -> Signer:
    """The settings of the signer."""
    monkeypatch.setenv("TRUNKLINE_SIGNING_KEY", str(tmp_path / "key.pem"))
    monkeypatch.setenv("TRUNKLINE_CHECKPOINT_FILE", str(signer.file))
    monkeypatch.setenv("TRUNKLINE_NATS_URL", nats_url)
    return signer


def in_file(signer: Signer) -> list[Checkpoint]:
    assert signer.file
    return list(checkpoints_in(signer.file)) if signer.file.exists() else []


def on(nats_url: str, do: Callable[[JetStreamContext], Awaitable[T]]) -> T:
    async def ask() -> T:
        client = await nats.connect(nats_url)
        try:
            return await do(client.jetstream())
        finally:
            await client.close()

    return asyncio.run(ask())


def append(log: Log, *events: Any) -> None:  # noqa: ANN401 - events of an account
    version = len(log.load("account-acme"))
    log.append([Change("account-acme", version, events)], account_id="acme", cause=DORA, at=NOW)


def tamper(owner_url: str, *statements: str) -> None:
    with psycopg.connect(owner_url) as conn:
        conn.execute("ALTER TABLE log.events DISABLE TRIGGER only_added_to")
        for statement in statements:
            conn.execute(statement.encode())


# --- verify --------------------------------------------------------------------------------------------------------


def test_an_untouched_log_is_reported_intact_with_the_limits_of_the_proof(
    run: Run, history: tuple[str, list[Recorded]]
) -> None:
    status, output, errors = run("verify")

    assert (status, errors) == (0, "")
    assert output.startswith(f"The log is as it was recorded: {len(history[1]):,} events, to hash ")
    assert "No signed checkpoint was checked" in output
    assert output.count("\n") == 2


def test_a_verification_is_reported_as_json_too(run: Run, history: tuple[str, list[Recorded]]) -> None:
    status, output, _ = run("verify", "--json")

    found = json.loads(output)
    assert (status, found["ok"], found["to_position"], found["checkpoints"]) == (0, True, len(history[1]), 0)


def test_a_progress_bar_is_drawn_on_a_terminal_only(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    assert "verified" in run("verify")[1]
    monkeypatch.delenv("TTY_COMPATIBLE")
    assert "verified" not in run("verify")[1]


def test_a_log_that_was_tampered_with_exits_with_status_1(
    run_at: Run, postgres: Log, database_url: str, owner_url: str
) -> None:
    append(postgres, opened, wonka_added, wonka_default)
    tamper(owner_url, "UPDATE log.events SET actor = 'admin:ada' WHERE position = 2")

    status, output, errors = run_at(database_url, "verify")
    assert (status, output, errors.count("\n")) == (1, "", 1)
    assert errors.startswith("Position 2 is the first that is wrong: its row (account-acme version 2, ")

    status, output, _ = run_at(database_url, "verify", "--json")
    assert (status, json.loads(output)["ok"], json.loads(output)["position"]) == (1, False, 2)


def test_checkpoints_of_the_file_and_of_the_broker_are_checked(
    run_at: Run, postgres: Log, database_url: str, signing: Signer
) -> None:
    append(postgres, opened)
    assert run_at(database_url, "checkpoint")[0] == 0
    append(postgres, wonka_added)
    assert run_at(database_url, "checkpoint")[0] == 0
    append(postgres, wonka_default)

    status, output, errors = run_at(database_url, "verify", "--published")
    assert (status, errors) == (0, "")
    assert "2 signed checkpoints agree; the last is at position 2" in output
    assert "Only the chain vouches for what follows" in output

    assert signing.file
    signing.file.unlink()
    signing.file.touch()
    assert "2 signed checkpoints agree" in run_at(database_url, "verify", "--published")[1]


def test_a_rewritten_tail_is_found_by_published_checkpoints(
    run_at: Run, postgres: Log, database_url: str, owner_url: str, signing: Signer
) -> None:
    append(postgres, opened, wonka_added)
    run_at(database_url, "checkpoint")
    tamper(owner_url, "DELETE FROM log.events", f"UPDATE log.head SET position = 0, hash = '\\x{bytes(32).hex()}'")
    with postgres_log(database_url, master_key=MASTER_KEY) as afresh:
        append(afresh, opened, wonka_default)
    assert signing.file
    signing.file.write_bytes(b"")

    assert run_at(database_url, "verify")[0] == 0
    status, _, errors = run_at(database_url, "verify", "--published")
    assert status == 1
    assert "Position 2 is the first that is wrong: the signed checkpoint of" in errors
    assert "somewhere after position 0" in errors

    status, _, errors = run_at(database_url, "checkpoint")
    assert status == 1
    assert "Position 2 differs from what was signed on" in errors


# --- verify from a checkpoint --------------------------------------------------------------------------------------


def test_a_verification_continues_from_the_last_checkpoint_that_it_passed(
    run_at: Run, postgres: Log, database_url: str, owner_url: str, signing: Signer
) -> None:
    append(postgres, opened, wonka_added)
    run_at(database_url, "checkpoint")
    assert run_at(database_url, "verify")[0] == 0
    append(postgres, wonka_default)
    run_at(database_url, "checkpoint")

    status, output, errors = run_at(database_url, "verify", "--from-checkpoint")
    assert (status, errors) == (0, "")
    assert "1 events, positions 3 to 3" in output
    assert "1 signed checkpoint agrees; the last is at position 3" in output

    said = run_at(database_url, "verify", "--from-checkpoint")[1]
    assert said.startswith("The log is as it was recorded: no event since position 3, to hash ")
    found = json.loads(run_at(database_url, "verify", "--from-checkpoint", "--json")[1])
    assert (found["from_position"], found["to_position"], found["checkpoints"]) == (4, 3, 0)
    whole = json.loads(run_at(database_url, "verify", "--json")[1])
    assert (found["hash"], found["log_root"]) == (whole["hash"], whole["log_root"])


def test_the_state_that_a_verification_continues_from_is_checked_itself(
    run_at: Run, postgres: Log, database_url: str, owner_url: str, signing: Signer, tmp_path: Path
) -> None:
    append(postgres, opened, wonka_added, wonka_default)
    run_at(database_url, "checkpoint")
    state = tmp_path / "how-far"
    assert run_at(database_url, "verify", "--state", str(state))[0] == 0
    kept = json.loads(state.read_bytes())
    again = ("verify", "--from-checkpoint", "--state", str(state))

    state.write_text(json.dumps({**kept, "checkpoint": {**kept["checkpoint"], "position": 2}}))
    assert "does not match its signature" in run_at(database_url, *again)[2]
    state.write_text(json.dumps({**kept, "peaks": kept["peaks"][:1]}))
    assert "A tree of 3 entries has 2 peaks, not 1" in run_at(database_url, *again)[2]
    assert not run_at(database_url, *again)[2].rstrip("\n").endswith("..")
    state.write_text("golden ticket")
    assert "holds no verification to resume" in run_at(database_url, *again)[2]

    state.write_text(json.dumps(kept))
    tamper(owner_url, "UPDATE log.events SET hash = sha256('forged') WHERE position = 3")
    status, _, errors = run_at(database_url, *again)
    assert (status, "Position 3 is the first that is wrong" in errors) == (1, True)
    tamper(owner_url, "DELETE FROM log.events WHERE position >= 2")
    missing = json.loads(run_at(database_url, *again, "--json")[1])
    assert (missing["ok"], missing["position"]) == (False, 2)
    assert missing["reason"].startswith("its row is missing; the signed checkpoint of")


def test_an_interrupted_verification_continues_from_where_it_was(
    run_at: Run, postgres: Log, database_url: str, signing: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(postgres, opened, wonka_added)
    run_at(database_url, "checkpoint")
    append(postgres, wonka_default, wonka_added, wonka_default)
    monkeypatch.setattr("infra.audit.auditor.ROWS_PER_PAGE", 1)
    pages = Auditor.pages

    def until_somebody_has_enough(auditor: Auditor, after: int, upto: int) -> Iterator[Any]:
        for page in pages(auditor, after, upto):
            if page[0][0] == (4).to_bytes(8):
                raise KeyboardInterrupt
            yield page

    with monkeypatch.context() as impatient:
        impatient.setattr(Auditor, "pages", until_somebody_has_enough)
        status, output, errors = run_at(database_url, "verify")
    assert (status, output) == (130, "")
    assert errors.startswith("Interrupted at position 3;")
    assert "--from-checkpoint continues after position 2" in errors

    assert "3 events, positions 3 to 5" in run_at(database_url, "verify", "--from-checkpoint")[1]


def test_ctrl_c_ends_a_waiting_query(owner_url: str, database_url: str, postgres: Log) -> None:
    append(postgres, opened)
    # A test run in the background may ignore the signal, and child processes inherit that.
    heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{heeding}; from handlers.cli.app import main; main()", "audit", "verify"]
    env = os.environ | {"TRUNKLINE_DATABASE_URL": database_url}
    waits = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(owner_url) as owner, psycopg.connect(owner_url, autocommit=True) as onlooker:
        owner.execute("LOCK TABLE log.events")
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as asked:
            eventually(lambda: onlooker.execute(waits).fetchone(), "the waiting query")
            asked.send_signal(signal.SIGINT)
            output, errors = asked.communicate()
    assert (asked.returncode, output) == (130, "")
    assert errors.startswith("Interrupted at position 0; everything up to there is as it was recorded.")


# --- checkpoints ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_signed_published_and_added_to_the_file_once(
    run_at: Run, postgres: Log, database_url: str, signing: Signer, nats_url: str
) -> None:
    append(postgres, opened, wonka_added)
    status, output, _ = run_at(database_url, "checkpoint", "--json")
    assert run_at(database_url, "checkpoint")[0] == 0  # the log has not grown

    (kept,) = in_file(signing)
    assert (status, kept.position) == (0, 2)
    assert Checkpoint.model_validate_json(output) == kept
    assert on(nats_url, published_checkpoints) == [kept]
    kept.check([signing.key.public])


def test_published_checkpoints_cannot_be_deleted(
    postgres: Log, database_url: str, signing: Signer, nats_url: str
) -> None:
    append(postgres, opened)
    on(nats_url, lambda jetstream: _sign(signing, database_url, jetstream))
    with pytest.raises(nats.js.errors.APIError, match="message delete not permitted"):
        on(nats_url, lambda jetstream: jetstream.delete_msg(CHECKPOINTS, 1))
    with pytest.raises(nats.js.errors.APIError, match="purge not permitted"):
        on(nats_url, lambda jetstream: jetstream.purge_stream(CHECKPOINTS))


async def _sign(signer: Signer, database_url: str, jetstream: JetStreamContext) -> Checkpoint | None:
    await provision_checkpoints(jetstream, Limits())
    return await sign(signer, database_url, jetstream, datetime.now(UTC))


def test_a_broker_that_lost_its_checkpoints_gets_them_from_the_file(
    postgres: Log, database_url: str, signing: Signer, nats_url: str
) -> None:
    for event in (opened, wonka_added, wonka_default):
        append(postgres, event)
        on(nats_url, lambda jetstream: _sign(signing, database_url, jetstream))
    on(nats_url, lambda jetstream: jetstream.delete_stream(CHECKPOINTS))
    on(nats_url, lambda jetstream: _sign(signing, database_url, jetstream))

    assert [one.position for one in on(nats_url, published_checkpoints)] == [1, 2, 3]


def test_a_log_whose_head_does_not_agree_is_not_signed(
    postgres: Log, database_url: str, owner_url: str, signing: Signer, nats_url: str
) -> None:
    append(postgres, opened, wonka_added)
    tamper(owner_url, "DELETE FROM log.events WHERE position = 2")
    with pytest.raises(CannotSign, match=r"log\.head says that the log ends at 2"):
        on(nats_url, lambda jetstream: _sign(signing, database_url, jetstream))
    assert in_file(signing) == []


def test_a_forged_checkpoint_is_not_extended(postgres: Log, database_url: str, signing: Signer, nats_url: str) -> None:
    append(postgres, opened)
    on(nats_url, lambda jetstream: _sign(signing, database_url, jetstream))
    forged = in_file(signing)[0].model_copy(update={"hash": 64 * "0"})
    on(nats_url, lambda jetstream: jetstream.publish(CHECKPOINT_SUBJECT, forged.line()))
    append(postgres, wonka_added)
    with pytest.raises(CannotSign, match="The last checkpoint is forged"):
        on(nats_url, lambda jetstream: _sign(signing, database_url, jetstream))


def test_one_process_makes_checkpoints_at_a_time(
    postgres: Log, database_url: str, signing: Signer, nats_url: str
) -> None:
    append(postgres, opened)

    async def two(jetstream: JetStreamContext) -> None:
        async with alone(database_url):
            await _sign(signing, database_url, jetstream)

    with pytest.raises(Busy, match="Another process is making a checkpoint"):
        on(nats_url, two)


def test_the_worker_signs_periodically_and_at_shutdown_and_two_workers_sign_once(
    database_url: str, nats_url: str, signing: Signer, postgres: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers.runtime.worker, "CHECKPOINT_EVERY_S", 0.1)
    dependencies = InMemory(log=postgres).dependencies
    append(postgres, opened)
    with (
        working(dependencies, database_url, nats_url, Duties(signer=signing)),
        working(dependencies, database_url, nats_url, Duties(signer=signing)),
    ):
        eventually(lambda: [one.position for one in in_file(signing)] == [1], "the first checkpoint")
        append(postgres, wonka_added)
        eventually(lambda: [one.position for one in in_file(signing)] == [1, 2], "the second checkpoint")
        monkeypatch.setattr(handlers.runtime.worker, "CHECKPOINT_EVERY_S", 60)
        append(postgres, wonka_default)
    assert [one.position for one in in_file(signing)] == [1, 2, 3]
    assert on(nats_url, published_checkpoints) == in_file(signing)


def test_a_worker_that_finds_tampering_reports_it_and_keeps_working(
    owner_url: str,
    nats_url: str,
    signing: Signer,
    postgres: Log,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    database_url = as_program(owner_url)
    monkeypatch.setattr(handlers.runtime.worker, "CHECKPOINT_EVERY_S", 0.1)
    append(postgres, opened, wonka_added)
    with working(InMemory(log=postgres).dependencies, database_url, nats_url, Duties(signer=signing)) as worker:
        eventually(lambda: in_file(signing), "the first checkpoint")
        with caplog.at_level(logging.ERROR):
            tamper(owner_url, "UPDATE log.events SET hash = sha256('forged') WHERE position = 2")
            eventually(lambda: worker.unsigned, "the report of the tampering")
        assert worker.failing is None
        tamper(owner_url, f"UPDATE log.events SET hash = '\\x{in_file(signing)[0].hash}' WHERE position = 2")
        eventually(lambda: worker.unsigned is None, "the end of the report")
    assert "no checkpoint is signed" in caplog.text


def test_a_worker_without_a_key_reports_that_it_signs_nothing(database_url: str, nats_url: str, postgres: Log) -> None:
    with working(InMemory(log=postgres).dependencies, database_url, nats_url) as worker:
        assert worker.unsigned == "not signed, because TRUNKLINE_SIGNING_KEY is not set"


def test_embedded_data_have_their_own_key_and_file_and_others_need_settings(tmp_path: Path) -> None:
    signer = signer_of(settings(), tmp_path)
    assert signer
    assert signer.file == tmp_path / "checkpoints.jsonl"
    assert (tmp_path / "signing-key.pem").stat().st_mode & 0o777 == 0o600
    again = signer_of(settings(), tmp_path)
    assert again
    assert again.key.public.fingerprint == signer.key.public.fingerprint

    elsewhere = settings(database_url="postgresql://trunkline@db/trunkline")
    assert signer_of(elsewhere, tmp_path) is None
    assert checkpoint_file(elsewhere, tmp_path) is None
    (tmp_path / "rsa.pem").write_text("golden ticket")
    with pytest.raises(WrongSetting, match=r"TRUNKLINE_SIGNING_KEY is wrong: .* is not an Ed25519 private key"):
        signer_of(settings(signing_key=tmp_path / "rsa.pem"), None)
    with pytest.raises(WrongSetting, match=r"TRUNKLINE_SIGNING_KEY is wrong: .* cannot be read: No such file"):
        signer_of(settings(signing_key=tmp_path / "absent.pem"), None)


# --- events --------------------------------------------------------------------------------------------------------


def picked(run: Run, *filters: str) -> list[int]:
    status, output, errors = run("events", "--json", *filters)
    assert (status, errors) == (0, "")
    return [json.loads(line)["position"] for line in output.splitlines()]


def test_each_filter_selects_events_and_so_do_all_together(run: Run, history: tuple[str, list[Recorded]]) -> None:
    recorded = history[1]

    def expected(fits: Callable[[Recorded], bool]) -> list[int]:
        found = [one.position for one in recorded if fits(one)]
        assert 0 < len(found) < len(recorded)
        return found

    moment = recorded[len(recorded) // 2].recorded_at
    assert picked(run) == [one.position for one in recorded]
    assert picked(run, "--stream", "allocation-pkg-acme") == expected(lambda one: one.stream == "allocation-pkg-acme")
    assert picked(run, "--account", "acme") == expected(lambda one: one.account_id == "acme")
    for name in ("PbxCreated", "allocation.PbxCreated.v1"):
        assert picked(run, "--type", name) == expected(lambda one: type(one.event).__name__ == "PbxCreated")
    assert picked(run, "--from-time", moment.isoformat()) == expected(lambda one: one.recorded_at >= moment)
    assert picked(run, "--to-time", moment.isoformat()) == expected(lambda one: one.recorded_at <= moment)
    assert picked(run, "--from-position", "7") == expected(lambda one: one.position >= 7)
    assert picked(run, "--to-position", "7") == expected(lambda one: one.position <= 7)
    assert picked(run, "--limit", "3") == [1, 2, 3]
    assert picked(run, "--actor", "system:nobody") == []
    combined = ("--account", "acme", "--type", "PbxCreated", "--from-position", "20", "--actor", "system:story")
    assert (
        picked(run, *combined, "--limit", "2")
        == expected(
            lambda one: one.account_id == "acme" and type(one.event).__name__ == "PbxCreated" and one.position >= 20
        )[:2]
    )


def test_a_line_has_every_field_of_the_log(run: Run, history: tuple[str, list[Recorded]]) -> None:
    one = history[1][3]
    line = json.loads(run("events", "--json", "--from-position", "4", "--limit", "1")[1])

    assert line["state"] == json.loads(one.event.model_dump_json())
    assert (line["stream"], line["version"], line["topic"]) == (one.stream, one.version, one.event.TOPIC)
    assert (line["event_id"], line["actor"]) == (str(one.event_id), one.cause.actor)
    assert (line["correlation_id"], line["causation_id"]) == (one.cause.correlation_id, one.cause.causation_id)
    assert datetime.fromisoformat(line["recorded_at"]) == one.recorded_at
    assert len(line["hash"]) == 64


def test_events_are_printed_as_tables_too_and_in_pages_of_any_size(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = picked(run)
    monkeypatch.setattr("infra.audit.auditor.ROWS_PER_PAGE", 3)
    monkeypatch.setattr("handlers.cli.audit.LINES", 4)
    assert picked(run) == everything
    assert picked(run, "--limit", "7") == everything[:7]
    status, output, _ = run("events", "--limit", "10")
    assert (status, output.count("recorded at")) == (0, 3)
    assert "account.AccountOpened.v1" in output


def test_a_reader_that_closes_the_pipe_causes_no_error(auditor_url: str) -> None:
    trunkline = str(Path(sys.executable).with_name("trunkline"))
    env = os.environ | {"TRUNKLINE_DATABASE_URL": auditor_url}
    with subprocess.Popen(
        [trunkline, "audit", "events", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
    ) as asked:
        assert asked.stdout
        assert asked.stderr
        assert asked.stdout.readline().startswith(b"{")
        asked.stdout.close()
        assert asked.stderr.read() == b""
    assert asked.returncode == 0


# --- show ----------------------------------------------------------------------------------------------------------


def test_an_aggregate_is_shown_as_it_was_at_a_position_and_at_a_moment(
    run: Run, history: tuple[str, list[Recorded]]
) -> None:
    of_it = [one for one in history[1] if one.stream == "subscription-pkg-acme"]
    decider = DECIDERS["subscription"]
    state = decider.initial
    for one in of_it:
        state = decider.evolve(state, one.event)
        found = json.loads(run("show", one.stream, "--as-of", str(one.position), "--json")[1])
        assert (found["version"], found["position"]) == (one.version, one.position)
        assert found["state"]["totals"] == state.totals
    first = of_it[0].recorded_at.isoformat()
    assert json.loads(run("show", of_it[0].stream, "--as-of", first, "--json")[1])["version"] == 1


def test_every_kind_of_aggregate_can_be_shown(run: Run, history: tuple[str, list[Recorded]]) -> None:
    streams = {one.stream.partition("-")[0]: one.stream for one in history[1]}
    assert set(streams) == set(DECIDERS)
    for stream in streams.values():
        status, output, errors = run("show", stream)
        assert (status, errors) == (0, "")
        assert stream in output
        assert json.loads(run("show", stream, "--json")[1])["state"]


# --- explain -------------------------------------------------------------------------------------------------------


def test_an_explanation_ends_with_the_value_of_the_read_model(run: Run, history: tuple[str, list[Recorded]]) -> None:
    database_url, recorded = history
    with postgres_log(database_url, master_key=MASTER_KEY) as log:
        for position in (len(recorded), len(recorded) // 2):
            for account in ("acme", "slugworth"):
                for line in shown(VIEWS["entitlements"], account, log, database_url, str(position)):
                    if not (line["total"] or line["allocated"]):
                        continue
                    answer = run("explain", account, line["service"], "--as-of", str(position), "--json")[1]
                    steps = json.loads(answer)
                    for figure in ("package_id", "total", "allocated", "available", "over_allocated"):
                        assert steps[-1][figure] == line[figure]
                    assert sum(step["total_change"] for step in steps) == line["total"]
                    assert sum(step["allocated_change"] for step in steps) == line["allocated"]


def test_eighty_enterprise_extensions_are_explained_by_a_hundred_with_twenty_ultimate(
    run_at: Run, postgres: Log, database_url: str
) -> None:
    package = activated.model_copy(update={"quantities": {"extensions": 100}})
    ultimate = CapacityExpanded(package_id=package.package_id, order_id="order-1", service="ultimate_plan", quantity=20)
    (first,) = postgres.append(
        [Change("subscription-pkg-acme", 0, [package])], account_id="acme", cause=Cause("admin:ada", "wish-1"), at=NOW
    )
    cause = Cause("system:trunkline", "wish-1", str(first.event_id))
    postgres.append([Change("subscription-pkg-acme", 1, [ultimate])], account_id="acme", cause=cause, at=NOW)

    steps = json.loads(run_at(database_url, "explain", "acme", "enterprise_plan", "--json")[1])
    assert [(step["position"], step["total_change"], step["total"]) for step in steps] == [(1, 100, 100), (2, -20, 80)]
    assert [(step["actor"], step["cause"]) for step in steps] == [
        ("admin:ada", None),
        ("system:trunkline", "PackageActivated at 1"),
    ]
    output = run_at(database_url, "explain", "acme", "enterprise_plan", "--package", package.package_id)[1]
    assert f"enterprise_plan of {package.package_id}: 80, of which 0 are allocated" in output
    assert "-20" in output


# --- export --------------------------------------------------------------------------------------------------------


def test_an_export_proves_itself_without_database_or_network(
    run_at: Run, history: tuple[str, list[Recorded]], signing: Signer, nats_url: str, tmp_path: Path
) -> None:
    key, file = tmp_path / "public.pem", tmp_path / "acme.json"
    assert run_at(history[0], "public-key", str(key)) == (0, "", "")
    status, output, errors = run_at(history[0], "export", "acme", str(file))
    assert (status, errors) == (0, "")
    count = len([one for one in history[1] if one.account_id == "acme"])
    assert f"{count:,} events of " in output

    alone = subprocess.run(
        [str(Path(sys.executable).with_name("trunkline")), "audit", "verify-export", file, "--key", key],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": ""},
        cwd=tmp_path,
    )
    assert f"{count:,} events of acme are in the log as of position {len(history[1]):,}" in alone.stdout
    assert "none with an event left out" in alone.stdout
    assert "invoice_series-YT-2026 is shared with others" in alone.stdout
    found = json.loads(run_at(history[0], "verify-export", str(file), "--key", str(key), "--json")[1])
    assert (found["ok"], found["events"]) == (True, count)

    (full,) = in_file(signing)
    assert full.trees
    assert on(nats_url, published_checkpoints) == [full]
    assert "1 signed checkpoint agrees" in run_at(history[0], "verify")[1]
    text = file.read_text()
    file.write_text(text.replace("{", '{"events": [], ', 1))
    twice = run_at(history[0], "verify-export", str(file), "--key", str(key))
    assert twice == (1, "", f"{file} repeats the field events in one object; readers differ in which they use.\n")
    file.write_text(text.replace("acme", "acne"))
    assert run_at(history[0], "verify-export", str(file), "--key", str(key))[0] == 1
    status, output, _ = run_at(history[0], "verify-export", str(file), "--key", str(key), "--json")
    assert (status, json.loads(output)["ok"]) == (1, False)


def test_a_special_file_is_written_into_and_not_replaced(run: Run, signing: Signer, tmp_path: Path) -> None:
    real, link, pipe = tmp_path / "real.pem", tmp_path / "link.pem", tmp_path / "pipe"
    link.symlink_to(real)
    os.mkfifo(pipe)
    assert run("public-key", str(link))[0] == 0
    assert link.is_symlink()
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    assert run("public-key", str(pipe))[0] == 0
    with reader:
        assert reader.stdout
        assert reader.stdout.read() == real.read_bytes()
    assert pipe.is_fifo()


def test_a_broken_log_is_neither_exported_nor_signed(
    run_at: Run, postgres: Log, database_url: str, owner_url: str, signing: Signer, tmp_path: Path
) -> None:
    append(postgres, opened, wonka_added)
    tamper(owner_url, "UPDATE log.events SET actor = 'admin:ada' WHERE position = 1")
    status, _, errors = run_at(database_url, "export", "acme", str(tmp_path / "acme.json"))
    assert (status, "Position 1 is the first that is wrong" in errors) == (1, True)
    assert not (tmp_path / "acme.json").exists()
    assert in_file(signing) == []


def test_a_log_with_a_row_without_a_position_is_not_exported(
    run_at: Run, postgres: Log, database_url: str, owner_url: str, signing: Signer, tmp_path: Path
) -> None:
    append(postgres, opened, wonka_added)
    tamper(
        owner_url,
        "ALTER TABLE log.events DROP CONSTRAINT events_pkey, ALTER position DROP NOT NULL",
        "CREATE TEMPORARY TABLE forged AS SELECT * FROM log.events WHERE position = 2",
        "UPDATE forged SET position = NULL, version = 3",
        "INSERT INTO log.events SELECT * FROM forged",
    )
    status, _, errors = run_at(database_url, "export", "acme", str(tmp_path / "acme.json"))
    assert (status, "the log has a row without a position" in errors) == (1, True)
    assert in_file(signing) == []


# --- refusals ------------------------------------------------------------------------------------------------------

REFUSED = [
    (("show", "order-order-4711"), "There is no stream order-order-4711 in the log."),
    (("show", "ticket-1"), "There is no stream ticket-1; a stream is one of account,"),
    (("show", "subscription-pkg-slugworth", "--as-of", "1"), "had no event yet at position 1."),
    (("show", "account-acme", "--as-of", "99999999"), "99999999 lies ahead."),
    (("show", "account-acme", "--as-of", "0"), "had no event yet"),
    (("show", "account-acme", "--as-of", "yesterday"), "yesterday is neither a position nor a time"),
    (("show", "account-acme", "--as-of", "2026-09-01T12:00:00"), "is neither a position nor a time"),
    (("show", "account-acme", "--as-of", "1999-09-01T12:00:00Z"), "had no event yet"),
    (("events", "--stream", "order-order-4711"), "The log has no event of stream order-order-4711"),
    (("events", "--account", "wonka"), "The log has no event of account wonka"),
    (("events", "--type", "PaymentForgotten"), "There is no event PaymentForgotten"),
    (("events", "--limit", 5000 * "9"), "is not a limit; write a whole number from 1."),
    (("events", "--actor", "\udcff"), "'\\udcff' is not UTF-8 text."),
    (("show", "order-\udcff"), "'order-\\udcff' is not UTF-8 text."),
    (("events", "--from-time", "tomorrow"), "tomorrow is not a time"),
    (("events", "--to-time", "2026-09-01T12:00:00"), "2026-09-01T12:00:00 is not a time"),
    (("events", "--from-position", "99999999"), "99999999 lies ahead"),
    (("events", "--to-position", "many"), "many is not a position"),
    (("events", "--from-position", "²"), "² is not a position"),
    (("events", "--limit", "0"), "0 is not a limit"),
    (("events", "--limit", "99999999999999999999999"), "is not a limit"),
    (("explain", "wonka", "extensions"), "There is no event of an account wonka"),
    (("explain", "acme", "tickets"), "The account acme had no tickets at position"),
    (("explain", "acme", "extensions", "--package", "pkg-slugworth"), "had no package pkg-slugworth"),
    (
        ("explain", "acme", "extensions", "--as-of", "1"),
        "The account acme had no extensions at position 1; it had nothing",
    ),
    (("verify", "--from-checkpoint"), "There is no checkpoint to continue from"),
    (
        ("verify", "--checkpoints", "/nowhere/at/all", "--key", "KEY"),
        "The checkpoints in /nowhere/at/all cannot be read",
    ),
    (("verify", "--checkpoints", "GARBAGE", "--key", "KEY"), "is not a checkpoint"),
    (("verify", "--checkpoints", "GARBAGE"), "Give --key PUBLIC.pem"),
    (("verify", "--key", "GARBAGE"), "is not a public Ed25519 key in PEM"),
    (("verify", "--key", "/nowhere/at/all"), "The public key /nowhere/at/all cannot be read"),
    (
        ("verify", "--from-checkpoint", "--state", "/nowhere/at/all", "--key", "KEY"),
        "There is no verification to resume",
    ),
    (("verify", "--published", "--key", "KEY"), "TRUNKLINE_NATS_URL is missing"),
    (("verify-export", "/nowhere/at/all", "--key", "KEY"), "/nowhere/at/all cannot be read"),
    (("verify-export", "GARBAGE", "--key", "KEY"), "is not an account export"),
    (("verify-export", "GARBAGE"), "Give --key PUBLIC.pem"),
    (("verify", "--checkpoints", ".", "--key", "KEY"), "The checkpoints in . cannot be read: Is a directory"),
    (("verify-export", ".", "--key", "KEY"), ". cannot be read: Is a directory"),
    (("checkpoint",), "TRUNKLINE_SIGNING_KEY is missing"),
    (("export", "acme", "acme.json"), "TRUNKLINE_SIGNING_KEY is missing"),
    (("public-key",), "TRUNKLINE_SIGNING_KEY is missing"),
    (("public-key", "--data", "/nowhere/at/all"), "TRUNKLINE_SIGNING_KEY is missing"),
]


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED, ids=lambda value: str(value)[:60])
def test_a_refusal_is_one_sentence(run: Run, tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    (tmp_path / "KEY").write_bytes(SigningKey(Ed25519PrivateKey.generate()).public.pem())
    (tmp_path / "GARBAGE").write_text("golden ticket\n")
    given = [str(tmp_path / one) if one in ("KEY", "GARBAGE") else one for one in arguments]

    status, output, errors = run(*given)

    assert (status, output) == (1, "")
    assert sentence in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("export", "wonka", "FILE"), "The log has no event of account wonka."),
        (("export", "acme", "/nowhere/at/all"), "/nowhere/at/all cannot be written: No such file or directory."),
        (("export", "acme", "."), ". cannot be written: "),
        (("public-key", "/nowhere/at/all"), "/nowhere/at/all cannot be written"),
    ],
)
def test_a_failure_to_sign_or_write_is_one_sentence(
    run_at: Run, history: tuple[str, list[Recorded]], signing: Signer, arguments: tuple[str, ...], sentence: str
) -> None:
    status, output, errors = run_at(history[0], *arguments)
    assert (status, output) == (1, "")
    assert sentence in errors
    assert errors.count("\n") == 1


def test_a_broker_that_keeps_no_streams_is_named(
    run_at: Run, history: tuple[str, list[Recorded]], signing: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with subprocess.Popen([_program(), "-a", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL) as plain:
        monkeypatch.setenv("TRUNKLINE_NATS_URL", f"nats://127.0.0.1:{port}")
        eventually(lambda: _listens(port), "NATS")
        for arguments in (("checkpoint",), ("verify", "--published", "--checkpoints", os.devnull)):
            status, _, errors = run_at(history[0], *arguments)
            assert (status, errors.count("\n")) == (1, 1)
            assert f"TRUNKLINE_NATS_URL (nats://127.0.0.1:{port}) is unavailable" in errors
        plain.terminate()


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_an_empty_log_has_nothing_to_sign(run_at: Run, database_url: str, signing: Signer) -> None:
    assert run_at(database_url, "checkpoint")[2] == "The log is empty; there is nothing to sign.\n"
    assert run_at(database_url, "verify", "--checkpoints", os.devnull)[1] == "The log is empty.\n"


def test_a_login_without_the_auditor_role_is_refused(
    run_at: Run, servers: ServerAddresses, history: tuple[str, Any]
) -> None:
    nobody = f"nobody_{secrets.token_hex(6)}"
    with psycopg.connect(servers.database_url, autocommit=True) as conn:
        conn.execute(f"CREATE ROLE {nobody} LOGIN PASSWORD 'x'".encode())
        status, _, errors = run_at(make_conninfo(history[0], user=nobody, password="x"), "verify")  # noqa: S106
        conn.execute(f"DROP ROLE {nobody}".encode())
    assert status == 1
    assert 'permission denied to set role "trunkline_auditor"' in errors
    assert errors.count("\n") == 1


def test_an_unreadable_event_is_named_and_the_others_are_still_listed(
    run_at: Run, postgres: Log, database_url: str
) -> None:
    append(postgres, opened)
    postgres._recorder.insert_events([StoredEvent("account-acme", 2, "account.TicketFound.v1", b"\xff")])
    status, _, errors = run_at(database_url, "show", "account-acme")
    assert (status, errors.count("\n")) == (1, 1)
    assert "account-acme version 2, at position 2, cannot be read" in errors
    assert run_at(database_url, "events", "--json")[1].count("\n") == 2
    assert run_at(database_url, "events", "--type", "account.TicketFound.v1")[0] == 0


def test_an_event_is_listed_by_its_name_under_any_stored_topic(run_at: Run, postgres: Log, database_url: str) -> None:
    append(postgres, opened)
    topics = ["invoice_link.LinkRevoked.v1", "invoice_link.LinkRevoked.v2"]
    for topic in topics:
        postgres._recorder.insert_events([StoredEvent(f"invoice_link-{topic}", 1, topic, b"{}")])
    listed = run_at(database_url, "events", "--type", "LinkRevoked", "--json")[1].splitlines()
    assert [json.loads(line)["topic"] for line in listed] == topics


def test_an_event_of_a_later_version_is_reported_as_unreadable(run_at: Run, postgres: Log, database_url: str) -> None:
    append(postgres, opened)
    postgres.append([Change("subscription-pkg-acme", 0, [activated])], account_id="acme", cause=DORA, at=NOW)
    row = postgres.encoded(Recorded("subscription-pkg-acme", 2, activated, "acme", DORA, NOW))
    odd = row._replace(originator_id="ticket-1", originator_version=1, topic="nodot")
    postgres._recorder.insert_events(as_notifications([odd]))
    assert run_at(database_url, "explain", "acme", "extensions")[0] == 0
    later = row._replace(topic="subscription.CapacityExpanded.v9")
    postgres._recorder.insert_events(as_notifications([later]))
    status, output, errors = run_at(database_url, "explain", "acme", "extensions")
    assert (status, output, errors.count("\n")) == (1, "", 1)
    assert "subscription-pkg-acme version 2, at position 4, cannot be read" in errors


def test_a_table_truncates_no_name_that_can_be_queried(run: Run, history: tuple[str, list[Recorded]]) -> None:
    order = next(one for one in history[1] if one.stream.startswith("invoice_series-"))
    cells = "".join(run("events", "--stream", order.stream, "--limit", "1")[1].replace("\u2502", "|").split())
    assert "\u2026" not in cells
    assert run("events", "--actor", "admin:nobody")[:2] == (0, "No matching events.\n")


@pytest.mark.parametrize("asked", [("verify",), ("verify", "--json"), ("events",), ("explain", "acme", "extensions")])
def test_a_closed_pipe_does_not_change_the_result_of_a_command(
    auditor_url: str, owner_url: str, asked: tuple[str, ...]
) -> None:
    gone, ours = os.pipe()
    os.close(gone)
    done = subprocess.run(
        [str(Path(sys.executable).with_name("trunkline")), "audit", *asked],
        stdout=ours,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env=os.environ | {"TRUNKLINE_DATABASE_URL": auditor_url},
    )
    os.close(ours)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_an_endless_list_ends_once_the_pipe_is_closed(auditor_url: str, form: tuple[str, ...]) -> None:
    endless = """
import sys
from itertools import cycle
from infra.audit.auditor import Auditor
events = Auditor.events
Auditor.events = lambda auditor, wanted, limit=None: cycle(list(events(auditor, wanted, 3)))
from handlers.cli.app import main
main()
"""
    gone, ours = os.pipe()
    os.close(gone)
    done = subprocess.run(
        [sys.executable, "-c", endless, "audit", "events", *form],
        stdout=ours,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env=os.environ | {"TRUNKLINE_DATABASE_URL": auditor_url},
        timeout=30,
    )
    os.close(ours)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_query_grants_its_login_no_rights(
    run: Run, history: tuple[str, list[Recorded]], servers: ServerAddresses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUNKLINE_OWNER_URL", make_conninfo(servers.database_url))
    assert run("events", "--limit", "1")[0] == 0
    with psycopg.connect(os.environ["TRUNKLINE_DATABASE_URL"]) as auditor:
        roles = auditor.execute(
            "SELECT array_agg(rolname::text) FROM pg_roles WHERE pg_has_role(session_user, oid, 'MEMBER') "
            "AND rolname <> session_user"
        ).fetchone()
    assert roles == (["trunkline_auditor"],)


def test_ctrl_c_during_startup_shows_no_traceback() -> None:
    impatient = """
import sys, handlers.cli.start
class Impatient:
    def find_spec(self, name, path=None, target=None):
        if name == "handlers.cli.app":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Impatient())
handlers.cli.start.start()
"""
    done = subprocess.run([sys.executable, "-c", impatient], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")
