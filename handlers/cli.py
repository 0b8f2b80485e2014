"""The command line. Whatever goes wrong is said in one sentence, with exit status 1, and nothing is half-written."""

from __future__ import annotations

import getpass
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer
from pydantic import ValidationError
from pydantic_core import from_json, to_json
from rich.console import Console

from domain.messages import Command, Refusal, what_is_wrong
from domain.quote import Quote, Selection
from handlers import dead_letters, relay
from handlers.commands import COMMANDS, handle
from handlers.composition import (
    Outside,
    database,
    house_of,
    link_secret,
    local_senders,
    mailer_of,
    prepared,
    provider_of,
    servers,
)
from handlers.composition import trunkline as whole
from handlers.demo.stage import staged
from handlers.demo.story import Story
from handlers.demo.teller import StoryBroken
from handlers.desk import Actor, House, Role
from handlers.processes import running_alone, until_stopped
from handlers.purchase import order_summary
from handlers.requests import OrderExpansion
from handlers.views import VIEWS, shown, summary_table, table
from infra.clock import SystemClock
from infra.dead_letters import NoSuchLetter
from infra.log import Log, LogUnavailable
from infra.nats import BrokerUnavailable
from infra.payments import PaymentProviderError
from infra.postgres import DatabaseUnavailable, connect
from infra.postgres_recorder import postgres_log
from infra.relay import AnotherLog, OutOfStep
from infra.settings import Settings, WrongSetting, settings
from infra.smtp import MailNotSent
from infra.supervisor import ServerDidNotStart
from infra.unit_of_work import UnitOfWork
from projections.billing import BillingDocumentRow
from projections.engine import stored
from projections.runner import bring_up_to_date

SAID = (
    Refusal,
    WrongSetting,
    DatabaseUnavailable,
    BrokerUnavailable,
    LogUnavailable,
    ServerDidNotStart,
    PaymentProviderError,
    MailNotSent,
    StoryBroken,
    NoSuchLetter,
    OutOfStep,
    AnotherLog,
)
PIPE_WIDTH = 120
CATCH_UP_S = 60.0
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(relay.app, name="relay")
app.add_typer(dead_letters.app, name="dead-letters")

Data = Annotated[
    Path | None, typer.Option("--data", help="The directory of a demo --keep; else TRUNKLINE_DATABASE_URL is asked.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
As = Annotated[str | None, typer.Option("--as", help="Who asks, as role:name; an admin where not said.")]


class UnknownCommand(Refusal):
    """The command line was asked for something that it does not have."""


class MalformedMessage(Refusal):
    """A command's JSON is not what it has to be."""


@app.callback()
def trunkline() -> None:
    """Trunkline, the order backend for sellers of hosted telephone systems."""


@app.command()
def demo(
    as_json: AsJson = False,
    keep: Annotated[Path | None, typer.Option(help="Leave the servers' data in this directory.")] = None,
) -> None:
    """Tell the whole purchase, step by step, on real servers."""
    console = _console(quiet=as_json)
    with staged(settings(), keep) as stage:
        end = Story(stage, console).tell()
    if as_json:
        _print_json(end)
    elif keep:
        console.print(f"The data stay in {keep}: trunkline show entitlements acme --data {keep}", highlight=False)


@app.command()
def up(
    data: Annotated[Path, typer.Option("--data", help="Where embedded servers keep their data.")],
) -> None:
    """Run everything until it is stopped: servers (embedded, where no URL is set), HTTP, read models and reactions."""
    data.mkdir(parents=True, exist_ok=True)
    given = local_senders(settings(), data)
    with servers(given, data) as places, provider_of(given) as provider:
        outside = Outside(SystemClock(), provider, mailer_of(given))
        with whole(given, places, outside, link_secret(given, data)) as running:
            _console().print(f"Trunkline serves at {running.url}; stop it by Ctrl-C.", highlight=False)
            until_stopped()


@app.command()
def serve() -> None:
    """Run the HTTP application alone, until it is stopped; as many of these as there are requests for."""
    running_alone("serves", relays=False, works=False, serves=True)


@app.command()
def work() -> None:
    """Run reactions, commands and read models alone, until it is stopped; several share the load."""
    running_alone("works", relays=False, works=True)


@app.command()
def migrate() -> None:
    """Bring the database of TRUNKLINE_OWNER_URL up to date, and make the login of TRUNKLINE_DATABASE_URL there."""
    given = settings()
    if not (given.owner_url and given.database_url):
        raise WrongSetting(
            "Set TRUNKLINE_OWNER_URL to the database as its owner, and TRUNKLINE_DATABASE_URL to the same with the "
            "login that the program is to have."
        )
    prepared(given)


@app.command()
def quote(account: str, package: str, selections: list[str], data: Data = None, as_json: AsJson = False) -> None:
    """Show what an expansion would cost today: trunkline quote ACCOUNT PACKAGE extensions=25 custom_domain=1."""
    with _opened(data) as opened:
        work, today = UnitOfWork(opened.log), SystemClock().now().date()
        summary = order_summary(work, today, account, package, _selections(selections))
    _print_summary(summary, as_json)


@app.command()
def order(
    account: str, package: str, selections: list[str], data: Data = None, actor: As = None, as_json: AsJson = False
) -> None:
    """Order an expansion at today's prices: trunkline order ACCOUNT PACKAGE extensions=25. Prints the order's id."""
    expansion = OrderExpansion(
        order_id=f"order-{uuid4()}", account_id=account, package_id=package, selections=_selections(selections)
    )
    with _opened(data) as opened, _house(opened) as house:
        outcome = handle(expansion, house, _actor(actor, account), correlation_id=str(uuid4()))
    summary = outcome.desk.recorded[0].event.model_dump()["quote"]
    _print_summary(Quote.model_validate(summary), as_json)
    _console().print(expansion.order_id, highlight=False)


@app.command()
def send(name: str, message: str, data: Data = None, actor: As = None) -> None:
    """Send any command, as JSON (- reads it from standard input): trunkline send UpgradePbx '{"account_id": ...}'."""
    kinds = {kind.__name__: kind for kind in COMMANDS}
    if name not in kinds:
        raise UnknownCommand(f"There is no command {name}; the commands are {', '.join(sorted(kinds))}.")
    with _opened(data) as opened, _house(opened) as house:
        fields = _fields(sys.stdin.read() if message == "-" else message)
        if issubclass(kinds[name], Command):
            fields["at"] = house.clock.now()
        try:
            wish = kinds[name].model_validate(fields)
        except ValidationError as error:
            raise MalformedMessage(f"{name} cannot be read: {what_is_wrong(error)}.") from error
        outcome = handle(wish, house, _actor(actor, fields.get("account_id")), correlation_id=str(uuid4()))
    for recorded in outcome.desk.recorded:
        _console().print(f"{recorded.position} {recorded.event.TOPIC} {recorded.stream}", highlight=False)


@app.command()
def show(
    name: str,
    account: str,
    data: Data = None,
    as_of: Annotated[str | None, typer.Option(help="A position of the log, or a moment with its offset.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a read model of an account, now or as of any moment: trunkline show entitlements ACCOUNT."""
    if name not in VIEWS:
        raise UnknownCommand(f"There is no view {name}; the views are {', '.join(VIEWS)}.")
    with _opened(data) as opened:
        bring_up_to_date(opened.database_url, opened.log, CATCH_UP_S)
        answer = shown(VIEWS[name], account, opened.log, opened.database_url, as_of)
    if as_json:
        _print_json(answer)
    else:
        _console().print(table(VIEWS[name], answer))


@app.command()
def invoice(number: str, file: Path, data: Data = None) -> None:
    """Write an invoice, or a credit note, as it was issued, to a file. Looking at it uses no link up."""
    with _opened(data) as opened:
        bring_up_to_date(opened.database_url, opened.log, CATCH_UP_S)
        with connect(opened.database_url) as conn:
            found = stored(conn, BillingDocumentRow, number=number)
        document = opened.log.document(found[0].sha256) if found else None
    if document is None:
        raise UnknownCommand(f"There is no invoice {number}; trunkline show billing ACCOUNT lists them.")
    file.write_bytes(document.content)


@dataclass(frozen=True)
class _Opened:
    settings: Settings
    data: Path | None
    database_url: str
    log: Log


@contextmanager
def _opened(data: Path | None) -> Iterator[_Opened]:
    """The log that is meant."""
    given = settings()
    with database(given, data) as database_url, postgres_log(database_url) as log:
        yield _Opened(given, data, database_url, log)


@contextmanager
def _house(opened: _Opened) -> Iterator[House]:
    """The house over a log, without its HTTP application, projections and worker."""
    given = opened.settings
    with provider_of(given) as provider:
        outside = Outside(SystemClock(), provider, mailer_of(given))
        url = given.public_url or f"http://127.0.0.1:{given.http_port}"
        yield house_of(given, opened.log, outside, link_secret(given, opened.data), url)


def _selections(texts: list[str]) -> tuple[Selection, ...]:
    selections = []
    for text in texts:
        service, equals, quantity = text.partition("=")
        if equals and not quantity.lstrip("-").isdecimal():
            raise MalformedMessage(f"{text} is no selection; write a service and a whole number, as in extensions=25.")
        selections.append(Selection(service=service, quantity=int(quantity) if equals else 1))
    return tuple(selections)


def _actor(text: str | None, account_id: str | None) -> Actor:
    role, _, name = (text or f"admin:{getpass.getuser()}").partition(":")
    if role not in set(Role) or not name:
        raise MalformedMessage(f"{text} is nobody; write role:name, with one of the roles {', '.join(Role)}.")
    return Actor(Role(role), name, account_id)


def _fields(text: str) -> dict[str, Any]:
    try:
        fields = from_json(text)
    except ValueError as error:
        raise MalformedMessage(f"This is no JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise MalformedMessage("A command is a JSON object with its fields.")
    if "at" in fields:
        raise MalformedMessage("The time of a command is when it arrives; leave out its field at.")
    return fields


def _console(*, quiet: bool = False) -> Console:
    return Console(quiet=quiet, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def _print_json(value: object) -> None:
    sys.stdout.write(to_json(value, indent=2).decode() + "\n")


def _print_summary(summary: Quote, as_json: bool) -> None:
    if as_json:
        _print_json(summary)
    else:
        _console().print(summary_table(summary))


def main() -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except SAID as said:
        sys.stderr.write(f"{' '.join(str(said).split())}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
