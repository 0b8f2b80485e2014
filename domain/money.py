"""Money: whole minor units of one currency, never a float."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field, StringConstraints

from domain.messages import Message, Refusal

Currency = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]
"""An ISO 4217 code. The portal's "RMB" is ``CNY``."""


MINOR_MAX = 2**53
"""The largest amount, in minor units: JSON readers that use doubles are exact up to here (RFC 8259, section 6)."""


class CurrenciesDiffer(Refusal):
    """Amounts of different currencies cannot be added."""


class Money(Message):
    """An amount in minor units (cents for EUR, whole yen for JPY)."""

    amount_minor: Annotated[int, Field(strict=True, ge=-MINOR_MAX, le=MINOR_MAX)]
    currency: Currency

    def __add__(self, other: Money) -> Money:
        """The sum.

        Raises:
            CurrenciesDiffer: the currencies differ.
        """
        if other.currency != self.currency:
            raise CurrenciesDiffer(f"{other.currency} cannot be added to {self.currency}; convert it first.")
        return Money(amount_minor=self.amount_minor + other.amount_minor, currency=self.currency)

    def __neg__(self) -> Money:
        return Money(amount_minor=-self.amount_minor, currency=self.currency)

    def __sub__(self, other: Money) -> Money:
        return self + -other

    @classmethod
    def total(cls, amounts: Iterable[Money], currency: str) -> Money:
        """The sum of ``amounts``, all of ``currency``; zero if there are none.

        Raises:
            CurrenciesDiffer: an amount has another currency.
        """
        return sum(amounts, start=cls(amount_minor=0, currency=currency))


def round_half_up(numerator: int, denominator: int) -> int:
    """``numerator / denominator``, both non-negative integers, rounded half up to an integer."""
    return (2 * numerator + denominator) // (2 * denominator)
