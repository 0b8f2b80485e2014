"""An encrypted value can be decrypted only at its own place, and only with its own key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import to_json

from infra.personal_data.encryption import DoesNotOpen, Place, Sealed, seal, unseal

KEY, ANOTHER_KEY = bytes(range(32)), bytes(range(1, 33))
PLACE = Place("acme/wonka", "account-acme", 2, "account.BillingReceiverAdded.v1", "contact")
SECRET = b'"Willy Wonka"'
STORED = seal(SECRET, KEY, PLACE)


def sealed(value: dict[str, str]) -> Sealed:
    """Parse the value from the JSON of an event."""
    json = to_json({"name": "é", "contact": value, "more": 1})
    found = Sealed.at(json.index(b'"contact"'), json)
    assert json[found.begins : found.ends] == to_json(value)
    return found


SEALED = sealed(STORED)


@given(st.binary(max_size=300))
def test_decryption_returns_what_was_encrypted(plain: bytes) -> None:
    assert unseal(sealed(seal(plain, KEY, PLACE)), KEY, PLACE) == plain


def test_an_encrypted_value_reveals_only_algorithm_and_person() -> None:
    assert STORED.keys() == {"sealed", "person", "nonce", "ciphertext"}
    assert (STORED["sealed"], STORED["person"], SEALED.person) == ("A256GCM", "acme/wonka", "acme/wonka")
    assert "Wonka" not in str(STORED)


def test_encrypting_a_value_twice_gives_different_ciphertexts() -> None:
    second = seal(SECRET, KEY, PLACE)
    assert second["nonce"] != STORED["nonce"]
    assert second["ciphertext"] != STORED["ciphertext"]


@pytest.mark.parametrize(
    "elsewhere",
    [
        PLACE._replace(person="acme/bucket"),
        PLACE._replace(stream="account-slugworth"),
        PLACE._replace(version=3),
        PLACE._replace(topic="account.BillingReceiverChanged.v1"),
        PLACE._replace(field="buyer"),
    ],
    ids=["another person's", "another stream", "another version", "another topic", "another field"],
)
def test_a_value_moved_to_another_place_is_not_decrypted(elsewhere: Place) -> None:
    with pytest.raises(DoesNotOpen, match="moved here from another place"):
        unseal(SEALED, KEY, elsewhere)


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (PLACE._replace(version=21), PLACE._replace(stream="account-acme2", version=1)),
        (PLACE._replace(topic="a", field="bc"), PLACE._replace(topic="ab", field="c")),
        (PLACE._replace(topic='a","b', field="c"), PLACE._replace(topic="a", field='b","c')),
    ],
)
def test_places_that_concatenate_alike_are_bound_differently(here: Place, there: Place) -> None:
    with pytest.raises(DoesNotOpen):
        unseal(sealed(seal(SECRET, KEY, here)), KEY, there)


def test_another_key_does_not_decrypt() -> None:
    with pytest.raises(DoesNotOpen):
        unseal(SEALED, ANOTHER_KEY, PLACE)


@pytest.mark.parametrize("part", ["nonce", "ciphertext"])
def test_an_altered_value_is_not_decrypted(part: str) -> None:
    text = STORED[part]
    for n in range(0, len(text) - 2, 3):
        altered = text[:n] + ("A" if text[n] != "A" else "B") + text[n + 1 :]
        with pytest.raises(DoesNotOpen, match="was altered"):
            unseal(sealed(STORED | {part: altered}), KEY, PLACE)


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": ""},
        {"nonce": "!"},
        {"ciphertext": ""},
        {"ciphertext": "AAAA"},
        {"ciphertext": "ä"},
        {"nonce": None},
        {"person": 7},
        {"sealed": "ROT13"},
        {"more": "than that"},
    ],
)
def test_a_malformed_value_is_refused_without_repeating_it(change: dict[str, str]) -> None:
    with pytest.raises(DoesNotOpen) as refused:
        unseal(sealed(STORED | change), KEY, PLACE)
    assert STORED["ciphertext"] not in str(refused.value)
    with pytest.raises(DoesNotOpen, match="not in the form of an encrypted value"):
        sealed({name: part for name, part in STORED.items() if name != "nonce"})
