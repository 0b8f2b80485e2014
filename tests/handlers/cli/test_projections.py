"""``trunkline projections`` and ``trunkline find``: their output, their effects and their refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from domain.messages import Event, Refusal
from handlers.cli.app import app
from infra.event_log.log import Change, Log
from infra.postgres.connections import connect
from projections.maintenance.runner import PROJECTIONS, bring_up_to_date
from tests.support.examples import NOW, activated, opened, placed, requested
from tests.support.given_domain import but
from tests.support.given_projection import CAUSE

POISON = but(placed, order_id="order-nobody-requested")
Run = Callable[..., str]


@pytest.fixture
def run(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command; returns its output. Refusals are raised."""
    monkeypatch.setenv("TRUNKLINE_DATABASE_URL", database_url)

    def ran(*arguments: str, status: int = 0) -> str:
        result = CliRunner().invoke(app, arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == status, result.output
        return result.stdout

    return ran


def told(log: Log, *, poison: bool = False) -> int:
    streams: dict[str, list[Event]] = {
        "account-acme": [opened],
        "subscription-pkg-acme": [activated],
        "order-1": [requested, placed],
    }
    if poison:
        streams["order-poison"] = [POISON]
    for stream, events in streams.items():
        log.append([Change(stream, 0, events)], account_id="acme", cause=CAUSE, at=NOW)
    return log.head()


def test_the_list_shows_the_progress_of_each_projection(run: Run, postgres: Log, database_url: str) -> None:
    told(postgres)
    assert {status["lag"] for status in json.loads(run("projections", "list", "--json"))} == {4}
    bring_up_to_date(database_url, postgres, 10)
    found = json.loads(run("projections", "list", "--json"))
    assert [status["name"] for status in found] == [projection.name for projection in PROJECTIONS]
    assert {(status["position"], status["lag"], status["running"], status["parked"]) for status in found} == {
        (4, 0, False, None)
    }
    table = run("projections", "list")
    assert all(projection.name in table and "works" in table for projection in PROJECTIONS)


def test_a_halted_projection_is_shown_retried_and_skipped_and_every_report_keeps_the_skip(
    run: Run, postgres: Log, database_url: str
) -> None:
    position = told(postgres, poison=True)
    bring_up_to_date(database_url, postgres, 10)
    assert "halted before position 5" in run("projections", "list").replace("\n", " ")
    shown = run("projections", "show", "orders")
    assert "order-poison version 1" in shown
    assert "in fold" in shown
    assert "AssertionError: an order starts with its request" in shown
    assert json.loads(run("projections", "show", "orders", "--json"))["parked"]["position"] == position

    assert "orders will retry position 5" in run("projections", "retry", "orders")
    bring_up_to_date(database_url, postgres, 10)
    assert json.loads(run("projections", "show", "orders", "--json"))["parked"]["attempts"] == 2

    said = run("projections", "skip", "orders", "--reason", "Made by [mistake].", "--as", "admin:ada")
    assert "orders skips position 5" in said
    bring_up_to_date(database_url, postgres, 10)
    for report in (
        ("projections", "list"),
        ("projections", "show", "orders"),
        ("projections", "verify", "orders"),
        ("projections", "rebuild", "orders"),
    ):
        text = " ".join(run(*report).split())
        assert "skips position 5" in text
        assert "admin:ada" in text
        assert "Made by [mistake]." in text


def test_a_rebuild_reports_its_result_and_a_verification_agrees(run: Run, postgres: Log, database_url: str) -> None:
    told(postgres)
    done = json.loads(run("projections", "rebuild", "orders", "billing", "--json"))
    assert (done["names"], done["position"], done["rows"]["orders"]) == (["orders", "billing"], 4, 1)
    assert "at position 4" in run("projections", "rebuild", "--all")
    assert "equals its replay" in run("projections", "verify", "orders")
    assert json.loads(run("projections", "verify", "orders", "--json"))["ok"]
    with connect(database_url) as conn:
        conn.execute("UPDATE read.orders SET total_minor = 1")
    text = run("projections", "verify", "orders", status=1)
    assert "IS NOT WHAT THE LOG SAYS" in text
    assert '"total_minor":1,' in text.replace("\n", "").replace(" ", "")
    assert not json.loads(run("projections", "verify", "orders", "--json", status=1))["ok"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["projections", "show", "lost"],
            "There is no projection lost; the projections are entitlements, allocations, orders",
        ),
        (["projections", "retry", "lost"], "There is no projection lost"),
        (["projections", "skip", "lost", "--reason", "x"], "There is no projection lost"),
        (["projections", "rebuild", "orders", "lost"], "There is no projection lost"),
        (["projections", "rebuild"], "Name the projections to rebuild, or use --all."),
        (["projections", "rebuild", "orders", "--all"], "Name the projections to rebuild, or use --all."),
        (["projections", "verify", "lost"], "There is no projection lost"),
        (["projections", "retry", "orders"], "The projection orders is not halted"),
        (["projections", "skip", "orders", "--reason", "x"], "The projection orders is not halted"),
        (["projections", "skip", "orders", "--reason", " "], "Give a reason why orders may skip this event"),
        (
            ["projections", "skip", "orders", "--reason", "x", "--as", "nobody"],
            "'nobody' is not a valid actor; use ROLE:NAME",
        ),
        (["find", "orders", "--cursor", "AAAA"], "The cursor does not belong to this query"),
        (["find", "orders", "--state", "lost"], "'lost' is not a state of an order"),
        (["find", "orders", "--from", "soon"], "soon is neither a day nor a time"),
        (["find", "orders", "--size", "0"], "A page has 1 to 1000 rows, not 0."),
        (["find", "orders", "--at-least", "5"], "An amount needs its currency"),
        (["find", "revenue", "--from", "2026-02-01", "--before", "2026-01-01"], "There is no revenue from 2026-02-01"),
        (["show", "orders", "acme", "--as-of", "5"], "The log ends at position 4; 5 lies ahead."),
        (["show", "orders", "acme", "--as-of", "soon"], "soon is neither a position nor a time"),
    ],
)
def test_impossible_requests_are_refused_in_one_sentence(
    run: Run, postgres: Log, arguments: list[str], sentence: str
) -> None:
    told(postgres)
    with pytest.raises(Refusal) as refused:
        run(*arguments)
    assert str(refused.value).startswith(sentence)
    assert "\n" not in str(refused.value)


def test_queries_over_all_accounts_are_answered(run: Run, postgres: Log) -> None:
    told(postgres)

    def found(*arguments: str) -> Any:  # noqa: ANN401 - JSON
        return json.loads(run("find", *arguments, "--json"))

    assert [row["order_id"] for row in found("orders", "--state", "placed", "--from", "2026-01-01")["rows"]] == [
        "order-1"
    ]
    assert found("orders", "--state", "placed", "--before", "2026-01-01")["rows"] == []
    assert found("owed") == {"by_age": [], "rows": [], "next": None}
    assert found("set-aside")["rows"] == []
    assert found("over-allocated")["rows"] == []
    assert found("revenue", "--from", "2026-01-01", "--before", "2027-01-01") == []
    assert "order-1" in run("find", "orders")
    for question in ("owed", "set-aside", "over-allocated"):
        run("find", question)
    run("find", "revenue", "--from", "2026-01-01", "--before", "2027-01-01")


def test_a_page_says_how_to_get_the_next_one(run: Run, postgres: Log) -> None:
    told(postgres)
    change = Change("order-2", 0, [but(requested, order_id="order-2")])
    postgres.append([change], account_id="acme", cause=CAUSE, at=NOW)
    first = run("find", "orders", "--size", "1")
    cursor = first.split("--cursor ")[1].strip()
    assert "order-2" in first
    assert "order-1" in run("find", "orders", "--size", "1", "--cursor", cursor)
