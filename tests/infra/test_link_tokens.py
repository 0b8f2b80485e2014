"""The token of an invoice link: it cannot be guessed, and depends only on the secret and the link's id."""

from __future__ import annotations

import base64
import hashlib
import hmac
import string
from uuid import UUID

import hypothesis
import pytest
from hypothesis import strategies as st

from infra.link_tokens import digest, link_id, link_of, token

SECRET = b"everlasting gobstopper, 32 bytes"
OTHER_SECRET = b"three-course dinner chewing gum!"
LINK = link_id("invoice-1", 1)
TOKEN = token(SECRET, LINK)
relaxed = hypothesis.settings(deadline=None, max_examples=50)
ALPHABET = set(string.ascii_letters + string.digits + "-_")


def test_the_id_of_a_link_is_derived_from_its_invoice_and_its_number() -> None:
    assert link_id("invoice-1", 1) == LINK == "88a29101-592d-5435-96f9-579898264ff3"
    others = {
        LINK,
        link_id("invoice-1", 2),
        link_id("invoice-2", 1),
        link_id("invoice-11", 1),
        link_id("invoice-1", 11),
    }
    assert len(others) == 5


def test_a_token_is_deterministic() -> None:
    assert token(SECRET, LINK) == TOKEN


def test_a_token_is_the_id_of_its_link_and_256_bits_that_depend_on_the_secret() -> None:
    raw = base64.urlsafe_b64decode(TOKEN)
    assert raw[:16] == UUID(LINK).bytes
    assert raw[16:] == hmac.new(SECRET, UUID(LINK).bytes, hashlib.sha256).digest()
    assert len(raw[16:]) * 8 == 256


@relaxed
@hypothesis.given(st.uuids())
def test_a_token_is_64_characters_that_need_no_escaping_in_a_url(link: UUID) -> None:
    text = token(SECRET, str(link))
    assert len(text) == 64
    assert set(text) <= ALPHABET
    assert link_of(text) == str(link)


@relaxed
@hypothesis.given(st.uuids())
def test_another_secret_changes_only_the_secret_part_of_a_token(link: UUID) -> None:
    ours, theirs = token(SECRET, str(link)), token(OTHER_SECRET, str(link))
    raw, other = base64.urlsafe_b64decode(ours), base64.urlsafe_b64decode(theirs)
    assert raw[:16] == other[:16]
    assert raw[16:] != other[16:]
    assert digest(ours) != digest(theirs)


def test_another_link_has_another_token() -> None:
    assert base64.urlsafe_b64decode(token(SECRET, link_id("invoice-1", 2)))[16:] != base64.urlsafe_b64decode(TOKEN)[16:]


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "golden ticket",
        TOKEN[:-1],
        TOKEN[:-4],
        TOKEN + "A",
        TOKEN + "AAAA",
        TOKEN + "=",
        TOKEN + "====",
        TOKEN[:-1] + "=",
        TOKEN[:-2] + "==",
        " " + TOKEN[1:],
        TOKEN[:-1] + "\n",
        TOKEN + "\n",
        TOKEN[:32] + "\n" + TOKEN[32:],
        TOKEN[:-1] + "\x00",
        TOKEN[:-1] + "ü",
        "ö" * 64,
        "\ud800" * 64,
        "=" * 64,
        "%" * 64,
        64 * "A" * 1000,
        str(UUID(LINK)),
        "+" + TOKEN[1:],
        TOKEN[:-1] + "/",
        "٣" + TOKEN[1:],
    ],
)
def test_a_malformed_token_has_no_link(garbage: str) -> None:
    assert link_of(garbage) is None


@relaxed
@hypothesis.given(st.text() | st.text(alphabet=sorted(ALPHABET), min_size=60, max_size=68))
def test_any_text_has_a_valid_link_or_none(presented: str) -> None:
    link = link_of(presented)
    assert link is None or (len(presented) == 64 and str(UUID(link)) == link)


def test_a_forged_token_names_its_link_but_has_another_digest() -> None:
    """A well-formed token alone grants no access: the digest decides, and it covers every character."""
    forged = TOKEN[:-1] + ("A" if TOKEN[-1] != "A" else "B")
    assert link_of(forged) == LINK
    assert digest(forged) != digest(TOKEN)


def test_the_digest_of_a_token_is_its_sha256() -> None:
    assert digest(TOKEN) == hashlib.sha256(TOKEN.encode("ascii")).hexdigest()
    assert TOKEN not in digest(TOKEN)
