"""Command line errors: one sentence, and nothing is written."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path

import pytest

from infra.clock import ShiftedClock
from infra.postgres.connections import connect
from infra.servers.uvicorn_thread import listening
from tests.support.command_line import Run
from tests.support.databases import MASTER_KEY
from tests.support.showing import Showing


@pytest.fixture
def run(showing: Showing, monkeypatch: pytest.MonkeyPatch, command_line: Run) -> Run:
    """Run a command line on the database that the demo left, two days after its end.

    Returns exit status, stdout and stderr.
    """
    for module in ("app", "session"):
        monkeypatch.setattr(
            f"handlers.cli.{module}.SystemClock", lambda: ShiftedClock(datetime(2026, 9, 4, tzinfo=UTC))
        )
    monkeypatch.setenv("TRUNKLINE_DATABASE_URL", showing.database_url)
    monkeypatch.setenv("TRUNKLINE_LINK_SECRET", "s" * 32)
    monkeypatch.setenv("TRUNKLINE_MASTER_KEY", b64encode(MASTER_KEY).decode())
    return command_line


def head(showing: Showing) -> int:
    with connect(showing.database_url) as conn:
        row = conn.execute("SELECT count(*) AS events FROM log.events").fetchone()
        assert row
        return int(row["events"])


def test_a_query_does_not_load_the_modules_of_long_running_commands() -> None:
    """They are a third of the program."""
    late = {"fastapi", "uvicorn", "faststream", "handlers.runtime.worker"}
    loaded = f"import sys, handlers.cli.app; print({late} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


TRUE = '{"service": "extensions", "quantity": true}'
REFUSED = [
    (("quote", "acme", "pkg-acme", "extension=5"), "There is no service 'extension'; the services are extensions,"),
    (("quote", "acme", "pkg-acme", "extensions=0"), "0 is not a valid quantity of extensions; use 1 to 1,000,000."),
    (("quote", "acme", "pkg-acme", "extensions=-4"), "-4 is not a valid quantity of extensions"),
    (("quote", "acme", "pkg-acme", "extensions=1000001"), "1000001 is not a valid quantity of extensions"),
    (("quote", "acme", "pkg-acme", "extensions=many"), "extensions=many is not a selection"),
    (("quote", "acme", "pkg-acme", "extensions=--5"), "extensions=--5 is not a selection; write a service and a whole"),
    (
        ("quote", "acme", "pkg-acme", f"extensions={5000 * '9'}"),
        "9 is not a selection; write a service and a whole number",
    ),
    (("quote", "acme", "pkg-acme", "high_availability=99999999999"), "99999999999 is not a valid quantity"),
    (("quote", "acme", "pkg-acme", "pce_white_label=2"), "pce_white_label has no quantity; select it once, not 2"),
    (("quote", "acme", "pkg-acme", "ultimate_plan=500"), "are more than the package's 135"),
    (("quote", "acme", "pkg-acme", "custom_domain=1"), "custom_domain is already active"),
    (("quote", "acme", "pkg-acme", "extensions=1", "extensions=2"), "extensions is selected twice"),
    (("quote", "wonka", "pkg-acme", "extensions=1"), "There is no account wonka"),
    (("quote", "acme", "pkg-wonka", "extensions=1"), "There is no package pkg-wonka in account acme"),
    (("order", "acme", "pkg-acme", "extensions=0"), "0 is not a valid quantity"),
    (("order", "acme", "pkg acme", "extensions=1"), "OrderExpansion cannot be read: package_id: string should match"),
    (("order", "acme", "pkg-acme", "extensions=1", "--as", "nobody"), "'nobody' is not a valid actor; use ROLE:NAME"),
    (
        ("order", "acme", "pkg-acme", "extensions=1", "--as", f"partner:{101 * 'a'}"),
        "is not a valid actor; use ROLE:NAME",
    ),
    (("order", "acme", "pkg-acme", "extensions=1", "--as", "partner:al\nice"), "is not a valid actor; use ROLE:NAME"),
    (("send", "Upgrade", "{}"), "There is no command Upgrade; the commands are"),
    (("send", "UpgradePbx", "{"), "The command is not valid JSON"),
    (("send", "UpgradePbx", "\udcff\udcfe"), "The command is not valid JSON"),  # how bytes that are not UTF-8 arrive
    (("send", "UpgradePbx", "[]"), "A command is a JSON object"),
    (("send", "UpgradePbx", '{"at": "2026-01-01T00:00:00Z"}'), "leave out the field at"),
    (("send", "UpgradePbx", '{"pbx": "lab"}'), "UpgradePbx cannot be read: account_id: field required"),
    (
        (
            "send",
            "OrderExpansion",
            f'{{"order_id": "o", "account_id": "a", "package_id": "p", "selections": [{TRUE}]}}',
        ),
        "selections.0.quantity: input should be a valid integer",
    ),
    (
        ("send", "CheckOut", '{"order_id": "order-4", "account_id": "acme", "method": "cash"}'),
        "method: input should be",
    ),
    (("send", "CancelOrder", '{"order_id": "order-1", "account_id": "acme"}'), "The order is fulfilled"),
    (("send", "CancelOrder", '{"order_id": "order-1", "account_id": "wonka"}'), "There is no order order-1"),
    (("show", "secrets", "acme"), "There is no view secrets; the views are entitlements,"),
    (("show", "orders", "acme", "--as-of", "99999999"), "lies ahead"),
    (("show", "orders", "acme", "--as-of", 5000 * "9"), "is neither a position nor a time"),
    (("show", "orders", "acme", "--as-of", "yesterday"), "is neither a position nor a time"),
    (("invoice", "YT-1999-000001", "x.pdf"), "There is no invoice YT-1999-000001"),
    (("privacy", "erase", "alice"), "alice is not a person; write ACCOUNT/RECEIVER, as in acme/wonka."),
    (("privacy", "erase", "acme/alice/bob"), "acme/alice/bob is not a person"),
    (("privacy", "erase", "acme/nobody"), "There is no billing receiver nobody; the account has: alice, bob."),
    (("privacy", "erase", "wonka/alice"), "There is no account wonka"),
    (("privacy", "erase", "acme/alice", "--as", "partner:alice"), "may not ask for EraseBillingReceiver"),
]


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED, ids=lambda value: str(value)[:60])
def test_a_refusal_is_one_sentence_and_nothing_is_written(
    run: Run, showing: Showing, arguments: tuple[str, ...], sentence: str
) -> None:
    before = head(showing)

    status, output, errors = run(*arguments)

    assert status == 1
    assert output == ""
    assert sentence in errors
    assert errors.count("\n") == 1
    assert "Traceback" not in errors
    assert head(showing) == before


def test_a_second_partner_has_no_prices_in_its_currency_and_no_access_to_the_first_ones_package(
    run: Run, showing: Showing
) -> None:
    """ACME bought in euros, for pkg-acme, with PI-2026-0815; Slugworth pays in francs."""
    slugworth = {
        "account_id": "slugworth",
        "name": "Slugworth",
        "seller": "YT",
        "currency": "CHF",
        "country": "DE",
        "manager_email": "dora@distributor.example",
        "receiver_id": "fickel",
        "contact": {
            "name": "Fickelgruber",
            "email": "fickel@slugworth.example",
            "company": "Slugworth AG",
            "address": ["1 Nougat Lane"],
            "country": "DE",
        },
    }
    package = {
        "account_id": "slugworth",
        "package_id": "pkg-slug",
        "term": {"starts_on": "2026-03-02", "ends_on": "2027-03-02"},
        "quantities": {"extensions": 10},
    }
    assert run("send", "OpenAccount", json.dumps(slugworth))[0] == 0
    assert run("send", "ActivatePackage", json.dumps(package))[0] == 0
    order_id = run("order", "acme", "pkg-acme", "extensions=3")[1].splitlines()[-1]
    again = {"order_id": order_id, "account_id": "acme", "method": "offline", "pi_number": "PI-2026-0815"}
    before = head(showing)

    for arguments, sentence in [
        (("order", "slugworth", "pkg-slug", "extensions=1"), "There is no price list in CHF on 2026-09-04;"),
        (("order", "slugworth", "pkg-acme", "extensions=1"), "There is no package pkg-acme in account slugworth;"),
        (("send", "CheckOut", json.dumps(again)), "The PI number PI-2026-0815 was already used for another order;"),
    ]:
        status, output, errors = run(*arguments)
        assert (status, output, errors.count("\n")) == (1, "", 1)
        assert errors.startswith(sentence)
    assert head(showing) == before


@pytest.mark.parametrize("command", ["demo --keep {}", "up --data {}", "invoice YT-2026-000001 {}/invoice.pdf"])
def test_an_unusable_path_is_named(run: Run, tmp_path: Path, command: str) -> None:
    place = tmp_path / "letter.txt"
    place.touch()

    status, output, errors = run(*command.format(place).split())

    assert (status, output, errors.count("\n")) == (1, "", 1)
    assert f" {place}" in errors
    assert "cannot be used" in errors
    assert list(tmp_path.iterdir()) == [place]


def test_an_operating_system_error_is_one_sentence_too(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A directory is in the place of the file with the servers' addresses."""
    monkeypatch.delenv("TRUNKLINE_DATABASE_URL")
    (tmp_path / "postgres").mkdir()
    (tmp_path / "running.json").mkdir()

    status, output, errors = run("show", "orders", "acme", "--data", str(tmp_path))

    assert (status, output, errors.count("\n")) == (1, "", 1)
    assert "running.json" in errors


def test_a_port_that_is_taken_names_its_setting(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with listening() as taken:
        taken.listen()
        monkeypatch.setenv("TRUNKLINE_HTTP_PORT", str(taken.getsockname()[1]))

        status, _, errors = run("up", "--data", str(tmp_path))

    assert (status, errors.count("\n")) == (1, 1)
    assert "address already in use; set TRUNKLINE_HTTP_PORT to another port" in errors


def test_a_user_without_a_system_name_is_asked_for_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", nameless)

    assert "use --as ROLE:NAME" in run("order", "acme", "pkg-acme", "extensions=1")[2]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("TRUNKLINE_DATABASE_URL", "postgresql://trunkline:hidden-word@127.0.0.1:1/trunkline"),
        ("TRUNKLINE_DATABASE_URL", "hidden-word"),
        ("TRUNKLINE_SMTP_PORT", "hidden-word"),
        ("TRUNKLINE_LINK_SECRET", "hidden-word"),
        ("TRUNKLINE_MASTER_KEY", "hidden-word"),
    ],
)
def test_a_wrong_setting_is_named_and_never_repeated(
    run: Run, monkeypatch: pytest.MonkeyPatch, setting: str, value: str
) -> None:
    monkeypatch.setenv(setting, value)

    status, _, errors = run("order", "acme", "pkg-acme", "extensions=1")

    assert status == 1
    assert setting in errors
    assert "hidden-word" not in errors
    assert errors.count("\n") == 1


def test_a_missing_link_secret_is_asked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRUNKLINE_LINK_SECRET")

    assert run("order", "acme", "pkg-acme", "extensions=1")[2].startswith("TRUNKLINE_LINK_SECRET is missing")


def test_a_missing_or_wrong_master_key_is_named_and_nobody_looks_erased(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUNKLINE_MASTER_KEY", b64encode(MASTER_KEY[::-1]).decode())
    another = run("order", "acme", "pkg-acme", "extensions=1")
    monkeypatch.delenv("TRUNKLINE_MASTER_KEY")
    missing = run("order", "acme", "pkg-acme", "extensions=1")

    for status, output, errors in (another, missing):
        assert (status, output) == (1, "")
        assert errors.count("\n") == 1
    assert another[2].startswith("TRUNKLINE_MASTER_KEY is not the one that the key of acme/")
    assert missing[2].startswith("TRUNKLINE_MASTER_KEY is missing")


@pytest.mark.parametrize(
    ("named", "server", "command"),
    [
        ("TRUNKLINE_DATABASE_URL", "postgres", ("show", "orders", "acme")),
        ("TRUNKLINE_DATABASE_URL", "postgres", ("privacy", "erase", "acme/wonka")),
        ("TRUNKLINE_DATABASE_URL", "postgres", ("privacy", "rewrap")),
        ("TRUNKLINE_DATABASE_URL", "postgres", ("audit", "verify")),
        ("TRUNKLINE_NATS_URL", "nats", ("dead-letters", "list")),
    ],
)
def test_a_database_setting_and_a_data_directory_are_not_mixed_up(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: str, server: str, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv(named, "postgresql://nobody@127.0.0.1:1/nothing")
    (tmp_path / server).mkdir()
    assert run(*command, "--data", "/nowhere/at/all") == (1, "", "There is no directory /nowhere/at/all.\n")
    status, _, errors = run(*command, "--data", str(tmp_path))
    assert (status, errors) == (
        1,
        f"{named} is set, but {tmp_path} has data of its own; unset {named}, or leave out --data.\n",
    )


def test_without_a_database_the_command_line_asks_for_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRUNKLINE_DATABASE_URL")

    assert "No database is given; set TRUNKLINE_DATABASE_URL" in run("show", "orders", "acme")[2]
    assert "There is no data of Trunkline in" in run("show", "orders", "acme", "--data", "/nowhere/at/all")[2]


def test_an_order_is_priced_shown_and_recorded_once(run: Run, showing: Showing) -> None:
    before = head(showing)

    status, output, _ = run("order", "acme", "pkg-acme", "extensions=2", "--as", "partner:alice")

    assert status == 0
    assert "Order summary" in output
    order_id = output.splitlines()[-1]
    orders = json.loads(run("show", "orders", "acme", "--json")[1])
    assert [order["state"] for order in orders if order["order_id"] == order_id] == ["requested"]
    assert head(showing) == before + 2  # ExpansionRequested, BillingContactChosen


def test_an_order_as_json_is_one_document(run: Run) -> None:
    document = json.loads(run("order", "acme", "pkg-acme", "extensions=2", "--json")[1])

    assert document["order_id"].startswith("order-")
    assert [line["quantity"] for line in document["quote"]["lines"]] == [2]


def test_a_command_is_sent_as_json_and_its_events_are_named(run: Run) -> None:
    removal = '{"account_id": "acme", "package_id": "pkg-acme", "pbx_id": "sales"}'

    status, output, errors = run("send", "RemovePbx", removal, "--as", "partner:alice")

    assert (status, errors) == (0, "")
    assert "allocation.PbxRemoved.v1 allocation-pkg-acme" in output


def test_a_read_model_is_shown_as_it_was(run: Run) -> None:
    """Position 6 is the package's activation with 100 extensions and nothing else."""
    then = json.loads(run("show", "entitlements", "acme", "--as-of", "6", "--json")[1])
    by_moment = json.loads(run("show", "entitlements", "acme", "--as-of", "2026-03-01T00:00:00Z", "--json")[1])

    assert [(line["service"], line["total"]) for line in then] == [("extensions", 100), ("enterprise_plan", 100)]
    assert by_moment == []


@pytest.mark.parametrize(
    "name",
    ["entitlements", "allocations", "orders", "billing", "payments", "receivables", "links", "attempts", "timeline"],
)
def test_each_view_is_a_table_for_people(run: Run, name: str) -> None:
    status, output, errors = run("show", name, "acme")

    assert (status, errors) == (0, "")
    assert output.count("\n") > 4


def test_brackets_and_colons_in_names_are_shown_unchanged(run: Run) -> None:
    creation = {
        "account_id": "acme",
        "package_id": "pkg-acme",
        "pbx_id": "odd",
        "name": "[/x] [red] :bug:",
        "plan": "enterprise",
        "extensions": 1,
    }
    assert run("send", "CreatePbx", json.dumps(creation))[0] == 0

    status, output, errors = run("show", "allocations", "acme")

    assert (status, errors) == (0, "")
    assert "[/x] [red] :bug:" in output


def test_an_ascii_terminal_shows_everything_else(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)

    status, _, errors = run("show", "entitlements", "acme")

    terminal.seek(0)
    assert (status, errors) == (0, "")
    assert "extensions" in terminal.read()


def test_an_invoice_is_written_to_a_file_as_it_was_issued(run: Run, tmp_path: Path) -> None:
    status, _, _ = run("invoice", "YT-2026-000001", str(tmp_path / "invoice.pdf"))

    assert status == 0
    assert (tmp_path / "invoice.pdf").read_bytes().startswith(b"%PDF")
