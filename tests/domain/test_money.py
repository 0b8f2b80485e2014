import pytest
from pydantic import ValidationError

from domain.money import CurrenciesDiffer, Money, round_half_up
from tests.support.examples import eur

YEN = Money(amount_minor=500, currency="JPY")


def test_amounts_of_one_currency_add_and_subtract() -> None:
    assert eur(1_00) + eur(25) == eur(1_25)
    assert eur(1_00) - eur(1_25) == eur(-25)
    assert Money.total([eur(1_00), eur(25), eur(1)], "EUR") == eur(1_26)
    assert Money.total([], "EUR") == eur(0)


def test_amounts_of_two_currencies_do_not_add() -> None:
    with pytest.raises(CurrenciesDiffer, match="JPY cannot be added to EUR"):
        eur(1_00) + YEN
    with pytest.raises(CurrenciesDiffer, match="EUR cannot be added to JPY"):
        YEN - eur(1_00)


@pytest.mark.parametrize("amount_minor", [1.0, 0.5, "1", True, 2**53 + 1, -(2**53) - 1])
def test_an_amount_is_a_whole_number_that_every_reader_of_json_keeps(amount_minor: object) -> None:
    with pytest.raises(ValidationError):
        Money.model_validate({"amount_minor": amount_minor, "currency": "EUR"})


@pytest.mark.parametrize("currency", ["eur", "EURO", "€", "", "EUR\n"])
def test_a_currency_is_three_capitals(currency: str) -> None:
    with pytest.raises(ValidationError):
        Money(amount_minor=1, currency=currency)


@pytest.mark.parametrize(
    ("numerator", "denominator", "rounded"),
    [
        (0, 7, 0),
        (1, 3, 0),
        (2, 3, 1),
        (1, 2, 1),
        (3, 2, 2),
        (5, 2, 3),
        (49, 100, 0),
        (50, 100, 1),
        (182, 365, 0),
        (7, 7, 1),
    ],
)
def test_halves_are_rounded_up(numerator: int, denominator: int, rounded: int) -> None:
    assert round_half_up(numerator, denominator) == rounded


def test_rounding_is_exact_beyond_the_precision_of_floats() -> None:
    assert round_half_up(10**18 + 1, 2) == 5 * 10**17 + 1
