"""The session of a command: the log that it works on, what handlers depend on, and the actor."""

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
As = Annotated[
    str | None, typer.Option("--as", help="The actor, as ROLE:NAME; by default the user of this machine as admin.")
]


class MalformedMessage(Refusal):
    """An argument is not valid."""


@dataclass(frozen=True)
class Opened:
    """An open log, and the settings that name it."""

    settings: Settings
    data: Path | None
    database_url: str
    log: Log


@contextmanager
def opened_log(data: Path | None) -> Iterator[Opened]:
    """Open the log of the settings or of ``data``. Its personal data is readable only with a master key."""
    given = settings()
    with (
        database(given, data) as database_url,
        postgres_log(database_url, master_key=master_key(given, data)) as log,
    ):
        yield Opened(given, data, database_url, log)


@contextmanager
def dependencies_over(opened: Opened) -> Iterator[Dependencies]:
    """Yield what handlers depend on, over a log; without HTTP application, projections and worker."""
    given = opened.settings
    with exported(), provider_of(given) as provider, mailer_of(given) as mailer:
        adapters = Adapters(SystemClock(), provider, mailer)
        url = given.public_url or f"http://127.0.0.1:{given.http_port}"
        yield dependencies_of(given, opened.log, adapters, link_secret(given, opened.data), url)


def actor_of(text: str | None, account_id: str | None) -> Actor:
    """Return the actor that a text names; without one, the user of the machine as admin.

    Raises:
        MalformedMessage: the text is not ROLE:NAME.
    """
    role, _, name = (text or f"admin:{user_name()}").partition(":")
    if role not in set(Role) or not 1 <= len(name) <= ACTOR_NAME_MAX or not name.isprintable():
        raise MalformedMessage(
            f"{text!r} is not a valid actor; use ROLE:NAME, with one of the roles {', '.join(Role)}."
        )
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
        raise MalformedMessage("The system has no name for you; use --as ROLE:NAME.") from error
