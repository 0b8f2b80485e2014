"""The command line. An error is one sentence and exit status 1, and nothing is left half-written."""

from __future__ import annotations

import io
import logging
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer
from pydantic_core import from_json

from domain.invoice import INVOICE
from domain.messages import Refusal
from domain.quote import Quote, Selection
from handlers.cli import audit, dead_letters, find, privacy, projections, relay
from handlers.cli.console import AsJson, Data, console, draw, print_json, say
from handlers.cli.interpreter import INTERRUPTED
from handlers.cli.session import As, MalformedMessage, actor_of, catch_up, dependencies_over, opened_log
from handlers.cli.views import VIEWS, shown, summary_table, table
from handlers.commands import COMMANDS
from handlers.demo.narrator import StoryBroken
from handlers.dispatch import handle
from handlers.requests import OrderExpansion, parse
from handlers.runtime.adapters import Adapters, mailer_of, provider_of
from handlers.runtime.secrets import local_senders, secrets_of, signer_of
from handlers.runtime.servers import open_servers, prepared
from handlers.use_cases.purchase import order_summary
from infra.broker.dead_letters import NoSuchLetter
from infra.broker.nats import BrokerUnavailable
from infra.broker.relay import AnotherLog, OutOfStep
from infra.clock import SystemClock
from infra.event_log.log import LogUnavailable
from infra.event_log.unit_of_work import UnitOfWork
from infra.mail.smtp import MailNotSent
from infra.payments.provider import PaymentProviderError
from infra.postgres.connections import DatabaseUnavailable, connect
from infra.servers.supervisor import ServerDidNotStart
from infra.settings import WrongSetting, settings
from projections.billing import BillingDocumentRow
from projections.engine.rows import stored

REPORTED_ERRORS = (
    Refusal,
    WrongSetting,
    DatabaseUnavailable,
    BrokerUnavailable,
    LogUnavailable,
    ServerDidNotStart,
    PaymentProviderError,
    MailNotSent,
    StoryBroken,
    *audit.REPORTED_ERRORS,
    NoSuchLetter,
    OutOfStep,
    AnotherLog,
)
WHOLE_NUMBER = re.compile(r"-?[0-9]{1,20}")
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
for name, group in (
    ("audit", audit),
    ("dead-letters", dead_letters),
    ("find", find),
    ("privacy", privacy),
    ("projections", projections),
    ("relay", relay),
):
    app.add_typer(group.app, name=name)


class UnknownCommand(Refusal):
    """The command line has no such command, view or document."""


class UnusablePath(Refusal):
    """A given file or directory cannot be used."""


@app.callback()
def trunkline() -> None:
    """Trunkline, the order backend for sellers of hosted telephone systems."""


@app.command()
def demo(
    as_json: AsJson = False,
    keep: Annotated[Path | None, typer.Option(help="Keep the data of the servers in this directory.")] = None,
) -> None:
    """Run the demo: a whole purchase, step by step, on real servers."""
    from handlers.demo.environment import demo_environment  # noqa: PLC0415 - a third of the loading time, and most commands do not need it
    from handlers.demo.story import Story  # noqa: PLC0415 - as above

    given = settings()
    if keep:
        _make("--keep", keep)
    with demo_environment(given, keep) as environment:
        story = Story(environment, console(quiet=as_json))
        end = story.tell()
    if as_json:
        print_json(end)
    elif keep:
        look = f"trunkline show entitlements {story.account_id} --data {keep}"
        say(f"The data is in {keep}; look around with: {look}")


@app.command()
def up(
    data: Annotated[Path, typer.Option("--data", help="The directory for the data of embedded servers.")],
) -> None:
    """Run everything until stopped: servers (embedded if no URL is set), HTTP, read models and reactions."""
    from handlers.cli.processes import until_stopped  # noqa: PLC0415 - as above
    from handlers.runtime.composition import trunkline as whole  # noqa: PLC0415 - as above

    _make("--data", data)
    given = local_senders(settings(), data)
    with open_servers(given, data) as servers, provider_of(given) as provider, mailer_of(given) as mailer:
        adapters = Adapters(SystemClock(), provider, mailer)
        with whole(given, servers, adapters, secrets_of(given, data), signer_of(given, data)) as running:
            say(f"Trunkline serves at {running.url}; stop it with Ctrl-C.")
            until_stopped()


@app.command()
def serve() -> None:
    """Run the HTTP application alone, until stopped. Run several to share the load."""
    from handlers.cli.processes import running_alone  # noqa: PLC0415 - as above

    running_alone("serves", relays=False, works=False, serves=True)


@app.command()
def work() -> None:
    """Run reactions, commands and read models alone, until stopped. Run several to share the load."""
    from handlers.cli.processes import running_alone  # noqa: PLC0415 - as above

    running_alone("works", relays=False, works=True)


@app.command()
def migrate() -> None:
    """Migrate the database of TRUNKLINE_OWNER_URL, and create the login of TRUNKLINE_DATABASE_URL."""
    given = settings()
    if not (given.owner_url and given.database_url):
        raise WrongSetting(
            "Set TRUNKLINE_OWNER_URL to the address of the database for its owner, and TRUNKLINE_DATABASE_URL to its "
            "address with the login that the program is to use."
        )
    prepared(given)


@app.command()
def quote(account: str, package: str, selections: list[str], data: Data = None, as_json: AsJson = False) -> None:
    """Show what an expansion would cost today: trunkline quote ACCOUNT PACKAGE extensions=25 custom_domain=1."""
    with opened_log(data) as opened:
        work, today = UnitOfWork(opened.log), SystemClock().now().date()
        summary = order_summary(work, today, account, package, _selections(selections))
    if as_json:
        print_json(summary)
    else:
        draw(summary_table(summary))


@app.command()
def order(
    account: str, package: str, selections: list[str], data: Data = None, actor: As = None, as_json: AsJson = False
) -> None:
    """Order an expansion at today's prices: trunkline order ACCOUNT PACKAGE extensions=25. Prints the order's id."""
    order_id = f"order-{uuid4()}"
    fields = {"order_id": order_id, "account_id": account, "package_id": package}
    expansion = parse(OrderExpansion, fields | {"selections": _selections(selections)}, SystemClock().now())
    with opened_log(data) as opened, dependencies_over(opened) as dependencies:
        outcome = handle(expansion, dependencies, actor_of(actor, account), correlation_id=str(uuid4()))
    summary = Quote.model_validate(outcome.context.recorded[0].event.model_dump()["quote"])
    if as_json:
        print_json({"order_id": order_id, "quote": summary})
    else:
        draw(summary_table(summary))
        say(order_id)


@app.command()
def send(name: str, message: str, data: Data = None, actor: As = None) -> None:
    """Send any command, as JSON (- reads it from standard input): trunkline send UpgradePbx '{"account_id": ...}'."""
    kinds = {kind.__name__: kind for kind in COMMANDS}
    if name not in kinds:
        raise UnknownCommand(f"There is no command {name}; the commands are {', '.join(sorted(kinds))}.")
    with opened_log(data) as opened, dependencies_over(opened) as dependencies:
        fields = _fields(sys.stdin.read() if message == "-" else message)
        command = parse(kinds[name], fields, dependencies.clock.now())
        outcome = handle(command, dependencies, actor_of(actor, fields.get("account_id")), correlation_id=str(uuid4()))
    for recorded in outcome.context.recorded:
        say(f"{recorded.position} {recorded.event.TOPIC} {recorded.stream}")


@app.command()
def show(
    name: str,
    account: str,
    data: Data = None,
    as_of: Annotated[str | None, typer.Option(help="A position of the log, or a time with its UTC offset.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a read model of an account, now or as of any time: trunkline show entitlements ACCOUNT."""
    if name not in VIEWS:
        raise UnknownCommand(f"There is no view {name}; the views are {', '.join(VIEWS)}.")
    with opened_log(data) as opened:
        catch_up(opened)
        answer = shown(VIEWS[name], account, opened.log, opened.database_url, as_of)
    if as_json:
        print_json(answer)
    else:
        draw(table(VIEWS[name].columns, answer))


@app.command()
def invoice(number: str, file: Path, data: Data = None) -> None:
    """Write an invoice or credit note to a file, as it was issued. This uses no link."""
    with opened_log(data) as opened:
        catch_up(opened)
        with connect(opened.database_url) as conn:
            found = stored(conn, BillingDocumentRow, number=number)
        document = opened.log.document(found[0].sha256) if found else None
    if not found:
        raise UnknownCommand(f"There is no invoice {number}; trunkline show billing ACCOUNT lists them.")
    if document is None:
        stream = INVOICE.stream(found[0].document_id)
        raise UnknownCommand(
            f"The document of {number} was deleted; trunkline audit events --stream {stream} shows when."
        )
    with _usable("FILE", file):
        file.write_bytes(document.content)


def _make(option: str, directory: Path) -> None:
    with _usable(option, directory):
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()  # raises if we may not write there


@contextmanager
def _usable(option: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        sentence = f"{option} {path} cannot be used, {reason}; name a path that you may write to."
        raise UnusablePath(sentence) from error


def _selections(texts: list[str]) -> tuple[Selection, ...]:
    selections = []
    for text in texts:
        service, equals, quantity = text.partition("=")
        if equals and not WHOLE_NUMBER.fullmatch(quantity):
            raise MalformedMessage(
                f"{text} is not a selection; write a service and a whole number, as in extensions=25."
            )
        selections.append(Selection(service=service, quantity=int(quantity) if equals else 1))
    return tuple(selections)


def _fields(text: str) -> dict[str, Any]:
    try:
        fields = from_json(text.encode(errors="surrogateescape"))  # the original bytes, UTF-8 or not
    except ValueError as error:
        raise MalformedMessage(f"The command is not valid JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise MalformedMessage("A command is a JSON object with its fields, in braces.")
    return fields


def main() -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character gets a question mark
    try:
        app()
    except UnicodeEncodeError as error:
        sys.stderr.write(f"{error.object[:100]!a} is not UTF-8 text.\n")
        sys.exit(1)
    except REPORTED_ERRORS as reported:
        sys.stderr.write(f"{' '.join(str(reported).split())}\n")
        sys.exit(1)
    except OSError as error:  # of a file or socket; the text names it
        sys.stderr.write(f"The operating system refused: {' '.join(str(error).split())}.\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
