"""A bundle proves itself: any change, omission or addition is detected, without a database."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from handlers.cli.export import export_of
from infra.audit.auditor import Auditor, auditing
from infra.audit.checkpoints import Checkpoint
from infra.audit.ed25519 import SigningKey, WrongKey
from infra.audit.export_bundle import Proven, ProvenEvent, verified
from infra.audit.hash_chain import ChainBroken, linked
from infra.audit.merkle import NotProven
from infra.event_log.postgres_recorder import postgres_log
from infra.event_log.recorder import LogRow, as_notifications
from tests.support.databases import MASTER_KEY, ServerAddresses, as_program, fresh_database
from tests.support.examples import NOW
from tests.support.histories import ACCOUNTS, tell

KEY = SigningKey(Ed25519PrivateKey.generate())
Json = dict[str, Any]


@pytest.fixture(scope="module")
def auditor(servers: ServerAddresses, template: str) -> Iterator[Auditor]:
    """A log of two accounts that share the series of invoice numbers, and of prices, which belong to no account."""
    with fresh_database(servers, template) as url:
        with postgres_log(as_program(url), master_key=MASTER_KEY) as log:
            tell(log, seed=6, steps=150)
        with auditing(as_program(url)) as auditor:
            yield auditor


def text_of(auditor: Auditor, account: str, key: SigningKey = KEY) -> bytes:
    export = export_of(auditor, account)
    checkpoint = Checkpoint.signed(key, *export.head, NOW, export.trees)
    return b"".join(export.text(auditor, checkpoint))


@pytest.fixture(scope="module")
def text(auditor: Auditor) -> bytes:
    return text_of(auditor, "acme")


@pytest.fixture
def bundle(text: bytes) -> Json:
    found: Json = json.loads(text)
    return found


def checked(bundle: Json | bytes, key: SigningKey = KEY) -> Proven:
    text = bundle if isinstance(bundle, bytes) else json.dumps(bundle).encode()
    return verified(text, [key.public], "acme.json")


def refused(bundle: Json | bytes) -> str:
    with pytest.raises(NotProven) as caught:
        checked(bundle)
    return str(caught.value)


# --- as it was exported --------------------------------------------------------------------------------------------


def test_a_bundle_proves_all_events_of_its_account(auditor: Auditor, text: bytes) -> None:
    proven = checked(text)
    assert proven.events == len(auditor.positions_of("acme", auditor.head())) > 30
    assert proven.checkpoint.position == auditor.head()
    assert {share.stream for share in proven.streams} >= {
        "account-acme",
        "subscription-pkg-acme",
        "allocation-pkg-acme",
    }


def test_the_accounts_are_apart_and_together_they_are_the_log(auditor: Auditor) -> None:
    proven = [checked(text_of(auditor, account)) for account in ACCOUNTS]
    prices = auditor.head() - sum(one.events for one in proven)
    assert prices == 1
    shared = [{share.stream for share in one.streams if not share.whole} for one in proven]
    assert shared == [{"invoice_series-YT-2026"}, {"invoice_series-YT-2026"}]


def test_nothing_of_another_account_is_in_it(text: bytes) -> None:
    assert b"slugworth" not in text


def test_a_bundle_that_others_reformatted_still_proves_itself(bundle: Json) -> None:
    """Whitespace and the order of fields do not matter: the signature does not cover them."""
    assert checked(json.dumps(bundle, sort_keys=True, indent=7).encode()).events


def test_a_broken_log_is_not_exported(servers: ServerAddresses, template: str) -> None:
    with fresh_database(servers, template) as url:
        with postgres_log(as_program(url), master_key=MASTER_KEY) as log:
            tell(log, seed=6, steps=5)
        with psycopg.connect(url) as owner:
            owner.execute("ALTER TABLE log.events DISABLE TRIGGER only_added_to")
            owner.execute("UPDATE log.events SET actor = 'admin:ada' WHERE position = 3")
        broken = pytest.raises(ChainBroken, match="Position 3 is the first that is wrong")
        with auditing(as_program(url)) as auditor, broken:
            export_of(auditor, "acme")


# --- tampered with -------------------------------------------------------------------------------------------------


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401 - any JSON
    """Yield the path to each scalar of a JSON document."""
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, name))
    else:
        yield path


def other(value: Any) -> list[Any]:  # noqa: ANN401 - any JSON
    """Return values that a forger might put in its place."""
    match value:
        case bool():
            return [not value]
        case int():
            return [value + 1, value - 1, 0]
        case str() if len(value) in (64, 128) and set(value) <= set("0123456789abcdef"):
            return [value[:-1] + ("0" if value[-1] != "0" else "1"), value[::-1] + "0", 64 * "0"]
        case str():
            return [value + "x", value[:-1], "", value.replace("acme", "slugworth").replace("2026", "2027") + " ", None]
        case _:
            return ["x", 1]


def changed(bundle: Json, path: tuple[Any, ...], value: object) -> Json:
    forged = copy.deepcopy(bundle)
    inner: Any = forged
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return forged


def test_a_change_of_any_field_is_detected(bundle: Json) -> None:
    """Every value of the first two events, the last, each stream, and the checkpoint, one at a time."""
    bundle_events = {0, 1, len(bundle["events"]) - 1}
    paths = [path for path in leaves(bundle) if path[0] != "events" or path[1] in bundle_events]
    undetected = [
        (path, value)
        for path in paths
        for value in other(_at(bundle, path))
        if value != _at(bundle, path) and not _is_detected(changed(bundle, path, value))
    ]
    assert undetected == []
    assert len(paths) > 100


def _at(bundle: Json, path: tuple[Any, ...]) -> Any:  # noqa: ANN401 - any JSON
    inner: Any = bundle
    for name in path:
        inner = inner[name]
    return inner


def _is_detected(bundle: Json) -> bool:
    try:
        checked(bundle)
    except (NotProven, WrongKey):
        return True
    return False


def test_a_dropped_event_is_detected(bundle: Json) -> None:
    for index in range(len(bundle["events"])):
        forged = copy.deepcopy(bundle)
        dropped = forged["events"].pop(index)
        assert f"The stream {dropped['stream']} is not complete" in refused(forged)


def test_a_truncated_stream_is_detected_however_it_is_covered_up(bundle: Json) -> None:
    share = bundle["streams"][0]
    last = max(index for index, event in enumerate(bundle["events"]) if event["stream"] == share["stream"])
    bundle["events"].pop(last)
    assert "is not complete" in refused(bundle)
    share["last"] -= 1
    share["count"] -= 1
    assert "do not match the signed checkpoint" in refused(bundle)


def test_a_stream_dropped_with_all_its_events_is_detected(bundle: Json) -> None:
    share = bundle["streams"].pop()
    bundle["events"] = [event for event in bundle["events"] if event["stream"] != share["stream"]]
    assert "do not match the signed checkpoint" in refused(bundle)


def test_a_repeated_event_does_not_replace_another(bundle: Json) -> None:
    stream = max(bundle["streams"], key=lambda share: share["count"])["stream"]
    indexes = [index for index, event in enumerate(bundle["events"]) if event["stream"] == stream]
    bundle["events"][indexes[1]] = bundle["events"][indexes[0]]
    assert "is out of order or repeated" in refused(bundle)


def test_reordered_events_are_detected(bundle: Json) -> None:
    bundle["events"].reverse()
    assert "is out of order" in refused(bundle)


def test_swapped_proofs_prove_nothing(bundle: Json) -> None:
    one, two = bundle["events"][2], bundle["events"][9]
    one["proof"], two["proof"] = two["proof"], one["proof"]
    assert f"The event at position {one['position']}" in refused(bundle)


def test_the_proof_of_another_account_proves_nothing(auditor: Auditor, bundle: Json) -> None:
    theirs = json.loads(text_of(auditor, "slugworth"))
    assert _is_detected({**bundle, "account_proof": theirs["account_proof"]})
    assert _is_detected({**bundle, "account_proof": theirs["account_proof"], "account_index": theirs["account_index"]})
    assert _is_detected({**bundle, "streams": theirs["streams"]})
    assert _is_detected({**bundle, "account": "slugworth"})


def test_a_made_up_event_is_not_in_the_log(bundle: Json) -> None:
    """Its hash can be made to fit, but no proof leads from it to the signed root."""
    made_up = bundle["events"][3]
    made_up["actor"] = "admin:ada"
    assert "was altered" in refused(bundle)
    made_up["hash"] = _hash_of(made_up)
    assert "is not in the log" in refused(bundle)


def _hash_of(event: Json) -> str:
    parsed = ProvenEvent.model_validate_json(json.dumps(event))
    return linked(bytes.fromhex(event["previous_hash"]), parsed.row()).hex()


def test_a_forged_checkpoint_proves_nothing(bundle: Json) -> None:
    bundle["checkpoint"]["trees"]["log_root"] = 64 * "0"
    assert "does not match its signature" in refused(bundle)


def test_a_checkpoint_without_its_trees_proves_nothing(bundle: Json) -> None:
    old = Checkpoint.model_validate_json(json.dumps(bundle["checkpoint"]))
    plain = Checkpoint.signed(KEY, old.position, bytes.fromhex(old.hash), old.time)
    bundle["checkpoint"] = json.loads(plain.line())
    assert "its checkpoint has no trees" in refused(bundle)


def test_a_bundle_of_an_earlier_log_proves_nothing_under_a_later_checkpoint(auditor: Auditor, bundle: Json) -> None:
    later = {**bundle["checkpoint"], "position": bundle["checkpoint"]["position"] + 1}
    assert "does not match its signature" in refused({**bundle, "checkpoint": later})


def test_a_wrong_key_is_named(text: bytes) -> None:
    stranger = SigningKey(Ed25519PrivateKey.generate())
    with pytest.raises(WrongKey, match=KEY.public.fingerprint[:16]):
        checked(text, stranger)


def test_a_bundle_signed_with_a_forgers_key_is_refused(auditor: Auditor) -> None:
    stranger = SigningKey(Ed25519PrivateKey.generate())
    forged = json.loads(text_of(auditor, "acme", stranger))
    with pytest.raises(WrongKey):
        checked(forged)
    forged["checkpoint"]["key"] = KEY.public.fingerprint
    assert "does not match its signature" in refused(forged)


@pytest.mark.parametrize(
    "text", [b"", b"golden ticket", b"{}", b"[]", b'{"format": "trunkline export v2"}', b"\xff\xfe"]
)
def test_anything_but_a_bundle_is_refused(text: bytes) -> None:
    assert refused(text).startswith("acme.json is not an account export: ")


def test_a_state_that_is_not_text_is_exported_in_base64(servers: ServerAddresses, template: str) -> None:
    with fresh_database(servers, template) as url:
        with postgres_log(as_program(url), master_key=MASTER_KEY) as log:
            columns: dict[str, Any] = {
                "originator_id": "ticket-1",
                "originator_version": 0,
                "topic": "t",
                "state": b"\x00\xff",
                "id": 0,
            }
            columns |= {
                "recorded_at": NOW,
                "account_id": "acme",
                "correlation_id": "",
                "causation_id": None,
                "actor": "é",
            }
            log._recorder.insert_events(as_notifications([LogRow(**columns)]))
        with auditing(as_program(url)) as auditor:
            text = text_of(auditor, "acme")
    assert checked(text).events == 1
    assert b'"state_base64":"AP8="' in text
    assert _is_detected(json.loads(text.replace(b"AP8=", b"AP4=")))
