"""``trunkline relay``: publish the log to NATS as a process of its own, or publish all of it again."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Annotated

import typer

from handlers.cli.console import say
from handlers.contract.events import encoded
from handlers.runtime.secrets import master_key
from handlers.runtime.servers import broker_url, database
from infra.broker.nats import connected, provision
from infra.broker.relay import NAME, Relay, ask_for_rebuild
from infra.event_log.postgres_recorder import postgres_log
from infra.postgres.connections import connected_aside
from infra.postgres.positions import position_of
from infra.settings import settings

app = typer.Typer(help="Publish the log to NATS.", invoke_without_command=True)
REBUILT_EVERY_S = 0.2


@app.callback()
def relay(context: typer.Context) -> None:
    """Publish the log to NATS until stopped. Of several processes one is active; another takes over if it dies."""
    if context.invoked_subcommand is None:
        from handlers.cli.processes import running_alone  # noqa: PLC0415 - slow to load, and rebuild does not need it

        running_alone("relays", relays=True, works=False)


@app.command()
def rebuild(
    data: Annotated[Path | None, typer.Option("--data", help="The directory of trunkline up or demo --keep.")] = None,
) -> None:
    """Empty the stream of events and publish the whole log again: the same messages, byte for byte.

    The active relay does it; without one, this command. Consumers stay, and receive everything again.
    """
    given = settings()
    with (
        database(given, data) as database_url,
        broker_url(given, data) as nats_url,
        postgres_log(database_url, master_key=master_key(given, data)) as log,
    ):

        async def run() -> int:
            stopping = threading.Event()
            async with connected(nats_url) as client:
                await provision(client.jetstream(), {}, given.limits)
                async with connected_aside(database_url) as conn:
                    await asyncio.to_thread(ask_for_rebuild, conn)
                    head = await asyncio.to_thread(log.head)
                    relaying = asyncio.create_task(Relay(database_url, log, encoded).run(client, stopping))
                    # Another process may do it, so the saved position is polled.
                    while await asyncio.to_thread(position_of, conn, NAME) < head and not relaying.done():  # noqa: ASYNC110
                        await asyncio.sleep(REBUILT_EVERY_S)
                    stopping.set()
                    await relaying
            return head

        begun = time.monotonic()
        head = asyncio.run(run())
    say(f"Published {head} events again in {time.monotonic() - begun:.1f} s.")
