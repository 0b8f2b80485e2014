"""What a command of the command line works on: the log that is meant, a house over it, and whoever asks."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from domain.messages import Refusal
from handlers.context import Actor, Role
from handlers.dependencies import Dependencies
from handlers.runtime.adapters import Adapters, dependencies_of, mailer_of, provider_of
from handlers.runtime.secrets import link_secret, master_key
from handlers.runtime.servers import database
from infra.clock import SystemClock
from infra.event_log.log import Log
from infra.event_log.postgres_recorder import postgres_log
from infra.settings import Settings, settings
from infra.tracing import exported
from projections.maintenance.runner import bring_up_to_date

ACTOR_NAME_MAX = 100
"""Characters."""

CATCH_UP_S = 60.0
As = Annotated[str | None, typer.Option("--as", help="Who asks, as role:name; an admin where not said.")]


class MalformedMessage(Refusal):
    """What was written on the command line is not what it has to be."""


@dataclass(frozen=True)
class Opened:
    """A log, and the settings that it was found by."""

    settings: Settings
    data: Path | None
    database_url: str
    log: Log


@contextmanager
def opened_log(data: Path | None) -> Iterator[Opened]:
    """The log that is meant. Personal data of it can be read where there is a master key; all else, always."""
    given = settings()
    with (
        database(given, data) as database_url,
        postgres_log(database_url, master_key=master_key(given, data)) as log,
    ):
        yield Opened(given, data, database_url, log)


@contextmanager
def dependencies_over(opened: Opened) -> Iterator[Dependencies]:
    """What handlers need, over a log; without HTTP application, projections and worker."""
    given = opened.settings
    with exported(), provider_of(given) as provider, mailer_of(given) as mailer:
        adapters = Adapters(SystemClock(), provider, mailer)
        url = given.public_url or f"http://127.0.0.1:{given.http_port}"
        yield dependencies_of(given, opened.log, adapters, link_secret(given, opened.data), url)


def actor_of(text: str | None, account_id: str | None) -> Actor:
    """Whoever asks; the user of the machine, as an admin, where nobody is named.

    Raises:
        MalformedMessage: nobody is like that.
    """
    role, _, name = (text or f"admin:{user_name()}").partition(":")
    if role not in set(Role) or not 1 <= len(name) <= ACTOR_NAME_MAX or not name.isprintable():
        raise MalformedMessage(f"{text} is nobody; write role:name, with one of the roles {', '.join(Role)}.")
    return Actor(Role(role), name, account_id)


def catch_up(opened: Opened) -> None:
    """Bring the read models up to date with the log, for at most `CATCH_UP_S`."""
    bring_up_to_date(opened.database_url, opened.log, CATCH_UP_S)


def user_name() -> str:
    """Return the name of the machine's user.

    Raises:
        MalformedMessage: the system has none.
    """
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:  # before Python 3.13, and since
        raise MalformedMessage("The system has no name for you; say who asks: --as role:name.") from error
