"""``trunkline dead-letters``: list, show, replay and drop messages that could not be handled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from nats.js import JetStreamContext
from rich.table import Table

from handlers.cli.console import AsJson, draw, print_json, say
from handlers.cli.session import user_name
from handlers.runtime.servers import broker_url
from infra.broker.dead_letters import DELIVERIES, STORED_AT, SUBJECT, Letter, drop, letter, letters, replay
from infra.broker.nats import connected, provision
from infra.settings import settings

T = TypeVar("T")
Data = Annotated[
    Path | None,
    typer.Option("--data", help="The directory of trunkline up or demo --keep, if TRUNKLINE_NATS_URL is not set."),
]
app = typer.Typer(help="Messages that could not be handled.", no_args_is_help=True)


@app.command(name="list")
def list_letters(
    data: Data = None,
    dropped: Annotated[bool, typer.Option(help="List those that were dropped, with the reason.")] = False,
    as_json: AsJson = False,
) -> None:
    """List dead letters, oldest first."""

    async def found(jetstream: JetStreamContext) -> list[Letter]:
        return [each async for each in letters(jetstream, dropped=dropped)]

    all_of_them = _with_jetstream(data, found)
    if as_json:
        print_json([_about(each) for each in all_of_them])
        return
    letters_of_them = "dead letter" if len(all_of_them) == 1 else "dead letters"
    table = Table(title=f"{len(all_of_them)} {letters_of_them}" + (", dropped" if dropped else ""))
    for column in ("number", "since", "consumer", "subject", "bytes", "dropped" if dropped else "error"):
        table.add_column(column, overflow="fold")
    for each in all_of_them:
        since = f"{each.buried_at:%Y-%m-%d %H:%M:%S}" if each.buried_at else ""
        why = (each.dropped or "") if dropped else each.error
        subject = each.headers.get(SUBJECT, "")
        table.add_row(str(each.number), since, each.consumer, subject, str(len(each.body)), why)
    draw(table)


@app.command()
def show(number: int, data: Data = None) -> None:
    """Show one dead letter with its body, which may hold personal data."""
    found = _with_jetstream(data, lambda jetstream: letter(jetstream, number))
    whole = {**_about(found), "headers": dict(found.headers), "body": found.body.decode(errors="backslashreplace")}
    print_json(whole)


@app.command(name="replay")
def replay_letter(numbers: list[int], data: Data = None) -> None:
    """Put dead letters back, each for the consumer that could not handle it, and for no other."""
    for number in numbers:
        put_back = _with_jetstream(data, lambda jetstream, n=number: replay(jetstream, n))  # type: ignore[misc]
        say(f"Dead letter {number} was put back for {put_back.consumer}.")


@app.command(name="drop")
def drop_letter(
    number: int,
    reason: Annotated[str, typer.Option(help="The reason; it is kept with your name.")],
    data: Data = None,
) -> None:
    """Drop a dead letter. Its body is deleted; a record of it is kept, with the reason."""
    who = user_name()
    _with_jetstream(data, lambda jetstream: drop(jetstream, number, reason=reason, by=who))
    say(f"Dead letter {number} was dropped.")


def _about(each: Letter) -> dict[str, Any]:
    return {
        "number": each.number,
        "since": each.buried_at,
        "consumer": each.consumer,
        "subject": each.headers.get(SUBJECT),
        "stored_at": each.headers.get(STORED_AT),
        "deliveries": each.headers.get(DELIVERIES),
        "bytes": len(each.body),
        "error": each.error,
        "dropped": each.dropped,
    }


def _with_jetstream(data: Path | None, work: Callable[[JetStreamContext], Awaitable[T]]) -> T:
    given = settings()

    async def run(nats_url: str) -> T:
        async with connected(nats_url) as client:
            jetstream = client.jetstream()
            await provision(jetstream, {}, given.limits)
            return await work(jetstream)

    with broker_url(given, data) as nats_url:
        return asyncio.run(run(nats_url))
