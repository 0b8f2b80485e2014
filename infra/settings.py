"""What can be set from outside: environment variables that begin with ``TRUNKLINE_``."""

from __future__ import annotations

from base64 import b64decode
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, StringConstraints, ValidationError
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from domain.account import Email
from domain.invoice import Seller
from domain.messages import Identifier, Text
from domain.price_list import Country, SellerCode

WebAddress = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/?#]+[^\s?#]*$")]
"""Where something is served over HTTP, without a query: paths are added to it."""


def _odd(number: int) -> int:
    if number % 2 == 0:
        raise ValueError("with 2 servers, one that is away stops both; say 1 or 3")
    return number


Replicas = Annotated[int, Field(ge=1, le=3), AfterValidator(_odd)]
Size = Annotated[int, Field(ge=0)]


class WrongSetting(Exception):
    """A setting is missing, or has a value that it cannot have. The text names it."""


MASTER_KEY_BYTES = 32


def decoded_master_key(text: SecretStr) -> bytes:
    """The bytes of a master key; of several, one behind another.

    Raises:
        PydanticCustomError: one of them is no base64 of 32 bytes.
    """
    try:
        keys = [b64decode(each.strip(), validate=True) for each in text.get_secret_value().split(",")]
    except ValueError:
        keys = [b""]
    if any(len(key) != MASTER_KEY_BYTES for key in keys):
        raise PydanticCustomError(
            "master_key",
            "it has to be base64 of 32 bytes; openssl rand -base64 32 makes one. While one takes the place of another, "
            "write both, with a comma between",
        )
    return b"".join(keys)


def _master_key(text: SecretStr) -> SecretStr:
    decoded_master_key(text)
    return text


def _file(path: Path) -> Path:
    if path == Path():
        raise ValueError("it names no file")
    return path


File = Annotated[Path, AfterValidator(_file)]


@dataclass(frozen=True)
class Limits:
    """How large the streams may grow, how long they keep, and on how many servers. 0 is without a limit."""

    replicas: int = 1
    events_max_bytes: int = 0
    events_max_age_days: int = 0
    commands_max_bytes: int = 0
    dead_letters_max_bytes: int = 0
    dead_letters_max_age_days: int = 0


EVERY_ACCOUNT = "*"


class SenderRole(StrEnum):
    """What a sender is to us."""

    SERVICE = "service"
    DISTRIBUTOR = "distributor"
    ACCOUNT_MANAGER = "account_manager"
    ADMIN = "admin"


class Sender(BaseModel):
    """A service that sends us messages."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Identifier
    secret: SecretStr = Field(min_length=32)
    role: SenderRole = SenderRole.SERVICE
    accounts: tuple[str, ...] = ()
    """Those it may act for; `EVERY_ACCOUNT` is all of them."""

    def may_act_for(self, account_id: str | None) -> bool:
        """Whether it may act for an account; for none, where the account is not named."""
        return EVERY_ACCOUNT in self.accounts or (account_id is not None and account_id in self.accounts)


class Security(StrEnum):
    """How the connection is kept private: not at all, by STARTTLS (RFC 3207), or by TLS from its start (RFC 8314)."""

    NONE = "none"
    STARTTLS = "starttls"
    TLS = "tls"


class Settings(BaseSettings):
    """Every setting. Servers whose address is not given are started, embedded, where the command supports it."""

    model_config = SettingsConfigDict(env_prefix="TRUNKLINE_", frozen=True, extra="ignore", hide_input_in_errors=True)

    database_url: str | None = Field(None, description="PostgreSQL 18: postgresql://user:password@host:port/database")
    owner_url: str | None = Field(
        None, description="the same database as its owner: for migrations, and for what no other login may"
    )
    nats_url: str | None = Field(None, description="NATS with JetStream: nats://user:password@host:port")
    nats_replicas: Replicas = Field(1, description="on how many NATS servers each stream is kept: 1 or 3")
    events_max_bytes: Size = Field(0, description="the size of the stream of events; 0 is without a limit")
    events_max_age_days: Size = Field(0, description="how long the stream of events keeps them; 0 is for good")
    commands_max_bytes: Size = Field(0, description="the size of the stream of commands")
    dead_letters_max_bytes: Size = Field(0, description="the size of the stream of dead letters")
    dead_letters_max_age_days: Size = Field(0, description="how long dead letters are kept; 0 is for good")
    senders: tuple[Sender, ...] = Field((), description="who may send us messages, as JSON: name, secret, accounts")
    smtp_host: str = Field("127.0.0.1", description="the mail server that takes our mail")
    smtp_port: Annotated[int, Field(ge=1, le=65535)] = Field(25, description="its port")
    smtp_user: str | None = Field(None, description="its user, where it asks for one")
    smtp_password: SecretStr | None = Field(None, description="the password of that user")
    smtp_security: Security = Field(Security.NONE, description="none, starttls or tls")
    mail_from: Email = Field("billing@seller.example", description="whom our mail is from")
    public_url: WebAddress | None = Field(
        None, description="where customers reach our HTTP application, where not at its port"
    )
    http_port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="its port; 0 takes a free one")
    link_secret: SecretStr | None = Field(None, min_length=32, description="the secret behind invoice links")
    master_key: Annotated[SecretStr, AfterValidator(_master_key)] | None = Field(
        None, description="base64 of 32 bytes: wraps the keys of personal data; of several, the first wraps, each opens"
    )
    signing_key: File | None = Field(None, description="the Ed25519 key that signs checkpoints of the log, a PEM file")
    checkpoint_file: File | None = Field(None, description="the file that signed checkpoints are added to")
    link_hours: Annotated[int, Field(ge=1, le=720)] = Field(24, description="how long an invoice link lives")
    document_years: Annotated[int, Field(ge=1, le=100)] = Field(
        10, description="for how many years after that of its issue a document is kept, as the law wants it"
    )
    order_days: Annotated[int, Field(ge=1, le=365)] = Field(14, description="how long an order can be paid")
    paypal_url: WebAddress = Field("https://api-m.sandbox.paypal.com", description="PayPal's REST API")
    paypal_client_id: str = Field("", description="our client id there")
    paypal_secret: SecretStr = Field(SecretStr(""), description="our secret there")
    seller_code: SellerCode = Field("YT", description="begins our invoice numbers")
    seller_name: Text = Field("Yonder Telecom Ltd", description="our name, as invoices print it")
    seller_address: tuple[Text, ...] = Field(("1 Exchange Street", "10115 Berlin"), description="our address, as JSON")
    seller_country: Country = Field("DE", description="our country")
    seller_vat_id: Text = Field("DE123456788", description="our VAT id")

    @property
    def limits(self) -> Limits:
        """How large the streams may grow, and how long they keep."""
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
        """Who issues the invoices."""
        return Seller(
            code=self.seller_code,
            name=self.seller_name,
            address=self.seller_address,
            country=self.seller_country,
            vat_id=self.seller_vat_id,
            email=self.mail_from,
        )


def settings(**given: object) -> Settings:
    """The settings of the environment, and over them those that are given.

    Raises:
        WrongSetting: names each setting that is wrong, and says what it should be.
    """
    try:
        return Settings(**given)  # type: ignore[arg-type]  # validated there
    except ValidationError as error:
        wrong = [
            # The first letter alone becomes small: what follows may be a pattern.
            f"TRUNKLINE_{str(issue['loc'][0]).upper()} is wrong: {issue['msg'][:1].lower()}{issue['msg'][1:]}"
            for issue in error.errors()
        ]
        raise WrongSetting(f"{'; '.join(wrong)}.") from error
    except SettingsError as error:  # the value of a list is JSON; the library names the field, in quotation marks
        name = str(error).split('"')[1].upper()
        raise WrongSetting(f"TRUNKLINE_{name} is wrong: it has to be JSON.") from error
