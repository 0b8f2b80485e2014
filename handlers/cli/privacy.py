"""``trunkline privacy``: erasure of personal data, its encryption keys, and retention of documents."""

from __future__ import annotations

from typing import Annotated
from uuid import uuid4

import typer
from pydantic import ValidationError

from domain.account import EraseBillingReceiver
from handlers.cli.console import Data, bar, say
from handlers.cli.session import As, MalformedMessage, Opened, actor_of, dependencies_over, opened_log
from handlers.dispatch import handle
from handlers.runtime.secrets import master_key, next_master_key
from handlers.runtime.servers import owner_and_login
from handlers.use_cases.retention import delete_documents
from infra.event_log.postgres_recorder import postgres_log
from infra.personal_data.master_keys import MasterKeys, rewrap
from infra.postgres.connections import owning
from infra.settings import settings

app = typer.Typer(help="Erase persons, change the master key, delete old documents.", no_args_is_help=True)


@app.command()
def erase(
    person: Annotated[str, typer.Argument(help="ACCOUNT/RECEIVER, as in acme/wonka.")],
    data: Data = None,
    actor: As = None,
) -> None:
    """Make all data of a person in the log unreadable, for good. Issued invoices stay, as the law demands."""
    account, _, receiver = person.partition("/")
    with opened_log(data) as opened, dependencies_over(opened) as dependencies:
        try:
            command = EraseBillingReceiver(at=dependencies.clock.now(), account_id=account, receiver_id=receiver)
        except ValidationError as error:
            raise MalformedMessage(f"{person} is not a person; write ACCOUNT/RECEIVER, as in acme/wonka.") from error
        readable = opened.log.has_key(person)
        outcome = handle(command, dependencies, actor_of(actor, account), correlation_id=str(uuid4()))
    if outcome.context.recorded:
        result = f"{person} is erased, by the event at position {outcome.context.recorded[0].position}."
    elif readable:
        result = f"{person} was erased before, but its key had been restored; it is destroyed now."
    else:
        result = f"{person} was erased before; nothing changed."
    say(result)


@app.command("rewrap")
def rewrap_keys(data: Data = None) -> None:
    """Wrap the key of each person with a new master key (see docs/privacy.md). Resumes if interrupted."""
    given = settings()
    with (
        owner_and_login(given, data) as (owner_url, _),
        next_master_key(given, data) as keys,
        owning(owner_url) as owner,
        bar("keys") as on_progress,
    ):
        count = rewrap(owner, MasterKeys(keys), on_progress)
    say(f"{_counted('key', count)} wrapped with the new master key; no other key opens them.")


@app.command("delete-documents")
def delete_old_documents(data: Data = None, actor: As = None) -> None:
    """Delete the PDFs whose retention (TRUNKLINE_DOCUMENT_YEARS) has ended. The log records which."""
    given = settings()
    with (
        owner_and_login(given, data) as (owner_url, database_url),
        owning(owner_url) as owner,
        postgres_log(database_url, master_key=master_key(given, data)) as log,
        dependencies_over(Opened(given, data, database_url, log)) as dependencies,
        bar("documents") as on_progress,
    ):
        count = delete_documents(owner, dependencies, actor_of(actor, None), given.document_years, on_progress)
    years = "1 year" if given.document_years == 1 else f"{given.document_years} years"
    say(f"{_counted('document', count)} deleted: each is kept for {years} after the year of its issue.")


def _counted(what: str, count: int) -> str:
    """Return the beginning of a sentence: how many were, or had to be."""
    return f"1 {what} was" if count == 1 else f"{count:,} {what}s were" if count else f"No {what} had to be"
