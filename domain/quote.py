"""The order summary: the price of an expansion, line by line, before anything is binding.

An expansion ends with the package it expands, so a line costs

    unit price x quantity x remaining days / days of the term,

by UTC dates, rounded half up to the minor unit. Lines are rounded first, then added; tax is computed and
rounded once per rate (EN 16931, BR-CO-17). One-time services are not prorated.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Annotated

from pydantic import Field

from domain.messages import Message, Refusal
from domain.money import MINOR_MAX, Currency, Money, round_half_up
from domain.price_list import Offer, PriceList, PriceListPublished, SellerCode, TaxCategory, TaxRule
from domain.services import Pricing, ServiceCode

UNITS_MAX = 1_000_000
"""The most units of one service in one order; more is a typing error."""


class Selection(Message):
    """The customer's choice: a service and its number of units (1 for a flat service)."""

    service: str
    quantity: Annotated[int, Field(strict=True)] = 1


class Term(Message):
    """The days of a package, by UTC dates: from ``starts_on`` up to but excluding ``ends_on``."""

    starts_on: date
    ends_on: date

    @property
    def days(self) -> int:
        """The length of the term in days."""
        return (self.ends_on - self.starts_on).days

    def remaining(self, on: date) -> int:
        """The days left, including the given day; the whole term on its first day."""
        return (self.ends_on - on).days

    def covers(self, on: date) -> bool:
        """Whether the term includes a day."""
        return self.starts_on <= on < self.ends_on


class Line(Message):
    """One service of an order, with every figure that its price is made of."""

    service: ServiceCode
    title: str
    unit: str
    pricing: Pricing
    to_pbxs: bool
    one_time: bool
    quantity: int
    unit_price_minor: int
    days_remaining: int
    days_of_term: int
    amount_minor: int
    tax_category: TaxCategory
    tax_rate_bp: int


class TaxTotal(Message):
    """The tax of one rate: rounded once, over the sum of its lines."""

    category: TaxCategory
    rate_bp: int
    note: str
    net_minor: int
    tax_minor: int


class Quote(Message):
    """The order summary. The order stores it as shown, so that history needs no price list."""

    seller: SellerCode
    currency: Currency
    price_list_version: int
    priced_on: date
    term: Term
    lines: tuple[Line, ...]
    taxes: tuple[TaxTotal, ...]

    @property
    def net(self) -> Money:
        """The sum of the lines."""
        return Money(amount_minor=sum(line.amount_minor for line in self.lines), currency=self.currency)

    @property
    def tax(self) -> Money:
        """The sum of the taxes."""
        return Money(amount_minor=sum(tax.tax_minor for tax in self.taxes), currency=self.currency)

    @property
    def total(self) -> Money:
        """The amount to pay."""
        return self.net + self.tax


class NoPriceList(Refusal):
    """There are no prices in this currency, or none yet."""


class NothingSelected(Refusal):
    """An order without lines."""


class UnknownService(Refusal):
    """The service is not on the price list."""


class QuantityNotPossible(Refusal):
    """A quantity below one or above the maximum, or a total that is too large."""


class ServiceSelectedTwice(Refusal):
    """One service appears in two lines of an order."""


class OutsideTheTerm(Refusal):
    """The package's term does not cover the day."""


class NotSoldThere(Refusal):
    """The price list has no tax rule for the customer's country."""


def quote(
    price_list: PriceList, *, currency: str, country: str, term: Term, on: date, selections: Sequence[Selection]
) -> Quote:
    """Price ``selections`` for a package of ``term`` on a day.

    Raises:
        Refusal: the selection cannot be priced; the text is a sentence for the customer.
    """
    prices = price_list.in_force(on)
    if prices is None:
        raise NoPriceList(f"There is no price list in {currency} on {on}; choose a currency that has one.")
    if not selections:
        raise NothingSelected("The order has no lines; select at least one service.")
    if not term.covers(on):
        raise OutsideTheTerm(
            f"The package runs from {term.starts_on} to {term.ends_on}; it cannot be expanded on {on}."
        )
    lines, rules = [], []
    for selection in selections:
        offer = _offer(prices, selection)
        rule = prices.tax(country, offer.tax_class)
        if rule is None:
            raise NotSoldThere(
                f"Price list {prices.seller} {currency} has no {offer.tax_class} tax rate for {country}."
            )
        rules.append(rule)
        lines.append(_line(offer, rule, selection.quantity, term, on))
    for line in lines:
        if sum(other.service == line.service for other in lines) > 1:
            raise ServiceSelectedTwice(f"{line.service} is selected twice; put the whole quantity into one line.")
    totals = taxes(lines, {(rule.category, rule.rate_bp): rule.note for rule in rules})
    if sum(tax.net_minor + tax.tax_minor for tax in totals) > MINOR_MAX:
        raise QuantityNotPossible(f"The order comes to more than {MINOR_MAX:,} minor units of {currency}; order less.")
    return Quote(
        seller=prices.seller,
        currency=prices.currency,
        price_list_version=prices.version,
        priced_on=on,
        term=term,
        lines=tuple(lines),
        taxes=totals,
    )


def _offer(prices: PriceListPublished, selection: Selection) -> Offer:
    offer = prices.offer(selection.service)
    if offer is None:
        known = ", ".join(offer.service for offer in prices.offers)
        raise UnknownService(f"There is no service {selection.service!r}; the services are {known}.")
    if offer.pricing is Pricing.FLAT and selection.quantity != 1:
        raise QuantityNotPossible(f"{offer.service} has no quantity; select it once, not {selection.quantity} times.")
    if not 1 <= selection.quantity <= UNITS_MAX:
        raise QuantityNotPossible(
            f"{selection.quantity} is not a valid quantity of {offer.service}; use 1 to {UNITS_MAX:,}."
        )
    return offer


def _line(offer: Offer, rule: TaxRule, quantity: int, term: Term, on: date) -> Line:
    remaining, days = (1, 1) if offer.one_time else (term.remaining(on), term.days)
    return Line(
        **offer.model_dump(exclude={"tax_class"}),
        quantity=quantity,
        days_remaining=term.remaining(on),
        days_of_term=term.days,
        amount_minor=round_half_up(offer.unit_price_minor * quantity * remaining, days),
        tax_category=rule.category,
        tax_rate_bp=rule.rate_bp,
    )


def taxes(lines: Sequence[Line], notes: dict[tuple[TaxCategory, int], str]) -> tuple[TaxTotal, ...]:
    """The tax per category and rate, in the order of their first lines."""
    totals = []
    for (category, rate_bp), note in notes.items():
        net = sum(line.amount_minor for line in lines if (line.tax_category, line.tax_rate_bp) == (category, rate_bp))
        tax = round_half_up(net * rate_bp, 10_000)
        totals.append(TaxTotal(category=category, rate_bp=rate_bp, note=note, net_minor=net, tax_minor=tax))
    return tuple(totals)
