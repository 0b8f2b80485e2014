"""``trunkline audit``: what happened, what was true when, and why; and proof that nobody has changed it.

Everything but checkpoints and exports, which are signed, works with a login that has only the role of the auditor.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from heapq import merge
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic_core import from_json, to_json
from rich.table import Table

from domain.messages import Refusal
from handlers.cli.as_of import AsOf, moment, position, position_as_of
from handlers.cli.console import AsJson, Data, bar, console, draw, print_json, say, until_pipe_closes
from handlers.cli.explain import Step, aggregate, explanation, name_of
from handlers.cli.export import Export, export_of
from handlers.cli.interpreter import INTERRUPTED
from handlers.cli.verification import Verification
from handlers.runtime.checkpoint_signing import CannotSign, Signer, alone, sign, sign_fully
from handlers.runtime.secrets import SIGNING_KEY, checkpoint_file, signer_of
from handlers.runtime.servers import Servers, database, database_and_broker
from infra.audit.auditor import Auditor, Wanted, auditing
from infra.audit.checkpoints import Checkpoint, NoCheckpoint, checkpoints_in
from infra.audit.ed25519 import PublicKey, SigningKey, WrongKey
from infra.audit.export_bundle import verified
from infra.audit.hash_chain import ChainBroken, Walk
from infra.audit.merkle import NotProven
from infra.audit.published_checkpoints import checkpoints_at, provision_checkpoints, published_checkpoints
from infra.clock import SystemClock
from infra.event_log.mapper import UnreadableEvent
from infra.event_log.topics import topics
from infra.event_log.upcasts import UPCASTS
from infra.settings import Settings, WrongSetting, settings

REPORTED_ERRORS = (ChainBroken, NotProven, NoCheckpoint, WrongKey, CannotSign, UnreadableEvent)
"""Errors that these commands report in one sentence, in addition to the common ones."""

LINES = 500
"""Events in one table: a longer answer is printed as several, so it may be of any length."""

WAIT_S = 10.0
LIMIT_DIGITS_MAX = 18
app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="What happened, why, and proof that nobody changed it."
)
Keys = Annotated[
    list[Path] | None,
    typer.Option("--key", help="A public key that checkpoints were signed with; repeatable."),
]


class NotWritten(Refusal):
    """A file cannot be written."""


class UnknownQuestion(Refusal):
    """The log does not have what is asked for."""


# --- the log as a whole


@app.command()
def verify(
    *,
    data: Data = None,
    key: Keys = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="The file of signed checkpoints; by default that of the settings or of --data.")
    ] = None,
    published: Annotated[bool, typer.Option("--published", help="Also check the checkpoints on the broker.")] = False,
    from_checkpoint: Annotated[
        bool,
        typer.Option(
            "--from-checkpoint", help="Continue from the last checkpoint that an earlier verification passed."
        ),
    ] = False,
    state: Annotated[
        Path | None,
        typer.Option(help="The file for the progress of the verification; by default beside the checkpoints."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify every row, hash, version and checkpoint of the log. Exit status 1 if one is wrong; names the first."""
    given = settings()
    file = checkpoints or checkpoint_file(given, data)
    if file and not file.exists() and not (checkpoints or given.checkpoint_file):
        file = None  # a default file need not exist
    kept = state or (file.parent / f"{file.name}.verified" if file else None)
    if from_checkpoint and kept is None:
        raise NoCheckpoint("There is no checkpoint to continue from; give --checkpoints FILE or --state FILE.")
    keys = _keys(given, data, key)
    signed: list[Iterable[Checkpoint]] = [checkpoints_in(file)] if file else []
    if published:
        signed.append(_published(given, data))
    if not keys and (signed or from_checkpoint):
        raise WrongSetting("Give --key PUBLIC.pem, the public half of the key that signed the checkpoints.")
    verification = Verification(keys, _each_once(merge(*signed, key=lambda one: one.position)), kept)
    with database(given, data) as database_url, auditing(database_url) as auditor:
        try:
            begin = verification.resumed(auditor) if from_checkpoint else Walk()
            walk = verification.run(auditor, begin)
        except KeyboardInterrupt:
            sys.stderr.write(f"{verification.interrupted()}\n")
            raise typer.Exit(INTERRUPTED) from None
        except ChainBroken as broken:
            if not as_json:
                raise
            print_json({"ok": False, "position": broken.position, "reason": broken.reason})
            raise typer.Exit(1) from None
        finally:
            verification.keep()
    if as_json:
        print_json(verification.result(begin_at=verification.begun, walk=walk))
    else:
        say(verification.report(walk))


def _each_once(checkpoints: Iterable[Checkpoint]) -> Iterator[Checkpoint]:
    """Yield checkpoints in order of positions; one that is in the file and on the broker, once."""
    for _, at_one_position in groupby(checkpoints, key=lambda one: one.position):
        yield from {one.signature: one for one in at_one_position}.values()


def _keys(given: Settings, data: Path | None, paths: list[Path] | None) -> list[PublicKey]:
    """Return the given public keys; by default the one of the settings or of the data."""
    if paths:
        return [PublicKey.read(path) for path in paths]
    beside = data / SIGNING_KEY if data and not given.database_url else None
    path = given.signing_key or (beside if beside and beside.exists() else None)
    return [SigningKey.read(path).public] if path else []


def _published(given: Settings, data: Path | None) -> list[Checkpoint]:
    async def read(nats_url: str) -> list[Checkpoint]:
        async with checkpoints_at(nats_url) as jetstream:
            return await published_checkpoints(jetstream)

    if given.nats_url:
        return asyncio.run(read(given.nats_url))
    with database_and_broker(given, data) as servers:
        return asyncio.run(read(servers.nats_url))


@app.command()
def checkpoint(data: Data = None, as_json: AsJson = False) -> None:
    """Sign the end of the log, publish the checkpoint, and append it to the file of checkpoints."""
    given = settings()
    signer = _signer(given, data)

    async def make(servers: Servers) -> Checkpoint | None:
        async with checkpoints_at(servers.nats_url) as jetstream:
            await provision_checkpoints(jetstream, given.limits)
            return await sign(signer, servers.database_url, jetstream, SystemClock().now(), WAIT_S)

    with database_and_broker(given, data) as servers:
        made = asyncio.run(make(servers))
    if made is None:
        raise UnknownQuestion("The log is empty; there is nothing to sign.")
    if as_json:
        print_json(made.model_dump(mode="json", exclude_none=True))
    else:
        say(_signed(made))


def _signed(made: Checkpoint) -> str:
    return (
        f"Position {made.position:,} is signed: hash {made.hash}, {made.time:%Y-%m-%d %H:%M:%S}, key {made.key[:16]}..."
    )


def _signer(given: Settings, data: Path | None) -> Signer:
    if data is not None and not given.database_url and not (data / "postgres").is_dir():
        raise WrongSetting(f"There is no data of Trunkline in {data}; trunkline demo --keep {data} creates some.")
    signer = signer_of(given, data)
    if signer is None:
        raise WrongSetting(
            "TRUNKLINE_SIGNING_KEY is missing: a PEM file; openssl genpkey -algorithm ed25519 -out FILE creates one."
        )
    return signer


@app.command(name="public-key")
def public_key(file: Annotated[Path | None, typer.Argument()] = None, data: Data = None) -> None:
    """Print the public key of checkpoints, or write it to a file."""
    pem = _signer(settings(), data).key.public.pem()
    if file is None:
        sys.stdout.write(pem.decode())
    else:
        _write(file, [pem])


def _write(file: Path, text: Iterable[bytes]) -> None:
    """Write a file atomically; write into it if it is a device or a pipe."""
    try:
        target = file.resolve()
        if target.exists() and not target.is_file():
            with target.open("wb") as out:
                out.writelines(text)
            return
        beside = target.parent / f"{target.name}.{os.getpid()}"
        try:
            with beside.open("wb") as out:
                out.writelines(text)
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise NotWritten(f"{file} cannot be written: {error.strerror}.") from error


# --- what happened


@app.command()
def events(  # noqa: PLR0913 - one argument a filter
    *,
    stream: Annotated[str | None, typer.Option(help="Only of this stream: order-order-1.")] = None,
    account: Annotated[str | None, typer.Option(help="Only of this account.")] = None,
    type_: Annotated[str | None, typer.Option("--type", help="Only of this name or topic: PaymentCaptured.")] = None,
    actor: Annotated[str | None, typer.Option(help="Only caused by this actor: distributor:dora.")] = None,
    from_time: Annotated[str | None, typer.Option(help="Recorded at this time or later.")] = None,
    to_time: Annotated[str | None, typer.Option(help="Recorded at this time or earlier.")] = None,
    from_position: Annotated[str | None, typer.Option(help="At this position or after it.")] = None,
    to_position: Annotated[str | None, typer.Option(help="At this position or before it.")] = None,
    limit: Annotated[str | None, typer.Option(help="The largest number of events.")] = None,
    data: Data = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each as a line of JSON.")] = False,
) -> None:
    """List events in order of positions, as they are stored: personal fields are ciphertext."""
    times = {name: moment(text) for name, text in (("from_time", from_time), ("to_time", to_time)) if text is not None}
    most = None if limit is None else _limit(limit)
    with database(settings(), data) as database_url, auditing(database_url) as auditor:
        wanted = Wanted(
            stream=stream,
            account=account,
            topics=None if type_ is None else _topics(auditor, type_),
            actor=actor,
            from_position=None if from_position is None else position(from_position, auditor),
            to_position=None if to_position is None else position(to_position, auditor),
            **times,
        )
        for kind, value in (("stream", stream), ("account", account)):
            if value is not None:
                _known(auditor, kind, value)
        found = auditor.events(wanted, most)
        with until_pipe_closes():
            (_print_lines if as_json else _print_tables)(found)


def _print_lines(found: Iterator[dict[str, Any]]) -> None:
    for row in found:
        shown = {name: value for name, value in row.items() if name not in ("previous", "hash", "state")}
        try:
            state = from_json(row["state"])
        except ValueError:
            state = row["state"].decode(errors="backslashreplace")
        line = to_json(shown | {"hash": row["hash"].hex(), "state": state})
        sys.stdout.write(line.decode() + "\n")


def _print_tables(found: Iterator[dict[str, Any]]) -> None:
    if (first := next(found, None)) is None:
        say("No matching events.")
        return
    found = chain([first], found)
    while rows := list(islice(found, LINES)):
        drawn = Table()
        for column in ("position", "recorded at", "stream", "version", "event", "account", "actor"):
            drawn.add_column(column, overflow="fold", no_wrap=column in ("position", "recorded at", "version"))
        for row in rows:
            drawn.add_row(
                f"{row['position']}",
                f"{row['recorded_at']:%Y-%m-%d %H:%M:%S}",
                row["stream"],
                f"{row['version']}",
                row["topic"],
                row["account_id"] or "",
                row["actor"],
            )
        console().print(drawn)


def _known(auditor: Auditor, kind: str, value: str) -> None:
    if not auditor.knows(Wanted(account=value) if kind == "account" else Wanted(stream=value)):
        raise UnknownQuestion(f"The log has no event of {kind} {value}.")


def _topics(auditor: Auditor, name: str) -> list[str]:
    """Return the topics of an event name, in all versions; or a topic itself."""
    found = [topic for topic in (*topics(), *UPCASTS) if name in (topic, name_of(topic))]
    if not found and auditor.knows(Wanted(topics=[name])):
        return [name]  # of the eventsourcing library, or of a later version
    if not found:
        raise UnknownQuestion(f"There is no event {name}; write a name or a topic, as PaymentCaptured.")
    return found


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > LIMIT_DIGITS_MAX or not int(text):
        raise UnknownQuestion(f"{text} is not a limit; write a whole number from 1.")
    return int(text)


# --- what was true, and why


@app.command()
def show(stream: str, as_of: AsOf = None, data: Data = None, as_json: AsJson = False) -> None:
    """Show an aggregate, now or as of a time or position: trunkline audit show order-order-1 --as-of 42."""
    with database(settings(), data) as database_url, auditing(database_url) as auditor:
        found = aggregate(auditor, stream, position_as_of(auditor, as_of))
    state = from_json(to_json(_in_order(found.state), fallback=_fallback))
    if as_json:
        print_json(asdict(found) | {"state": state})
        return
    drawn = Table("field", "value")
    for field, value in state.items():
        drawn.add_row(field, value if isinstance(value, str) else to_json(value, indent=1).decode())
    where = f"{stream} version {found.version}, position {found.position}, {found.recorded_at:%Y-%m-%d %H:%M:%S}"
    say(where)
    draw(drawn)


def _in_order(state: Any) -> dict[str, Any]:  # noqa: ANN401 - of any aggregate
    """Return the fields of a state; sets are sorted, so that the output is stable."""
    named = {field.name: getattr(state, field.name) for field in fields(state)}
    return {name: sorted(value, key=str) if isinstance(value, frozenset) else value for name, value in named.items()}


def _fallback(value: object) -> str:
    """Return what JSON has no type for, as a text."""
    return value.__name__ if isinstance(value, type) else str(value)


@app.command()
def explain(
    account: str,
    service: str,
    package: Annotated[str | None, typer.Option(help="Only of this package.")] = None,
    as_of: AsOf = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Explain an entitlement: each event that changed it, who caused it, and by how much."""
    with database(settings(), data) as database_url, auditing(database_url) as auditor:
        steps = explanation(auditor, account, service, package, position_as_of(auditor, as_of))
    if as_json:
        print_json([asdict(step) for step in steps])
        return
    for package_id in dict.fromkeys(step.package_id for step in steps):
        draw(_explained(service, package_id, [step for step in steps if step.package_id == package_id]))


def _explained(service: str, package_id: str, steps: list[Step]) -> Table:
    last = steps[-1]
    drawn = Table(
        title=f"{service} of {package_id}: {last.total:,}, of which {last.allocated:,} are allocated",
        title_justify="left",
    )
    for column in ("position", "recorded at", "event", "actor", "cause"):
        drawn.add_column(column, overflow="fold", no_wrap=column in ("position", "recorded at"))
    for column in ("total", "", "allocated", ""):
        drawn.add_column(column, justify="right", no_wrap=True)
    for step in steps:
        drawn.add_row(
            f"{step.position}",
            f"{step.recorded_at:%Y-%m-%d %H:%M:%S}",
            name_of(step.topic),
            step.actor,
            step.cause or "",
            _change(step.total_change),
            f"{step.total:,}",
            _change(step.allocated_change),
            f"{step.allocated:,}",
        )
    return drawn


def _change(by: int) -> str:
    return f"{by:+,}" if by else ""


# --- exports --------------


@app.command()
def export(account: str, file: Path, data: Data = None) -> None:
    """Export all events of an account as a bundle that proves itself: see verify-export."""
    given = settings()
    signer = _signer(given, data)

    async def make(servers: Servers) -> tuple[Checkpoint, Export]:
        async with checkpoints_at(servers.nats_url) as jetstream, alone(servers.database_url, WAIT_S) as auditor:
            await provision_checkpoints(jetstream, given.limits)
            _known(auditor, "account", account)
            with bar("read") as at:
                found = await asyncio.to_thread(export_of, auditor, account, at)
            made = await sign_fully(signer, jetstream, SystemClock().now(), found.head, found.trees)
            await asyncio.to_thread(_write, file, found.text(auditor, made))
            return made, found

    with database_and_broker(given, data) as servers:
        made, found = asyncio.run(make(servers))
    said = f"{found.events:,} events of {len(found.accounts.shares):,} streams are in {file}."
    say(f"{said}\n{_signed(made)}")


@app.command(name="verify-export")
def verify_export(file: Path, key: Keys = None, as_json: AsJson = False) -> None:
    """Verify a bundle with nothing but a public key: its events are in the log, unchanged and complete."""
    if not key:
        raise WrongSetting("Give --key PUBLIC.pem, the public half of the key that signs the log's checkpoints.")
    keys = [PublicKey.read(path) for path in key]
    try:
        text = file.read_bytes()
    except OSError as error:
        raise NotProven(f"{file} cannot be read: {error.strerror}.") from error
    try:
        proven = verified(text, keys, str(file))
    except (NotProven, WrongKey) as error:
        if not as_json:
            raise
        print_json({"ok": False, "reason": str(error)})
        raise typer.Exit(1) from None
    at = proven.checkpoint
    if as_json:
        print_json(
            {
                "ok": True,
                "account": proven.account,
                "events": proven.events,
                "position": at.position,
                "time": at.time,
                "key": at.key,
                "streams": [share.model_dump() | {"whole": share.whole} for share in proven.streams],
            }
        )
        return
    parts = [share for share in proven.streams if not share.whole]
    say(
        f"{proven.events:,} events of {proven.account} are in the log as of position {at.position:,}, signed "
        f"{at.time:%Y-%m-%d %H:%M:%S} with key {at.key[:16]}...\nThey are all that the account had: "
        f"{len(proven.streams):,} streams, none with an event left out."
    )
    for share in parts:
        span = share.last - share.first + 1
        say(f"{share.stream} is shared with others: {share.count:,} of its {span:,} events are the account's.")
