"""The price list of the demo: all eight services, in euros."""

from __future__ import annotations

from datetime import UTC, date, datetime

from domain.price_list import Offer, PublishPriceList, TaxRule
from domain.services import Pricing

BEGIN = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
"""The start of the story, by its shifted clock."""


def _by_quantity(service: str, title: str, unit: str, price_minor: int, *, one_time: bool = False) -> Offer:
    return Offer(
        service=service,
        title=title,
        unit=unit,
        pricing=Pricing.QUANTITY,
        to_pbxs=True,
        one_time=one_time,
        unit_price_minor=price_minor,
    )


def _flat(service: str, title: str, price_minor: int) -> Offer:
    return Offer(
        service=service,
        title=title,
        unit="account",
        pricing=Pricing.FLAT,
        to_pbxs=False,
        unit_price_minor=price_minor,
    )


PRICES = PublishPriceList(
    at=BEGIN,
    seller="YT",
    currency="EUR",
    version=1,
    valid_from=date(2026, 1, 1),
    offers=(
        _by_quantity("extensions", "Extensions", "extension", 12_00),
        _by_quantity("ultimate_plan", "Ultimate Plan", "extension", 18_00),
        _by_quantity("recording_minutes", "Recording minutes", "minute", 2),
        _by_quantity("high_availability", "High Availability for BYOI", "PBX", 240_00),
        _by_quantity("transcription_minutes", "Transcription minutes", "minute", 1, one_time=True),
        _flat("ycm_white_label", "YCM White Label", 600_00),
        _flat("pce_white_label", "PCE White Label", 900_00),
        _flat("custom_domain", "Custom Domain Name", 120_00),
    ),
    taxes=(
        TaxRule(country="DE", rate_bp=19_00),
        TaxRule(country="AT", category="AE", rate_bp=0, note="Reverse charge: VAT is due from the recipient."),
    ),
)
