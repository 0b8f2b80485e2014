"""Money: whole minor units of one currency. There is no float anywhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field, StringConstraints

from domain.messages import Message, Refusal

Currency = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]
"""An ISO 4217 code. The portal's "RMB" is ``CNY``."""


MOST_MINOR = 2**53
"""The largest amount: up to here, a reader of JSON that counts in doubles keeps every minor unit (RFC 8259, 6)."""


class CurrenciesDiffer(Refusal):
    """Amounts of two currencies were to be added."""


class Money(Message):
    """An amount in minor units (cents for EUR, whole yen for JPY)."""

    amount_minor: Annotated[int, Field(strict=True, ge=-MOST_MINOR, le=MOST_MINOR)]
    currency: Currency

    def __add__(self, other: Money) -> Money:
        """The sum.

        Raises:
            CurrenciesDiffer: of two currencies.
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
        """The sum of ``amounts``, all of ``currency``; zero where there is none.

        Raises:
            CurrenciesDiffer: one is of another.
        """
        return sum(amounts, start=cls(amount_minor=0, currency=currency))


def round_half_up(numerator: int, denominator: int) -> int:
    """``numerator / denominator``, both whole and not negative, rounded half up to a whole number."""
    return (2 * numerator + denominator) // (2 * denominator)
