"""Erasure of a person on a real PostgreSQL and NATS, followed by a rebuild of every read model and a restore.

No clear text is left anywhere, totals are unchanged, and no byte of the log changes.
"""

from __future__ import annotations

import asyncio
import io
import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import nats
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from pypdf import PdfReader

from domain.account import (
    ERASED_CONTACT,
    AddBillingReceiver,
    BillingContact,
    BillingReceiverAdded,
    BillingReceiverErased,
    ChooseDefaultBillingReceiver,
)
from domain.invoice import CreditNoteIssued, InvoiceEmailed, InvoiceIssued
from domain.order import BillingContactChosen, Method
from handlers.requests import CheckOut, RefundOrder
from infra.event_log.log import Log
from infra.event_log.postgres_recorder import postgres_log
from infra.postgres.connections import connect
from projections.maintenance.runner import PROJECTIONS, bring_up_to_date, wait
from tests.support.at_work import SOON_S, at_work, eventually, without_streams
from tests.support.command_line import Run
from tests.support.databases import MASTER_KEY, ServerAddresses, as_program, fresh_database
from tests.support.examples import NOW, WONKA
from tests.support.in_memory import WILLY

VERUCA = BillingContact(
    name='Veruca "Nuß" Salt',
    email="veruca.salt@nuts.example",
    company="Salt & Söhne Nüsse KG",
    address=("Squirrel Lane 77", "20457 Hamburg-Nord"),
    country="AT",
    phone="+43 1 77 01 77",
    vat_id="ATU77017701",
)
TEXTS = (
    VERUCA.name, "Veruca", VERUCA.email, "nuts.example", VERUCA.company, *VERUCA.address, VERUCA.phone, VERUCA.vat_id,
)  # fmt: skip
PERSON = "acme/veruca"
KEPT_BY_LAW = "log.documents"
CHAIN = """
    SELECT count(*) FROM (
      SELECT hash, sha256(coalesce(lag(hash) OVER (ORDER BY position), decode(repeat('00', 32), 'hex'))
               || int8send(position) || log.canonical(stream) || int8send(version) || log.canonical(topic)
               || int4send(octet_length(state)) || state || timestamptz_send(recorded_at) || log.canonical(account_id)
               || uuid_send(event_id) || log.canonical(correlation_id) || log.canonical(causation_id)
               || log.canonical(actor)) AS follows
        FROM log.events) AS link
     WHERE hash <> follows
"""

Tables = dict[str, list[tuple[Any, ...]]]
Erase = Callable[[str, str], tuple[int, str, str]]


def tables(owner_url: str) -> Tables:
    """Every row of every table of the database, ours or not."""
    with psycopg.connect(owner_url) as conn:
        names = conn.execute(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables "
            "WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1"
        ).fetchall()
        return {name: conn.execute(f"SELECT * FROM {name} AS t ORDER BY t".encode()).fetchall() for (name,) in names}


def spellings(text: str) -> set[bytes]:
    """The forms in which a text may be stored: as it is, or in JSON with and without escapes."""
    return {text.encode(), json.dumps(text)[1:-1].encode(), json.dumps(text, ensure_ascii=False)[1:-1].encode()}


def as_bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value, default=str, ensure_ascii=False).encode()


def found_in(rows: Tables) -> set[str]:
    """The tables that contain one of Veruca's texts."""
    needles = [needle for text in TEXTS for needle in spellings(text or "")]
    return {
        name
        for name, of_table in rows.items()
        for row in of_table
        for value in row
        if any(needle in as_bytes(value) for needle in needles)
    }


async def _every_message(nats_url: str) -> bytes:
    client = await nats.connect(nats_url)
    try:
        jetstream = client.jetstream()
        messages = []
        for stream in await jetstream.streams_info():
            name, state = stream.config.name or "", stream.state
            numbers = range(max(1, state.first_seq), state.last_seq + 1)  # an empty stream runs from 0 to 0
            found = [await jetstream.get_msg(name, number) for number in numbers]
            messages += [f"{message.subject} {message.headers}".encode() + (message.data or b"") for message in found]
        return b"\n".join(messages)
    finally:
        await client.close()


def read_models(rows: Tables) -> Tables:
    return {name: of_table for name, of_table in rows.items() if name.startswith("read.")}


@dataclass(frozen=True)
class Bought:
    """A shop with Veruca's orders: requested, placed, invoiced and partly refunded."""

    database_url: str
    owner_url: str
    messages: bytes
    before: Tables
    mailed: int


@pytest.fixture(scope="module")
def once(servers: ServerAddresses, template: str) -> Iterator[Bought]:
    """Run once; tests get copies."""
    nats_url = without_streams(servers.nats_url)
    with fresh_database(servers, template) as owner_url:
        yield _bought(as_program(owner_url), owner_url, nats_url)


def _bought(database_url: str, owner_url: str, nats_url: str) -> Bought:
    with at_work(database_url, nats_url) as shop:
        shop.until(InvoiceEmailed, shop.buy(extensions=5))  # Willy Wonka's, who stays
        shop.ask(AddBillingReceiver(at=NOW, account_id="acme", receiver_id="veruca", contact=VERUCA))
        shop.ask(ChooseDefaultBillingReceiver(at=NOW, account_id="acme", receiver_id="veruca"))
        order_id = shop.buy(Method.CARD, extensions=50, ultimate_plan=20, custom_domain=1)
        shop.until(InvoiceEmailed, order_id)
        shop.ask(RefundOrder(order_id=order_id, refund_id="refund-1", amount=None, services=()))
        shop.until(CreditNoteIssued, order_id)
        shop.order(extensions=1)
        placed = shop.order(extensions=2)
        shop.ask(CheckOut(order_id=placed, account_id="acme", method=Method.OFFLINE, pi_number="PI-2026-7"), WILLY)
        mailed = eventually(lambda: len(shop.mails("Credit note")), "the mail of the credit note")
        with connect(database_url) as conn:
            assert wait(conn, shop.dependencies.log.head(), SOON_S)
        head = shop.dependencies.log.head()
        eventually(lambda: relayed(database_url) >= head, "the relay")
    return Bought(database_url, owner_url, asyncio.run(_every_message(nats_url)), tables(owner_url), mailed)


@pytest.fixture
def bought(servers: ServerAddresses, once: Bought) -> Iterator[Bought]:
    with fresh_database(servers, name_of(once.owner_url)) as owner_url:
        yield replace(once, database_url=as_program(owner_url), owner_url=owner_url)


def name_of(database_url: str) -> str:
    return str(conninfo_to_dict(database_url)["dbname"])


def relayed(database_url: str) -> int:
    with connect(database_url) as conn:
        row = conn.execute("SELECT position FROM read.positions WHERE name = 'relay'").fetchone()
    return int(row["position"]) if row else 0


@pytest.fixture
def erase(monkeypatch: pytest.MonkeyPatch, command_line: Run) -> Erase:
    """Run ``trunkline privacy erase PERSON`` on a database. Returns exit status, stdout and stderr."""
    monkeypatch.setenv("TRUNKLINE_LINK_SECRET", "s" * 32)
    monkeypatch.setenv("TRUNKLINE_MASTER_KEY", b64encode(MASTER_KEY).decode())

    def run(database_url: str, person: str) -> tuple[int, str, str]:
        monkeypatch.setenv("TRUNKLINE_DATABASE_URL", database_url)
        return command_line("privacy", "erase", person)

    return run


@contextmanager
def log_at(database_url: str) -> Iterator[Log]:
    """The log in a process that has not read from it yet."""
    with postgres_log(database_url, master_key=MASTER_KEY) as log:
        yield log


def buyers(log: Log) -> list[BillingContact]:
    """The contact of every event that has one."""
    events = [recorded.event for recorded in log.history()]
    contacts = [e.contact for e in events if isinstance(e, BillingReceiverAdded | BillingContactChosen)]
    return contacts + [e.buyer for e in events if isinstance(e, InvoiceIssued | CreditNoteIssued)]


def rebuilt(database_url: str) -> None:
    """Delete all rows of the read models and fold them again."""
    with connect(database_url) as conn:
        for projection in PROJECTIONS:
            for table in projection.tables:
                conn.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier("read", table.TABLE)))
            conn.execute("DELETE FROM read.positions WHERE name = %s", (projection.name,))
    with log_at(database_url) as log:
        assert bring_up_to_date(database_url, log, SOON_S)


def test_an_erased_person_is_nowhere_even_after_a_rebuild_and_everything_else_is_unchanged(
    bought: Bought, erase: Erase, servers: ServerAddresses
) -> None:
    assert found_in(bought.before) <= {KEPT_BY_LAW}, "not even before the erasure"
    with log_at(bought.database_url) as log:
        assert buyers(log).count(VERUCA) >= 5
        head = log.head()

    status, output, errors = erase(bought.database_url, PERSON)

    assert (status, errors) == (0, "")
    assert output == f"{PERSON} is erased, by the event at position {head + 1}.\n"
    rebuilt(bought.database_url)
    after = tables(bought.owner_url)

    assert found_in(after) <= {KEPT_BY_LAW}
    messages = bought.messages + asyncio.run(_every_message(servers.nats_url))
    for texts in map(spellings, filter(None, TEXTS)):
        assert not any(text in messages for text in texts)
    assert len(bought.messages) > 10_000

    assert after["log.events"][:-1] == bought.before["log.events"], "bytes and hashes"
    assert after[KEPT_BY_LAW] == bought.before[KEPT_BY_LAW]
    with psycopg.connect(bought.owner_url) as owner:
        assert owner.execute(CHAIN).fetchall() == [(0,)]

    expected = read_models(bought.before)
    timeline, positions = expected.pop("read.timeline"), expected.pop("read.positions")
    shown = read_models(after)
    assert shown.pop("read.timeline")[:-1] == timeline
    assert [row[0] for row in shown.pop("read.positions")] == [row[0] for row in positions]
    assert shown == expected, "totals, states, numbers"
    assert sum(map(len, expected.values())) > 15

    with log_at(bought.database_url) as log:
        assert VERUCA not in buyers(log)
        assert buyers(log).count(ERASED_CONTACT) >= 5
        assert WONKA in buyers(log)
        recipients = [e.recipient for r in log.history() if isinstance(e := r.event, InvoiceEmailed)]
        assert recipients == [WONKA.email, ERASED_CONTACT.email]


def test_the_search_finds_clear_text(bought: Bought) -> None:
    with psycopg.connect(bought.owner_url) as owner:
        for statement in (
            "UPDATE read.orders SET attention = 'tell Veruca' WHERE order_id = 'order-1'",
            "CREATE TABLE public.aside AS SELECT convert_to('ask veruca.salt@nuts.example', 'UTF8') AS it",
            """UPDATE read.orders SET lines = '[{"note": "Salt & Söhne Nüsse KG"}]' WHERE order_id = 'order-2'""",
        ):
            owner.execute(statement.encode())
            owner.commit()
    assert found_in(tables(bought.owner_url)) >= {"read.orders", "public.aside"}


def test_documents_that_the_law_requires_are_kept_apart(bought: Bought, erase: Erase) -> None:
    """The bytes of issued documents are evidence; they are in no event and no read model."""
    assert erase(bought.database_url, PERSON)[0] == 0
    with psycopg.connect(bought.owner_url) as owner:
        documents = [content for (content,) in owner.execute("SELECT content FROM log.documents")]
    texts = ["\n".join(page.extract_text() for page in PdfReader(io.BytesIO(pdf)).pages) for pdf in documents]
    assert len([text for text in texts if VERUCA.company in text]) == 2  # the invoice, and its credit note


def test_an_erased_person_is_not_erased_again(bought: Bought, erase: Erase) -> None:
    erase(bought.database_url, PERSON)
    before = tables(bought.owner_url)

    assert erase(bought.database_url, PERSON) == (0, f"{PERSON} was erased before; nothing changed.\n", "")

    assert tables(bought.owner_url) == before


def test_orders_continue_after_an_erasure_in_a_running_trunkline(
    database_url: str, nats_url: str, erase: Erase
) -> None:
    """The command line erases while a running Trunkline has the person's key in its cache."""
    with at_work(database_url, nats_url) as shop:
        placed = shop.buy(extensions=1)
        shop.until(InvoiceEmailed, placed)
        assert erase(database_url, "acme/wonka")[0] == 0
        eventually(lambda: shop.all(BillingReceiverErased), "the erasure")
        eventually(lambda: ERASED_CONTACT in buyers(shop.dependencies.log), "the end of the cache")
        shop.ask(AddBillingReceiver(at=NOW, account_id="acme", receiver_id="veruca", contact=VERUCA))
        shop.ask(ChooseDefaultBillingReceiver(at=NOW, account_id="acme", receiver_id="veruca"))
        again = shop.buy(extensions=1)
        shop.until(InvoiceEmailed, again)
        assert shop.all(InvoiceIssued, again)[0].buyer == VERUCA
        assert shop.running.health()["ok"] is True


# --- restore -------------------------------------------------------------------------------------------------------


def test_a_copy_of_the_database_has_nothing_of_the_person_either(
    bought: Bought, erase: Erase, servers: ServerAddresses
) -> None:
    erase(bought.database_url, PERSON)
    name = name_of(bought.owner_url)
    eventually(lambda: alone(servers, name), "the end of all sessions")
    with fresh_database(servers, name) as copy_url:
        assert found_in(tables(copy_url)) <= {KEPT_BY_LAW}
        with log_at(as_program(copy_url)) as log:
            assert VERUCA not in buyers(log)
        rebuilt(as_program(copy_url))
        assert found_in(tables(copy_url)) <= {KEPT_BY_LAW}


def alone(servers: ServerAddresses, name: str) -> bool:
    with psycopg.connect(servers.database_url) as conn:
        return not conn.execute("SELECT 1 FROM pg_stat_activity WHERE datname = %s", (name,)).fetchall()


def test_a_key_restored_from_an_old_backup_is_destroyed_by_repeating_the_erasure(bought: Bought, erase: Erase) -> None:
    erase(bought.database_url, PERSON)
    old = [row for row in bought.before["log.person_keys"] if row[0] == PERSON]
    with psycopg.connect(bought.owner_url) as owner:
        owner.execute("DELETE FROM log.person_keys WHERE person = %s", (PERSON,))
        owner.execute("INSERT INTO log.person_keys VALUES (%s, %s, %s, %s)", old[0])
    with log_at(bought.database_url) as log:
        assert VERUCA in buyers(log)

    said = f"{PERSON} was erased before, but its key had been restored; it is destroyed now.\n"
    assert erase(bought.database_url, PERSON) == (0, said, "")

    with log_at(bought.database_url) as log:
        assert VERUCA not in buyers(log)
        assert len([1 for recorded in log.history() if isinstance(recorded.event, BillingReceiverErased)]) == 1
