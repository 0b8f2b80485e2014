"""``trunkline privacy``: what people may ask of their data, and the keys that these are sealed with."""

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

app = typer.Typer(
    help="What people may ask of their data; and the keys that these are sealed with.", no_args_is_help=True
)


@app.command()
def erase(
    person: Annotated[str, typer.Argument(help="ACCOUNT/RECEIVER, as in acme/wonka.")],
    data: Data = None,
    actor: As = None,
) -> None:
    """Make all that the log holds of a person unreadable, for good. Issued invoices stay, as the law wants it."""
    account, _, receiver = person.partition("/")
    with opened_log(data) as opened, dependencies_over(opened) as dependencies:
        try:
            command = EraseBillingReceiver(at=dependencies.clock.now(), account_id=account, receiver_id=receiver)
        except ValidationError as error:
            raise MalformedMessage(f"{person} is no person; write ACCOUNT/RECEIVER, as in acme/wonka.") from error
        readable = opened.log.has_key(person)
        outcome = handle(command, dependencies, actor_of(actor, account), correlation_id=str(uuid4()))
    if outcome.context.recorded:
        said = f"{person} is erased, by the event at position {outcome.context.recorded[0].position}."
    elif readable:
        said = f"{person} was erased before, but a key had come back; it is destroyed now."
    else:
        said = f"{person} was erased before; nothing changed."
    say(said)


@app.command("rewrap")
def rewrap_keys(data: Data = None) -> None:
    """Wrap every person's key by a new master key: see docs/privacy.md. Interrupted, it goes on when asked again."""
    given = settings()
    with (
        owner_and_login(given, data) as (owner_url, _),
        next_master_key(given, data) as keys,
        owning(owner_url) as owner,
        bar("keys") as told,
    ):
        count = rewrap(owner, MasterKeys(keys), told)
    said = f"{_so_many('key', count)} wrapped anew; the new master key alone opens all of them."
    say(said)


@app.command("delete-documents")
def delete_old_documents(data: Data = None, actor: As = None) -> None:
    """Delete the PDFs that had to be kept for TRUNKLINE_DOCUMENT_YEARS, and have been. The log says which."""
    given = settings()
    with (
        owner_and_login(given, data) as (owner_url, database_url),
        owning(owner_url) as owner,
        postgres_log(database_url, master_key=master_key(given, data)) as log,
        dependencies_over(Opened(given, data, database_url, log)) as dependencies,
        bar("documents") as told,
    ):
        count = delete_documents(owner, dependencies, actor_of(actor, None), given.document_years, told)
    years = "1 year" if given.document_years == 1 else f"{given.document_years} years"
    said = f"{_so_many('document', count)} deleted: each is kept for {years} after the year of its issue."
    say(said)


def _so_many(what: str, count: int) -> str:
    """The beginning of a sentence that says of how many something was done."""
    return f"1 {what} was" if count == 1 else f"{count:,} {what}s were" if count else f"No {what} had to be"
