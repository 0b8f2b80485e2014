"""Documents are deleted after their retention period; the log records it and is otherwise unchanged."""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

import handlers.cli.session
import handlers.use_cases.retention
from domain.invoice import CreditNoteIssued, DocumentDeleted, InvoiceIssued
from handlers.context import Actor, NotPermitted, Role
from handlers.use_cases.retention import delete_documents
from infra.audit.auditor import auditing
from infra.audit.hash_chain import Verifier
from infra.event_log.log import Log
from infra.postgres.connections import owning
from projections.billing import count_kept
from projections.maintenance.runner import bring_up_to_date
from tests.support.at_work import SOON_S
from tests.support.command_line import Run
from tests.support.databases import MASTER_KEY
from tests.support.in_memory import InMemory, SettableClock

ADMIN = Actor(Role.ADMIN, "ada")
THE_LAST_MOMENT = datetime(2034, 12, 31, 23, 59, 59, tzinfo=UTC)
LET_GO = datetime(2035, 1, 1, tzinfo=UTC)
Progress = list[tuple[int, int]]


@pytest.fixture(name="shop")
def _shop(postgres: Log, database_url: str) -> InMemory:
    """An invoice of 2026 and the credit note that corrects it."""
    store = InMemory(log=postgres)
    store.refunded().settle()
    assert bring_up_to_date(database_url, postgres, SOON_S)
    return store


def delete_those_of_eight_years(shop: InMemory, owner_url: str, actor: Actor = ADMIN) -> Progress:
    told: Progress = []
    with owning(owner_url) as owner:
        deleted = delete_documents(owner, shop.dependencies, actor, 8, lambda *so_far: told.append(so_far))
    assert deleted == (told[-1][0] if told else 0)
    return told


def there(shop: InMemory) -> list[bool]:
    """Whether the documents of the invoice and of the credit note exist."""
    documents = [shop.one(InvoiceIssued).document, shop.one(CreditNoteIssued).document]
    return [shop.dependencies.log.document(each.sha256) is not None for each in documents]


def test_documents_are_kept_for_their_full_years_and_then_deleted_one_by_one(
    shop: InMemory, owner_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers.use_cases.retention, "BATCH", 1)
    shop.clock.at = THE_LAST_MOMENT
    assert delete_those_of_eight_years(shop, owner_url) == []
    assert there(shop) == [True, True]

    shop.clock.at = LET_GO
    assert delete_those_of_eight_years(shop, owner_url) == [(1, 2), (2, 2)]
    assert there(shop) == [False, False]
    assert delete_those_of_eight_years(shop, owner_url) == []

    deleted = [each for each in shop.dependencies.log.history() if isinstance(each.event, DocumentDeleted)]
    assert [(each.account_id, each.cause.actor) for each in deleted] == [("acme", "admin:ada")] * 2
    with auditing(database_url) as auditor:
        assert Verifier(auditor).verify().position == shop.head


def test_an_interrupted_deletion_continues_and_is_reported_once(
    shop: InMemory, owner_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    shop.clock.at = LET_GO
    monkeypatch.setattr(handlers.use_cases.retention, "delete", interrupt)
    with pytest.raises(KeyboardInterrupt):
        delete_those_of_eight_years(shop, owner_url)
    monkeypatch.undo()
    assert there(shop) == [True, True]

    assert delete_those_of_eight_years(shop, owner_url) == [(2, 2)]
    assert there(shop) == [False, False]
    assert len(shop.all(DocumentDeleted)) == 2


def test_an_actor_without_permission_deletes_nothing(shop: InMemory, owner_url: str) -> None:
    shop.clock.at = LET_GO
    with pytest.raises(NotPermitted):
        delete_those_of_eight_years(shop, owner_url, Actor(Role.PARTNER, "arthur", "acme"))
    assert there(shop) == [True, True]


def test_documents_cannot_be_deleted_in_any_other_way_even_afterwards(shop: InMemory, owner_url: str) -> None:
    shop.clock.at = LET_GO
    delete_those_of_eight_years(shop, owner_url)
    with owning(owner_url) as owner, pytest.raises(psycopg.errors.InsufficientPrivilege):
        owner.execute("DELETE FROM log.documents")


@pytest.fixture(name="ask")
def _ask(monkeypatch: pytest.MonkeyPatch, command_line: Run, database_url: str) -> Run:
    """Run ``trunkline``. Returns exit status, stdout and stderr."""
    monkeypatch.setenv("TRUNKLINE_DATABASE_URL", database_url)
    monkeypatch.setenv("TRUNKLINE_MASTER_KEY", b64encode(MASTER_KEY).decode())
    monkeypatch.setenv("TRUNKLINE_LINK_SECRET", 32 * "x")
    return command_line


def test_the_command_deletes_documents_by_the_settings(
    shop: InMemory, owner_url: str, ask: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    delete = ("privacy", "delete-documents")
    assert ask(*delete) == (1, "", "TRUNKLINE_OWNER_URL is missing: no other login may do this.\n")
    monkeypatch.setenv("TRUNKLINE_OWNER_URL", owner_url)
    monkeypatch.setattr(handlers.cli.session, "SystemClock", lambda: SettableClock(LET_GO))
    kept = "each is kept for 10 years after the year of its issue"
    assert ask(*delete) == (0, f"No document had to be deleted: {kept}.\n", "")

    monkeypatch.setenv("TRUNKLINE_DOCUMENT_YEARS", "8")
    assert ask(*delete) == (0, f"2 documents were deleted: {kept.replace('10', '8')}.\n", "")
    with owning(owner_url) as owner:
        assert count_kept(owner, LET_GO) == 0

    stream = f"invoice-{shop.one(InvoiceIssued).invoice_id}"
    gone = f"The document of YT-2026-000001 was deleted; trunkline audit events --stream {stream} shows when.\n"
    assert ask("invoice", "YT-2026-000001", str(tmp_path / "invoice.pdf")) == (1, "", gone)
    assert "DocumentDeleted" in ask("audit", "events", "--stream", stream, "--json")[1]
