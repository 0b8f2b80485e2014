"""Amounts as text: formatted and parsed exactly, with the decimals of ISO 4217."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.money import Money
from infra.currencies import (
    AmountNotExact,
    UnknownCurrency,
    decimal_string,
    format_money,
    format_number,
    format_rate,
    from_decimal_string,
)

AMOUNTS = st.builds(
    Money, amount_minor=st.integers(-(2**53), 2**53), currency=st.sampled_from(["EUR", "USD", "CNY", "JPY", "KWD"])
)


def money(amount_minor: int, currency: str = "EUR") -> Money:
    return Money(amount_minor=amount_minor, currency=currency)


@pytest.mark.parametrize(
    ("amount", "people", "machines"),
    [
        (money(123450), "EUR 1,234.50", "1234.50"),
        (money(5), "EUR 0.05", "0.05"),
        (money(0), "EUR 0.00", "0.00"),
        (money(-123450), "EUR -1,234.50", "-1234.50"),
        (money(-5), "EUR -0.05", "-0.05"),
        (money(123450, "JPY"), "JPY 123,450", "123450"),
        (money(1234567, "KWD"), "KWD 1,234.567", "1234.567"),
        (money(2**53), "EUR 90,071,992,547,409.92", "90071992547409.92"),
    ],
)
def test_an_amount_has_the_decimals_of_its_currency(amount: Money, people: str, machines: str) -> None:
    assert format_money(amount) == people
    assert decimal_string(amount) == machines


@settings(deadline=None)
@given(AMOUNTS)
def test_a_decimal_string_is_parsed_to_the_same_amount(amount: Money) -> None:
    assert from_decimal_string(decimal_string(amount), amount.currency) == amount


@settings(deadline=None)
@given(AMOUNTS)
def test_people_and_machines_see_the_same_number(amount: Money) -> None:
    assert Decimal(format_number(amount).replace(",", "")) == Decimal(decimal_string(amount))


def test_the_language_decides_the_separators() -> None:
    assert format_money(money(123450), "de") == "EUR 1.234,50"


@pytest.mark.parametrize(
    ("text", "amount_minor"), [("7", 700), ("7.5", 750), ("007.50", 750), ("-0.01", -1), ("-0", 0)]
)
def test_fewer_decimals_than_those_of_the_currency_are_accepted(text: str, amount_minor: int) -> None:
    assert from_decimal_string(text, "EUR") == money(amount_minor)


@pytest.mark.parametrize(("text", "currency"), [("1.005", "EUR"), ("1.500", "EUR"), ("100.0", "JPY")])
def test_too_many_decimals_are_refused(text: str, currency: str) -> None:
    with pytest.raises(AmountNotExact, match="too many decimals"):
        from_decimal_string(text, currency)


INVALID_AMOUNTS = [
    "",
    ".5",
    "5.",
    "1,50",
    "1e3",
    "NaN",
    "Infinity",
    "+1",
    " 1",
    "1\n",
    "0x10",
    "--1",
    "1_0",
    "\u0661",
    "9" * 99,
]


@pytest.mark.parametrize("text", INVALID_AMOUNTS)
def test_a_text_that_is_not_a_plain_decimal_is_refused(text: str) -> None:
    with pytest.raises(AmountNotExact, match="is not an amount"):
        from_decimal_string(text, "EUR")


def test_an_amount_above_the_maximum_is_refused() -> None:
    with pytest.raises(AmountNotExact, match="too large"):
        from_decimal_string("90071992547409.93", "EUR")


@pytest.mark.parametrize("currency", ["ZZZ", "XAU"])
def test_a_currency_without_minor_units_is_refused(currency: str) -> None:
    with pytest.raises(UnknownCurrency, match=currency):
        format_money(money(1, currency))
    with pytest.raises(UnknownCurrency, match=currency):
        from_decimal_string("1", currency)


@pytest.mark.parametrize(
    ("rate_bp", "text"), [(1900, "19 %"), (725, "7.25 %"), (550, "5.5 %"), (1000, "10 %"), (0, "0 %"), (10**4, "100 %")]
)
def test_a_rate_is_formatted_as_a_percentage(rate_bp: int, text: str) -> None:
    assert format_rate(rate_bp) == text
