"""``trunkline privacy``: what people may ask of their data."""

from __future__ import annotations

from typing import Annotated
from uuid import uuid4

import typer
from pydantic import ValidationError
from rich.console import Console

from domain.account import EraseBillingReceiver
from handlers.commands import handle
from handlers.console import Data
from handlers.opening import As, MalformedMessage, actor_of, house_over, opened_log

app = typer.Typer(help="What people may ask of their data.", no_args_is_help=True)


@app.command()
def erase(
    person: Annotated[str, typer.Argument(help="ACCOUNT/RECEIVER, as in acme/wonka.")],
    data: Data = None,
    actor: As = None,
) -> None:
    """Make all that the log holds of a person unreadable, for good. Issued invoices stay, as the law wants it."""
    account, _, receiver = person.partition("/")
    with opened_log(data) as opened, house_over(opened) as house:
        try:
            wish = EraseBillingReceiver(at=house.clock.now(), account_id=account, receiver_id=receiver)
        except ValidationError as error:
            raise MalformedMessage(f"{person} is no person; write ACCOUNT/RECEIVER, as in acme/wonka.") from error
        readable = opened.log.has_key(person)
        outcome = handle(wish, house, actor_of(actor, account), correlation_id=str(uuid4()))
    if outcome.desk.recorded:
        said = f"{person} is erased, by the event at position {outcome.desk.recorded[0].position}."
    elif readable:
        said = f"{person} was erased before, but a key had come back; it is destroyed now."
    else:
        said = f"{person} was erased before; nothing changed."
    Console(soft_wrap=True).print(said, highlight=False, markup=False)
