"""Settings from the environment: variables that begin with ``TRUNKLINE_``.

``python -m infra.settings`` writes ``docs/settings.md`` from the descriptions below.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, StringConstraints, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from domain.account import Email
from domain.invoice import Seller
from domain.messages import Identifier, Text
from domain.price_list import Country, SellerCode

WebAddress = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/?#]+[^\s?#]*$")]
"""The base URL of something served over HTTP, without a query: paths are appended to it."""


def _odd(number: int) -> int:
    if number % 2 == 0:
        raise PydanticCustomError("replicas", "2 replicas stop if either server does; use 1 or 3")
    return number


Replicas = Annotated[int, Field(ge=1, le=3), AfterValidator(_odd)]
Size = Annotated[int, Field(ge=0)]


class WrongSetting(Exception):
    """A setting is missing or has an invalid value. The text names it."""


MASTER_KEY_BYTES = 32


def decoded_master_key(text: SecretStr) -> bytes:
    """Return the bytes of a master key, or of several, concatenated.

    Raises:
        PydanticCustomError: one of them is not 32 bytes in base64.
    """
    try:
        keys = [b64decode(each.strip(), validate=True) for each in text.get_secret_value().split(",")]
    except ValueError:
        keys = [b""]
    if any(len(key) != MASTER_KEY_BYTES for key in keys):
        raise PydanticCustomError(
            "master_key",
            "it has to be 32 bytes in base64; openssl rand -base64 32 generates them. To replace a key, set both, "
            "separated by a comma",
        )
    return b"".join(keys)


def _master_key(text: SecretStr) -> SecretStr:
    decoded_master_key(text)
    return text


def _file(path: Path) -> Path:
    if path == Path():
        raise PydanticCustomError("file", "it is empty; name a file")
    return path


File = Annotated[Path, AfterValidator(_file)]


@dataclass(frozen=True)
class Limits:
    """Maximum size in bytes and age in days of each stream (0: unlimited), and its number of replicas."""

    replicas: int = 1
    events_max_bytes: int = 0
    events_max_age_days: int = 0
    commands_max_bytes: int = 0
    dead_letters_max_bytes: int = 0
    dead_letters_max_age_days: int = 0


EVERY_ACCOUNT = "*"


class SenderRole(StrEnum):
    """What a sender may ask for: the commands of this role."""

    SERVICE = "service"
    DISTRIBUTOR = "distributor"
    ACCOUNT_MANAGER = "account_manager"
    ADMIN = "admin"


class Sender(BaseModel):
    """A service that may send commands and ask for history."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Identifier
    secret: SecretStr = Field(min_length=32)
    role: SenderRole = SenderRole.SERVICE
    accounts: tuple[str, ...] = ()
    """The accounts that it may act for; `EVERY_ACCOUNT` means all of them."""

    def may_act_for(self, account_id: str | None) -> bool:
        """Whether it may act for an account. Only a sender for every account may leave the account out (None)."""
        return EVERY_ACCOUNT in self.accounts or (account_id is not None and account_id in self.accounts)


class Security(StrEnum):
    """How a connection is encrypted: not at all, by STARTTLS (RFC 3207), or by TLS from its start (RFC 8314)."""

    NONE = "none"
    STARTTLS = "starttls"
    TLS = "tls"


class Settings(BaseSettings):
    """Every setting. If a server has no address, commands that support it start an embedded one."""

    model_config = SettingsConfigDict(env_prefix="TRUNKLINE_", frozen=True, extra="ignore", hide_input_in_errors=True)

    database_url: str | None = Field(
        None,
        description="PostgreSQL 18 to use instead of the embedded one, as the program's login, which can neither "
        "change nor delete events: `postgresql://user:password@host:port/database`.",
    )
    owner_url: str | None = Field(
        None,
        description="The same database as its owner, who may create roles and schemas. `trunkline migrate` uses it to "
        "update the schema and to create the program's login; `privacy rewrap` and `privacy delete-documents` need it.",
    )
    nats_url: str | None = Field(
        None,
        description="NATS with JetStream to use instead of the embedded one: `nats://user:password@host:port`. "
        "For a cluster, list its servers, separated by commas.",
    )
    nats_replicas: Replicas = Field(1, description="The number of NATS servers that store each stream: 1 or 3.")
    events_max_bytes: Size = Field(0, description="The maximum size of the event stream; 0 means unlimited.")
    events_max_age_days: Size = Field(0, description="How long the event stream keeps events; 0 means forever.")
    commands_max_bytes: Size = Field(0, description="The maximum size of the command stream; 0 means unlimited.")
    dead_letters_max_bytes: Size = Field(0, description="The maximum size of the dead letters; 0 means unlimited.")
    dead_letters_max_age_days: Size = Field(0, description="How long dead letters are kept; 0 means forever.")
    senders: tuple[Sender, ...] = Field(
        (),
        description="The services that may send commands and ask for history, as JSON: "
        '`[{"name": "shop", "secret": "...", "role": "service", "accounts": ["*"]}]`. A secret has 32 characters or '
        "more; the roles are service, distributor, account_manager and admin; `*` means every account.",
    )
    smtp_host: str = Field("127.0.0.1", description="The mail server that accepts our mail.")
    smtp_port: Annotated[int, Field(ge=1, le=65535)] = Field(25, description="The mail server's port.")
    smtp_user: str | None = Field(None, description="The user to log in with, if the mail server requires a login.")
    smtp_password: SecretStr | None = Field(None, description="That user's password.")
    smtp_security: Security = Field(
        Security.NONE, description="How the connection to the mail server is encrypted: `none`, `starttls` or `tls`."
    )
    mail_from: Email = Field(
        "billing@seller.example", description="The sender's address of mails, and the seller's on invoices."
    )
    public_url: WebAddress | None = Field(
        None,
        description="The URL under which customers reach the HTTP application, if not at its port of 127.0.0.1. "
        "Links in mails begin with it.",
    )
    http_port: Annotated[int, Field(ge=0, le=65535)] = Field(
        8000,
        description="The port of 127.0.0.1 that serves the HTTP application, `/health` and `/metrics`; 0 picks a free "
        "one.",
    )
    link_secret: SecretStr | None = Field(
        None,
        min_length=32,
        description="The secret that invoice links are derived from: 32 characters or more, the same for every "
        "process. Embedded servers generate their own.",
    )
    master_key: Annotated[SecretStr, AfterValidator(_master_key)] | None = Field(
        None,
        description="Wraps the keys of personal data: 32 bytes in base64, the same for every process. While a key is "
        "replaced, several, separated by commas: the first one wraps, each one unwraps ([privacy](privacy.md)). "
        "Required with a database of your own; embedded servers generate theirs.",
    )
    signing_key: File | None = Field(
        None,
        description="The file (PEM) with the Ed25519 private key that signs checkpoints of the log, the same key for "
        "every process ([audit](audit.md)). Embedded servers generate their own.",
    )
    checkpoint_file: File | None = Field(
        None,
        description="The file that signed checkpoints are appended to. Embedded servers have their own.",
    )
    link_hours: Annotated[int, Field(ge=1, le=720)] = Field(24, description="How long an invoice link is valid.")
    document_years: Annotated[int, Field(ge=1, le=100)] = Field(
        10,
        description="How long the law requires an invoice or credit note to be kept, counted from the end of the year "
        "of its issue; `trunkline privacy delete-documents` deletes older ones ([privacy](privacy.md)).",
    )
    order_days: Annotated[int, Field(ge=1, le=365)] = Field(
        14, description="How long an order can be paid before it expires."
    )
    paypal_url: WebAddress = Field("https://api-m.sandbox.paypal.com", description="The URL of PayPal's REST API.")
    paypal_client_id: str = Field("", description="Our client id at PayPal.")
    paypal_secret: SecretStr = Field(SecretStr(""), description="The secret that belongs to the client id.")
    seller_code: SellerCode = Field("YT", description="The code that our invoice numbers begin with.")
    seller_name: Text = Field("Yonder Telecom Ltd", description="Our name, as invoices print it.")
    seller_address: tuple[Text, ...] = Field(
        ("1 Exchange Street", "10115 Berlin"), description="The lines of our address, as a JSON list."
    )
    seller_country: Country = Field("DE", description="Our country, as an ISO 3166-1 code of two letters.")
    seller_vat_id: Text = Field("DE123456788", description="Our VAT id.")

    @property
    def limits(self) -> Limits:
        """The limits of the streams."""
        return Limits(
            replicas=self.nats_replicas,
            events_max_bytes=self.events_max_bytes,
            events_max_age_days=self.events_max_age_days,
            commands_max_bytes=self.commands_max_bytes,
            dead_letters_max_bytes=self.dead_letters_max_bytes,
            dead_letters_max_age_days=self.dead_letters_max_age_days,
        )

    @property
    def seller(self) -> Seller:
        """The issuer of invoices."""
        return Seller(
            code=self.seller_code,
            name=self.seller_name,
            address=self.seller_address,
            country=self.seller_country,
            vat_id=self.seller_vat_id,
            email=self.mail_from,
        )


def settings(**given: object) -> Settings:
    """Return the settings of the environment, overridden by those given.

    Raises:
        WrongSetting: some settings are invalid; the text names each and says what it should be.
    """
    try:
        return Settings(**given)  # type: ignore[arg-type]  # validated there
    except ValidationError as error:
        wrong = [
            # Only the first letter becomes lower case: a pattern may follow.
            f"TRUNKLINE_{str(issue['loc'][0]).upper()} is wrong: {issue['msg'][:1].lower()}{issue['msg'][1:]}"
            for issue in error.errors()
        ]
        raise WrongSetting(f"{'; '.join(wrong)}.") from error
    except SettingsError as error:  # a list is written as JSON; the library quotes the name of the field
        name = str(error).split('"')[1].upper()
        raise WrongSetting(f"TRUNKLINE_{name} is wrong: it has to be JSON.") from error


PAGE: Final = Path(__file__).parents[1] / "docs" / "settings.md"
SUBJECTS: Final[Mapping[str, Sequence[str]]] = {
    "Database": ("database_url", "owner_url"),
    "Broker": (
        "nats_url",
        "nats_replicas",
        "events_max_bytes",
        "events_max_age_days",
        "commands_max_bytes",
        "dead_letters_max_bytes",
        "dead_letters_max_age_days",
    ),
    "Senders": ("senders",),
    "Mail": ("smtp_host", "smtp_port", "smtp_security", "smtp_user", "smtp_password", "mail_from"),
    "Payments": ("paypal_url", "paypal_client_id", "paypal_secret", "order_days"),
    "Links and documents": ("link_secret", "link_hours", "document_years"),
    "Keys and checkpoints": ("master_key", "signing_key", "checkpoint_file"),
    "HTTP": ("http_port", "public_url"),
    "Seller": ("seller_code", "seller_name", "seller_address", "seller_country", "seller_vat_id"),
}
"""The sections of the page, and the settings of each."""
UNITS: Final = ("bytes", "days", "hours", "years")
"""A setting with a unit ends in its name."""
HOLD_SECRETS: Final = frozenset({"database_url", "owner_url", "nats_url", "senders", "signing_key"})
"""Settings that hold a secret, or lead to one, without being a `SecretStr` themselves."""


def page() -> str:
    """Return ``docs/settings.md``: one table a subject, made of the fields of `Settings`."""
    sections = [
        "\n".join(
            [f"## {subject}", "", "| variable | default | what it sets |", "| --- | --- | --- |", *map(_row, names)]
        )
        for subject, names in SUBJECTS.items()
    ]
    return "\n\n".join([INTRODUCTION, *sections]) + "\n"


INTRODUCTION: Final = """\
# Settings

Environment variables configure Trunkline. All of them are optional for `make demo` and `trunkline up` on embedded
servers. An invalid one is refused at the start, in a sentence that names it and does not repeat its value. Variables
marked **secret** hold a secret or lead to one: keep them out of files that others can read.

Traces have the standard variables of OpenTelemetry: `OTEL_EXPORTER_OTLP_ENDPOINT` names a collector
([scaling](scaling.md)).

This page is generated from `infra/settings.py` by `make settings`."""


def _row(name: str) -> str:
    field = Settings.model_fields[name]
    secret = " **secret**" if name in HOLD_SECRETS or "SecretStr" in repr(field.annotation) else ""
    return f"| `TRUNKLINE_{name.upper()}`{secret} | {_default(name, field)} | {field.description}{_range(field)} |"


def _default(name: str, field: FieldInfo) -> str:
    value = field.default
    if isinstance(value, SecretStr) or value in (None, "", ()):
        return ""
    if isinstance(value, tuple):
        value = str(list(value)).replace("'", '"')
    unit = next((f" {unit}" for unit in UNITS if name.endswith(f"_{unit}")), "")
    return f"`{value}`{unit}"


def _range(field: FieldInfo) -> str:
    limits = {type(limit).__name__: limit for limit in field.metadata}
    if not {"Ge", "Le"} <= limits.keys() or "AfterValidator" in limits:  # a validator allows less than the range
        return ""
    return f" From {limits['Ge'].ge} to {limits['Le'].le}."


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
