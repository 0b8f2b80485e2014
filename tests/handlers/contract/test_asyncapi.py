"""The AsyncAPI document: up to date, correctly versioned, and compatible with what others build on."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from handlers.contract.asyncapi import document
from handlers.contract.changes import breaking_changes
from handlers.contract.events import EVENTS
from handlers.contract.page import as_yaml, page
from tests.support.at_work import AtWork

COMMITTED = Path(__file__).parents[3] / "docs" / "asyncapi.yaml"
Change = Callable[[dict[str, Any]], None]


def test_the_committed_document_is_up_to_date() -> None:
    assert COMMITTED.read_text(encoding="utf-8") == as_yaml(document()), "run make contract"


def test_it_is_asyncapi_3_and_every_reference_resolves() -> None:
    contract = document()
    assert contract["asyncapi"] == "3.0.0"
    assert len(contract["channels"]) > len(EVENTS) + 15

    def follow(value: Any) -> None:  # noqa: ANN401 - JSON
        if isinstance(value, dict):
            if "$ref" in value:
                found: Any = contract
                for step in value["$ref"].removeprefix("#/").split("/"):
                    found = found[step]
            for inner in value.values():
                follow(inner)
        elif isinstance(value, list):
            for inner in value:
                follow(inner)

    follow(contract)


def schema(contract: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = contract["components"]["schemas"][name]
    return found


def drop_channel(contract: dict[str, Any]) -> None:
    del contract["channels"]["PaymentCaptured"]


def drop_message(contract: dict[str, Any]) -> None:
    del contract["components"]["messages"]["PaymentCaptured"]


def drop_field(contract: dict[str, Any]) -> None:
    del schema(contract, "PaymentCapturedData")["properties"]["capture_id"]


def drop_inner_field(contract: dict[str, Any]) -> None:
    del schema(contract, "LineData")["properties"]["quantity"]


def change_type(contract: dict[str, Any]) -> None:
    schema(contract, "MoneyData")["properties"]["amount_minor"]["type"] = "number"


def make_field_optional(contract: dict[str, Any]) -> None:
    schema(contract, "PaymentCapturedData")["required"].remove("amount")


def let_field_be_null(contract: dict[str, Any]) -> None:
    fields = schema(contract, "InvoiceIssuedData")["properties"]
    fields["number"] = {"anyOf": [{"type": "string"}, {"type": "null"}]}


def require_field(contract: dict[str, Any]) -> None:
    command = schema(contract, "CreatePbx")
    command["properties"]["colour"] = {"type": "string"}
    command["required"].append("colour")


def refuse_field(contract: dict[str, Any]) -> None:
    del schema(contract, "CheckOut")["properties"]["pi_number"]


def refuse_word(contract: dict[str, Any]) -> None:
    schema(contract, "Plan")["enum"].remove("ultimate")


def narrow(contract: dict[str, Any]) -> None:
    schema(contract, "CreatePbx")["properties"]["name"]["maxLength"] = 20


def rename_subject(contract: dict[str, Any]) -> None:
    contract["channels"]["CreatePbx"]["address"] = "trunkline.commands.v2.CreatePbx"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop_channel, "the channel trunkline.events.v1.order.PaymentCaptured is gone"),
        (drop_message, "the message PaymentCaptured is gone"),
        (drop_field, "PaymentCaptured.payload.data: the field capture_id is gone"),
        (drop_inner_field, "the field quantity is gone"),
        (change_type, "amount_minor: type was integer and is number"),
        (make_field_optional, "the field amount may be absent now"),
        (let_field_be_null, "number"),
        (require_field, "CreatePbx.payload.data: the field colour is required now"),
        (refuse_field, "CheckOut.payload.data: the field pi_number is gone"),
        (refuse_word, "the value ultimate is refused now"),
        (narrow, "maxLength was 200 and is 20"),
        (rename_subject, "the channel trunkline.commands.v1.CreatePbx is gone"),
    ],
)
def test_breaking_changes_are_named(change: Change, says: str) -> None:
    changed = copy.deepcopy(document())
    change(changed)
    assert [found for found in breaking_changes(document(), changed) if says in found], says


def add_field(contract: dict[str, Any]) -> None:
    data = schema(contract, "PaymentCapturedData")
    data["properties"]["fee"] = {"type": "integer"}
    data["required"].append("fee")


def add_optional_field(contract: dict[str, Any]) -> None:
    schema(contract, "CreatePbx")["properties"]["colour"] = {"type": "string"}


def add_word(contract: dict[str, Any]) -> None:
    schema(contract, "Plan")["enum"].append("supreme")


def add_channel(contract: dict[str, Any]) -> None:
    contract["channels"]["TicketFound"] = contract["channels"]["PaymentCaptured"]


def widen(contract: dict[str, Any]) -> None:
    schema(contract, "CreatePbx")["properties"]["name"]["maxLength"] = 400


def say_it_better(contract: dict[str, Any]) -> None:
    schema(contract, "PaymentCapturedData")["description"] = "The money is here."


@pytest.mark.parametrize(
    "change", [add_field, add_optional_field, add_word, add_channel, widen, say_it_better], ids=lambda c: c.__name__
)
def test_additions_break_nobody(change: Change) -> None:
    changed = copy.deepcopy(document())
    change(changed)
    assert breaking_changes(document(), changed) == []


def test_a_breaking_change_is_not_written(tmp_path: Path) -> None:
    """The committed document has a field that the current one lacks."""
    older = copy.deepcopy(document())
    schema(older, "PaymentCapturedData")["properties"]["fee"] = {"type": "integer"}
    (tmp_path / "older.yaml").write_text(as_yaml(older), encoding="utf-8")
    command = [sys.executable, "-m", "handlers.contract", "--check", str(tmp_path / "older.yaml")]
    checked = subprocess.run(command, cwd=COMMITTED.parents[1], capture_output=True, text=True, check=False)
    assert checked.returncode == 1
    assert "breaking: PaymentCaptured.payload.data: the field fee is gone" in checked.stderr


def test_the_page_documents_every_message_and_sends_none() -> None:
    told = page()
    for event in EVENTS:
        assert f'id="{event.__name__}"' in told
    for means in ("<script", "<form", "<button", "http://", "https://"):
        assert means not in told


def test_the_page_is_served_without_a_way_to_send_messages(trunkline: AtWork) -> None:
    with httpx.Client(base_url=trunkline.url, trust_env=False) as client:
        assert client.get("/asyncapi").text == page()
        assert yaml.safe_load(client.get("/asyncapi.yaml").text) == document()
        assert client.post("/asyncapi/try", json={}).status_code == 404
