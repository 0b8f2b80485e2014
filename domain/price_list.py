"""Price lists: published, versioned, dated and immutable. One stream per seller and currency."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from domain.messages import Command, Decider, Event, Message, Refusal, Text
from domain.money import Currency
from domain.services import Pricing, ServiceCode

Country = Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")]
"""An ISO 3166-1 alpha-2 code."""

SellerCode = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9]{1,7}$")]
"""The short name of a seller and the prefix of its invoice numbers."""

TaxClass = Literal["standard", "reduced"]
TaxCategory = Literal["S", "Z", "E", "AE", "G", "O"]
"""A VAT category of EN 16931 (UNTDID 5305): standard, zero, exempt, reverse charge, export, out of scope."""


class Offer(Message):
    """One line of a price list: a service and the price of one unit for a full term.

    A ``one_time`` service is not prorated: it costs the full price at any time of the term. ``to_pbxs`` means that its
    units are allocated to PBXs from the package's pool.
    """

    service: ServiceCode
    title: Text
    unit: Text
    pricing: Pricing
    to_pbxs: bool
    one_time: bool = False
    unit_price_minor: Annotated[int, Field(strict=True, ge=0, le=10**12)]
    tax_class: TaxClass = "standard"


class TaxRule(Message):
    """The tax of a tax class for customers in ``country``; ``rate_bp`` is in basis points (1900 is 19 %)."""

    country: Country
    tax_class: TaxClass = "standard"
    category: TaxCategory = "S"
    rate_bp: Annotated[int, Field(strict=True, ge=0, le=10_000)]
    note: str = ""


class PriceListPublished(Event):
    """These prices hold from ``valid_from`` until a later version replaces them."""

    TOPIC: ClassVar[str] = "price_list.PriceListPublished.v1"
    seller: SellerCode
    currency: Currency
    version: int
    valid_from: date
    offers: tuple[Offer, ...]
    taxes: tuple[TaxRule, ...]

    def offer(self, service: str) -> Offer | None:
        """The line of ``service``; None if it is not sold."""
        return next((offer for offer in self.offers if offer.service == service), None)

    def tax(self, country: str, tax_class: str) -> TaxRule | None:
        """The tax rule of ``country`` for ``tax_class``; None if the seller does not sell there."""
        return next((rule for rule in self.taxes if (rule.country, rule.tax_class) == (country, tax_class)), None)


class PublishPriceList(Command):
    """Publish a version. Repeating it with the same content changes nothing."""

    seller: SellerCode
    currency: Currency
    version: Annotated[int, Field(strict=True, ge=1)]
    valid_from: date
    offers: Annotated[tuple[Offer, ...], Field(min_length=1)]
    taxes: Annotated[tuple[TaxRule, ...], Field(min_length=1)]


PriceListCommand = PublishPriceList
PriceListEvent = PriceListPublished


@dataclass(frozen=True)
class PriceList:
    """Every version of one seller's prices in one currency, oldest first."""

    versions: tuple[PriceListPublished, ...] = ()

    def in_force(self, on: date) -> PriceListPublished | None:
        """The version in force on a day; None before the first."""
        return next((version for version in reversed(self.versions) if version.valid_from <= on), None)


class PriceListVersionExists(Refusal):
    """A published version cannot be changed."""


class PriceListOutOfOrder(Refusal):
    """A version does not follow the previous one."""


class PriceListAmbiguous(Refusal):
    """A service or a tax rule appears twice in one price list."""


def decide(command: PriceListCommand, price_list: PriceList) -> list[PriceListEvent]:
    """The published version; no event if it was already published.

    Raises:
        Refusal: the version exists with other content, leaves a gap, or is not valid later than the last one; or a
        service or a tax rule appears twice.
    """
    published = PriceListPublished.model_validate(command.model_dump(exclude={"at"}))
    if published in price_list.versions:
        return []
    latest = price_list.versions[-1] if price_list.versions else None
    following = latest.version + 1 if latest else 1
    if command.version < following:
        raise PriceListVersionExists(
            f"Version {command.version} of price list {command.seller} {command.currency} is already published; "
            f"publish the new prices as version {following}."
        )
    if command.version > following:
        raise PriceListOutOfOrder(f"Version {command.version} would leave a gap; the next version is {following}.")
    if latest and command.valid_from <= latest.valid_from:
        raise PriceListOutOfOrder(
            f"Version {command.version} is dated {command.valid_from}; it must come after version {latest.version}, "
            f"which holds from {latest.valid_from}."
        )
    _refuse_twice("service", [offer.service for offer in command.offers])
    _refuse_twice("tax rule", [f"{rule.country} {rule.tax_class}" for rule in command.taxes])
    return [published]


def _refuse_twice(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise PriceListAmbiguous(f"The {what} {name} appears twice in the price list; keep one of them.")


def evolve(price_list: PriceList, event: PriceListEvent) -> PriceList:
    """The prices after one more version."""
    return replace(price_list, versions=(*price_list.versions, event))


PRICE_LIST: Decider[PriceListCommand, PriceList, PriceListEvent] = Decider("price_list", PriceList(), decide, evolve)


def price_list_id(seller: str, currency: str) -> str:
    """The stream id of one seller's prices in one currency."""
    return f"{seller}-{currency}"
