"""A sealed value opens in its own place, with its own key, and nowhere else."""

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
    """As it is found in the JSON of an event."""
    json = to_json({"name": "é", "contact": value, "more": 1})
    found = Sealed.at(json.index(b'"contact"'), json)
    assert json[found.begins : found.ends] == to_json(value)
    return found


SEALED = sealed(STORED)


@given(st.binary(max_size=300))
def test_what_is_sealed_opens_as_it_was(plain: bytes) -> None:
    assert unseal(sealed(seal(plain, KEY, PLACE)), KEY, PLACE) == plain


def test_a_sealed_value_says_how_and_whose_and_nothing_else() -> None:
    assert STORED.keys() == {"sealed", "person", "nonce", "ciphertext"}
    assert (STORED["sealed"], STORED["person"], SEALED.person) == ("A256GCM", "acme/wonka", "acme/wonka")
    assert "Wonka" not in str(STORED)


def test_the_same_value_sealed_twice_looks_different() -> None:
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
def test_moved_to_another_place_it_does_not_open(elsewhere: Place) -> None:
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
def test_two_places_that_read_alike_are_not_bound_alike(here: Place, there: Place) -> None:
    with pytest.raises(DoesNotOpen):
        unseal(sealed(seal(SECRET, KEY, here)), KEY, there)


def test_with_another_key_it_does_not_open() -> None:
    with pytest.raises(DoesNotOpen):
        unseal(SEALED, ANOTHER_KEY, PLACE)


@pytest.mark.parametrize("part", ["nonce", "ciphertext"])
def test_altered_it_does_not_open(part: str) -> None:
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
def test_what_has_not_the_shape_does_not_open_and_nothing_of_it_is_repeated(change: dict[str, str]) -> None:
    with pytest.raises(DoesNotOpen) as refused:
        unseal(sealed(STORED | change), KEY, PLACE)
    assert STORED["ciphertext"] not in str(refused.value)
    with pytest.raises(DoesNotOpen, match="not in the form of an encrypted value"):
        sealed({name: part for name, part in STORED.items() if name != "nonce"})
