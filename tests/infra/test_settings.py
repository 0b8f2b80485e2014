"""The settings: defaults, the environment, and the refusals of wrong values."""

from __future__ import annotations

import json
import os
import traceback
from base64 import b64encode

import pytest
from pydantic import ValidationError

from domain.invoice import Seller
from infra.settings import PAGE, SUBJECTS, Security, Settings, WrongSetting, decoded_master_key, page, settings

SECRET = "oompa-loompa-doompety-doo"  # noqa: S105 - not a real one, and shorter than a secret has to be
MASTER_KEY = b64encode(32 * b"w").decode()


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("TRUNKLINE_")]:
        monkeypatch.delenv(name)


def test_every_setting_has_a_default() -> None:
    loaded = settings()
    assert (loaded.database_url, loaded.nats_url, loaded.public_url, loaded.link_secret) == (None, None, None, None)
    assert (loaded.smtp_host, loaded.smtp_port, loaded.smtp_security) == ("127.0.0.1", 25, Security.NONE)
    assert (loaded.http_port, loaded.link_hours, loaded.order_days) == (8000, 24, 14)
    assert loaded.paypal_url == "https://api-m.sandbox.paypal.com"


def test_the_environment_overrides_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_DATABASE_URL", "postgresql://wonka@factory/chocolate")
    monkeypatch.setenv("TRUNKLINE_HTTP_PORT", "0")
    monkeypatch.setenv("TRUNKLINE_SMTP_SECURITY", "starttls")
    monkeypatch.setenv("TRUNKLINE_SELLER_ADDRESS", json.dumps(["Harbour Road 7", "20457 Hamburg"]))
    monkeypatch.setenv("TRUNKLINE_LINK_SECRET", 2 * SECRET)
    monkeypatch.setenv("trunkline_order_days", "30")
    monkeypatch.setenv("HTTP_PORT", "1")
    loaded = settings()
    assert loaded.database_url == "postgresql://wonka@factory/chocolate"
    assert (loaded.http_port, loaded.order_days) == (0, 30)
    assert loaded.smtp_security is Security.STARTTLS
    assert loaded.seller_address == ("Harbour Road 7", "20457 Hamburg")
    assert loaded.link_secret is not None
    assert loaded.link_secret.get_secret_value() == 2 * SECRET


def test_arguments_override_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_HTTP_PORT", "8001")
    monkeypatch.setenv("TRUNKLINE_SMTP_PORT", "2525")
    loaded = settings(http_port=8002)
    assert (loaded.http_port, loaded.smtp_port) == (8002, 2525)


def test_settings_are_immutable(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError):
        settings().http_port = 1  # type: ignore[misc]  # what is tested


def test_the_seller_is_built_from_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_SELLER_NAME", "Yonder Telephony")
    monkeypatch.setenv("TRUNKLINE_MAIL_FROM", "billing@yt.example")
    assert settings().seller == Seller(
        code="YT",
        name="Yonder Telephony",
        address=("1 Exchange Street", "10115 Berlin"),
        country="DE",
        vat_id="DE123456788",
        email="billing@yt.example",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SMTP_PORT", "0"),
        ("SMTP_PORT", "65536"),
        ("HTTP_PORT", "-1"),
        ("HTTP_PORT", "eighty"),
        ("HTTP_PORT", ""),
        ("SMTP_SECURITY", "ssl"),
        ("MAIL_FROM", "Wonka <wonka@acme.example>"),
        ("LINK_SECRET", SECRET),
        ("MASTER_KEY", SECRET),
        ("MASTER_KEY", ""),
        ("SIGNING_KEY", ""),
        ("CHECKPOINT_FILE", ""),
        ("MASTER_KEY", b64encode(SECRET.encode()).decode()),
        ("MASTER_KEY", b64encode(33 * b"w").decode()),
        ("LINK_HOURS", "0"),
        ("LINK_HOURS", "721"),
        ("ORDER_DAYS", "0"),
        ("ORDER_DAYS", "1.5"),
        ("PUBLIC_URL", "trunkline.example"),
        ("PUBLIC_URL", "https://trunkline.example/?from=mail"),
        ("PAYPAL_URL", "ftp://paypal.example"),
        ("PAYPAL_URL", ""),
        ("SELLER_CODE", "y"),
        ("SELLER_NAME", " "),
        ("SELLER_COUNTRY", "Germany"),
        ("SELLER_VAT_ID", "DE\n1"),
        ("SELLER_ADDRESS", "1 Exchange Street"),
        ("SELLER_ADDRESS", '"1 Exchange Street"'),
        ("SELLER_ADDRESS", '["1 Exchange Street", ""]'),
    ],
)
def test_a_wrong_setting_is_named_in_one_sentence_that_does_not_repeat_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"TRUNKLINE_{name}", value)
    with pytest.raises(WrongSetting, match=rf"\bTRUNKLINE_{name}\b") as caught:
        settings()
    message = str(caught.value)
    assert message.count("TRUNKLINE_") == 1
    assert message.endswith(".")
    assert "\n" not in message
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_each_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_HTTP_PORT", "eighty")
    monkeypatch.setenv("TRUNKLINE_LINK_SECRET", SECRET)
    with pytest.raises(WrongSetting) as caught:
        settings(order_days=0)
    for name in ("TRUNKLINE_HTTP_PORT", "TRUNKLINE_LINK_SECRET", "TRUNKLINE_ORDER_DAYS"):
        assert str(caught.value).count(name) == 1


def test_a_refusal_quotes_the_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_SELLER_COUNTRY", "de")
    with pytest.raises(WrongSetting, match=r"\^\[A-Z\]\{2\}\$"):
        settings()


def test_secrets_are_masked() -> None:
    loaded = settings(link_secret=2 * SECRET, smtp_password=SECRET, paypal_secret=SECRET, master_key=MASTER_KEY)
    for shown in (repr(loaded), str(loaded), loaded.model_dump_json()):
        assert MASTER_KEY not in shown
    assert SECRET not in repr(loaded)
    assert SECRET not in str(loaded)
    assert SECRET not in loaded.model_dump_json()


def test_a_master_key_is_32_bytes_in_base64() -> None:
    master_key = settings(master_key=MASTER_KEY).master_key
    assert master_key is not None
    assert decoded_master_key(master_key) == 32 * b"w"


def test_there_may_be_two_master_keys_during_a_rotation() -> None:
    master_key = settings(master_key=f"{MASTER_KEY}, {b64encode(32 * b'x').decode()}").master_key
    assert master_key is not None
    assert decoded_master_key(master_key) == 32 * b"w" + 32 * b"x"
    for wrong in (f"{MASTER_KEY},", f",{MASTER_KEY}", f"{MASTER_KEY},{MASTER_KEY[4:]}", f"{MASTER_KEY} {MASTER_KEY}"):
        with pytest.raises(WrongSetting, match=r"^TRUNKLINE_MASTER_KEY is wrong: it has to be 32 bytes in base64"):
            settings(master_key=wrong)


def test_every_setting_has_a_description_and_one_subject() -> None:
    assert [name for name, field in Settings.model_fields.items() if not (field.description or "").endswith(".")] == []
    assert sorted(name for names in SUBJECTS.values() for name in names) == sorted(Settings.model_fields)


def test_the_page_of_settings_is_generated_from_them() -> None:
    assert page() == PAGE.read_text(encoding="utf-8"), "make settings writes docs/settings.md"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("NATS_REPLICAS", "2", "2 replicas stop if either server does; use 1 or 3"),
        ("SIGNING_KEY", "", "it is empty; name a file"),
        ("SENDERS", "shop", "it has to be JSON"),
    ],
)
def test_a_refusal_says_what_is_right(monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str) -> None:
    monkeypatch.setenv(f"TRUNKLINE_{name}", value)
    with pytest.raises(WrongSetting) as caught:
        settings()
    assert str(caught.value) == f"TRUNKLINE_{name} is wrong: {reason}."
