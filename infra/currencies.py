"""Money as text, for people and for machines, with the minor units of ISO 4217. Integers and decimals; no floats."""

from __future__ import annotations

import re
from decimal import Decimal
from functools import cache

import iso4217
from babel.numbers import NumberPattern, format_decimal, parse_pattern

from domain.messages import Refusal
from domain.money import MINOR_MAX, Money

_DECIMAL = re.compile(r"(-?)([0-9]{1,16})(?:\.([0-9]+))?", re.ASCII)


class UnknownCurrency(Refusal):
    """ISO 4217 has no such currency, or it has no minor units (as gold, ``XAU``)."""


class AmountNotExact(Refusal):
    """The text is not an amount of the currency."""


@cache
def exponent(currency: str) -> int:
    """Return the number of decimals of a currency: 2 for EUR, 0 for JPY, 3 for KWD.

    Raises:
        UnknownCurrency: ISO 4217 defines none.
    """
    try:
        decimals = iso4217.Currency(currency).exponent
    except ValueError:
        decimals = None
    if decimals is None:
        raise UnknownCurrency(f"{currency} is not a currency of ISO 4217 with minor units; use one such as EUR.")
    return int(decimals)


def decimal_string(money: Money) -> str:
    """Return an amount for machines: ``1234.50``, with all decimals of its currency, no separators, no code.

    Raises:
        UnknownCurrency: ISO 4217 does not know the currency.
    """
    decimals = exponent(money.currency)
    sign = "-" if money.amount_minor < 0 else ""
    whole, minor = divmod(abs(money.amount_minor), 10**decimals)
    return f"{sign}{whole}.{minor:0{decimals}d}" if decimals else f"{sign}{whole}"


def from_decimal_string(text: str, currency: str) -> Money:
    """Parse an amount of a machine exactly: ``1234.50`` or ``1234.5``, with at most the decimals of the currency.

    Raises:
        AmountNotExact: it is not a plain decimal, has more decimals than the currency, or is too large.
        UnknownCurrency: ISO 4217 does not know the currency.
    """
    decimals = exponent(currency)
    match = _DECIMAL.fullmatch(text)
    if match is None:
        raise AmountNotExact(f"{text[:40]!r} is not an amount; write digits with a point, such as 1234.50.")
    sign, whole, fraction = match.group(1), match.group(2), match.group(3) or ""
    if len(fraction) > decimals:
        raise AmountNotExact(f"{text[:40]!r} has too many decimals; {currency} has {decimals}.")
    amount_minor = int(whole + fraction.ljust(decimals, "0"))
    if amount_minor > MINOR_MAX:
        raise AmountNotExact(f"{text[:40]!r} is too large; the maximum is {MINOR_MAX} minor units.")
    return Money(amount_minor=-amount_minor if sign else amount_minor, currency=currency)


def format_number(money: Money, locale: str = "en") -> str:
    """Return an amount for people, in a column that names the currency: ``1,234.50``.

    Raises:
        UnknownCurrency: ISO 4217 does not know the currency.
        babel.UnknownLocaleError: Unicode's CLDR does not know the locale.
    """
    pattern = _pattern(exponent(money.currency))
    return format_decimal(Decimal(decimal_string(money)), format=pattern, locale=locale)


@cache
def _pattern(decimals: int) -> NumberPattern:
    return parse_pattern(f"#,##0.{'0' * decimals}" if decimals else "#,##0")


def format_money(money: Money, locale: str = "en") -> str:
    """Return an amount for people: ``EUR 1,234.50``. The code is used because twenty countries share the ``$``.

    Raises:
        UnknownCurrency: ISO 4217 does not know the currency.
        babel.UnknownLocaleError: Unicode's CLDR does not know the locale.
    """
    return f"{money.currency} {format_number(money, locale)}"


def format_rate(rate_bp: int) -> str:
    """Return a tax rate for people, from basis points: 1900 is ``19 %``, 725 is ``7.25 %``."""
    return f"{Decimal(rate_bp).scaleb(-2).normalize():f} %"
