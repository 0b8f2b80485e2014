"""Every figure here was worked out by hand: a fifth of the year is left on 20 October (73 of 365 days)."""

from collections.abc import Iterable
from datetime import date

import pytest

from domain.messages import Refusal
from domain.money import Money
from domain.price_list import Offer, PriceList, TaxRule
from domain.quote import (
    NoPriceList,
    NothingSelected,
    NotSoldThere,
    OutsideTheTerm,
    QuantityNotPossible,
    Quote,
    Selection,
    ServiceSelectedTwice,
    TaxTotal,
    Term,
    UnknownService,
    quote,
)
from tests.support.examples import OFFERS, PRICES, TAXES, TODAY, YEAR, eur, offer, published, quoted
from tests.support.given_domain import but

LEAP_YEAR = Term(starts_on=date(2028, 1, 1), ends_on=date(2029, 1, 1))


def select(service: str, quantity: int = 1) -> Selection:
    return Selection(service=service, quantity=quantity)


def ask(
    *selections: Selection,
    offers: Iterable[Offer] = OFFERS,
    taxes: Iterable[TaxRule] = TAXES,
    on: date = TODAY,
    term: Term = YEAR,
    country: str = "DE",
) -> Quote:
    prices = PriceList(versions=(but(published, offers=tuple(offers), taxes=tuple(taxes)),))
    return quote(prices, currency="EUR", country=country, term=term, on=on, selections=selections)


@pytest.mark.parametrize(
    ("on", "days_remaining", "amount_minor"),
    [
        (date(2026, 1, 1), 365, 36_50),  # the first day: the whole price
        (date(2026, 1, 2), 364, 36_40),
        (date(2026, 10, 20), 73, 7_30),
        (date(2026, 12, 31), 1, 10),  # the last day: 1/365
    ],
)
def test_an_extension_costs_its_price_for_the_days_that_are_left(
    on: date, days_remaining: int, amount_minor: int
) -> None:
    line = ask(select("extensions"), on=on).lines[0]
    assert (line.days_remaining, line.days_of_term, line.amount_minor) == (days_remaining, 365, amount_minor)


@pytest.mark.parametrize(
    ("on", "days_remaining", "amount_minor"),
    [
        (date(2028, 1, 1), 366, 366_00),
        (date(2028, 2, 28), 308, 308_00),
        (date(2028, 2, 29), 307, 307_00),
        (date(2028, 3, 1), 306, 306_00),
        (date(2028, 12, 31), 1, 1_00),
    ],
)
def test_a_leap_year_has_366_days(on: date, days_remaining: int, amount_minor: int) -> None:
    line = ask(select("rooms"), offers=[offer("rooms", "room", 366_00)], on=on, term=LEAP_YEAR).lines[0]
    assert (line.days_remaining, line.days_of_term, line.amount_minor) == (days_remaining, 366, amount_minor)


def test_a_term_across_a_leap_day_counts_it() -> None:
    across = Term(starts_on=date(2027, 7, 1), ends_on=date(2028, 7, 1))
    line = ask(select("extensions"), on=date(2028, 2, 29), term=across).lines[0]
    assert (line.days_remaining, line.days_of_term) == (123, 366)
    assert line.amount_minor == 12_27  # 3650 x 123 / 366 = 1226.6


def test_a_quantity_is_multiplied_before_it_is_rounded() -> None:
    one, hundred = (ask(select("recording_minutes", n), on=date(2026, 12, 31)).net for n in (1, 100))
    assert one == eur(0)  # 5 / 365
    assert hundred == eur(1)  # 500 / 365 = 1.37


@pytest.mark.parametrize(("unit_price_minor", "amount_minor"), [(1, 1), (3, 2), (5, 3), (181, 91)])
def test_exactly_half_a_cent_is_rounded_up(unit_price_minor: int, amount_minor: int) -> None:
    half_left = Term(starts_on=date(2026, 10, 19), ends_on=date(2026, 10, 21))
    line = ask(select("rooms"), offers=[offer("rooms", "room", unit_price_minor)], term=half_left).lines[0]
    assert (line.days_remaining, line.days_of_term, line.amount_minor) == (1, 2, amount_minor)


def test_just_under_half_a_cent_is_rounded_down() -> None:
    line = ask(select("rooms"), offers=[offer("rooms", "room", 182)], on=date(2026, 12, 31)).lines[0]
    assert line.amount_minor == 0  # 182 / 365


@pytest.mark.parametrize("on", [date(2026, 1, 1), TODAY, date(2026, 12, 31)])
def test_one_time_minutes_cost_the_same_on_every_day(on: date) -> None:
    line = ask(select("transcription_minutes", 600), on=on).lines[0]
    assert (line.one_time, line.amount_minor) == (True, 24_00)


def test_a_flat_service_is_one_line_for_the_days_that_are_left() -> None:
    line = ask(select("ycm_white_label")).lines[0]
    assert (line.pricing, line.quantity, line.amount_minor) == ("flat", 1, 146_00)
    assert not line.to_pbxs


def test_all_eight_services_on_one_day() -> None:
    summary = ask(*(select(offer.service) for offer in OFFERS))
    amounts = {line.service: line.amount_minor for line in summary.lines}
    assert amounts == {
        "extensions": 7_30,
        "ultimate_plan": 3_65,
        "recording_minutes": 1,
        "high_availability": 73_00,
        "transcription_minutes": 4,
        "ycm_white_label": 146_00,
        "pce_white_label": 109_50,
        "custom_domain": 21_90,
    }
    assert summary.net == eur(361_40)
    assert [tax.net_minor for tax in summary.taxes] == [339_50, 21_90]
    assert [tax.tax_minor for tax in summary.taxes] == [64_51, 1_53]  # 64.505 and 1.533
    assert summary.tax == eur(66_04)
    assert summary.total == eur(427_44)


def test_lines_are_rounded_and_then_added() -> None:
    rooms, tables = offer("rooms", "room", 3), offer("tables", "table", 3)
    half_left = Term(starts_on=date(2026, 10, 19), ends_on=date(2026, 10, 21))
    summary = ask(select("rooms"), select("tables"), offers=[rooms, tables], term=half_left)
    assert summary.net == eur(4)  # 1.5 + 1.5, each rounded to 2


def test_tax_is_rounded_once_per_rate_and_not_per_line() -> None:
    rooms, tables = offer("rooms", "room", 5), offer("tables", "table", 5)
    summary = ask(
        select("rooms"),
        select("tables"),
        offers=[rooms, tables],
        taxes=[TaxRule(country="DE", rate_bp=10_00)],
        on=date(2026, 1, 1),
    )
    assert summary.taxes == (
        TaxTotal(category="S", rate_bp=10_00, note="", net_minor=10, tax_minor=1),
    )  # not 0.5 twice


def test_each_rate_has_its_own_net_and_tax() -> None:
    summary = ask(select("extensions", 50), select("custom_domain"), select("ultimate_plan", 20))
    assert summary.taxes == (
        TaxTotal(category="S", rate_bp=19_00, note="", net_minor=438_00, tax_minor=83_22),
        TaxTotal(category="S", rate_bp=7_00, note="", net_minor=21_90, tax_minor=1_53),
    )
    assert (summary.net, summary.tax, summary.total) == (eur(459_90), eur(84_75), eur(544_65))


def test_exactly_half_a_cent_of_tax_is_rounded_up() -> None:
    summary = ask(select("rooms"), offers=[offer("rooms", "room", 50)], on=date(2026, 1, 1))
    assert summary.tax == eur(10)  # 19 % of 0.50 = 0.095


def test_a_reverse_charge_says_why_there_is_no_tax() -> None:
    summary = ask(select("extensions"), country="NL")
    assert summary.taxes == (TaxTotal(category="AE", rate_bp=0, note="Reverse charge", net_minor=7_30, tax_minor=0),)
    assert summary.total == summary.net == eur(7_30)


def test_the_summary_keeps_every_figure_that_its_prices_are_made_of() -> None:
    summary = quoted(extensions=50)
    line = summary.lines[0]
    assert (summary.seller, summary.price_list_version, summary.priced_on, summary.term) == ("YT", 1, TODAY, YEAR)
    assert (line.unit_price_minor, line.quantity, line.days_remaining, line.days_of_term) == (36_50, 50, 73, 365)
    assert (line.tax_category, line.tax_rate_bp) == ("S", 19_00)


def test_the_prices_in_force_on_the_day_apply() -> None:
    dearer = but(published, version=2, valid_from=date(2026, 10, 20), offers=(offer("extensions", "extension", 73_00),))
    prices = PriceList(versions=(published, dearer))
    before, on_the_day = (
        quote(prices, currency="EUR", country="DE", term=YEAR, on=on, selections=[select("extensions")])
        for on in (date(2026, 10, 19), TODAY)
    )
    assert (before.price_list_version, before.net) == (1, eur(7_40))
    assert (on_the_day.price_list_version, on_the_day.net) == (2, eur(14_60))


def test_the_maximum_quantity_can_be_ordered() -> None:
    assert ask(select("extensions", 1_000_000)).net == eur(7_300_000_00)


@pytest.mark.parametrize(
    ("selections", "reason", "sentence"),
    [
        ([], NothingSelected, "The order has no lines; select at least one service."),
        (
            [select("extension")],
            UnknownService,
            f"There is no service 'extension'; the services are {', '.join(offer.service for offer in OFFERS)}.",
        ),
        (
            [select("extensions", 0)],
            QuantityNotPossible,
            "0 is not a valid quantity of extensions; use 1 to 1,000,000.",
        ),
        (
            [select("extensions", -1)],
            QuantityNotPossible,
            "-1 is not a valid quantity of extensions; use 1 to 1,000,000.",
        ),
        (
            [select("recording_minutes", 1_000_001)],
            QuantityNotPossible,
            "1000001 is not a valid quantity of recording_minutes; use 1 to 1,000,000.",
        ),
        (
            [select("custom_domain", 2)],
            QuantityNotPossible,
            "custom_domain has no quantity; select it once, not 2 times.",
        ),
        (
            [select("custom_domain"), select("custom_domain")],
            ServiceSelectedTwice,
            "custom_domain is selected twice; put the whole quantity into one line.",
        ),
        (
            [select("extensions", 20), select("ultimate_plan"), select("extensions", 30)],
            ServiceSelectedTwice,
            "extensions is selected twice; put the whole quantity into one line.",
        ),
    ],
)
def test_a_selection_that_cannot_be_priced_is_refused(
    selections: list[Selection], reason: type[Refusal], sentence: str
) -> None:
    with pytest.raises(reason) as refusal:
        ask(*selections)
    assert str(refusal.value) == sentence


@pytest.mark.parametrize("on", [date(2025, 12, 31), date(2027, 1, 1), date(2036, 1, 1)])
def test_a_package_is_not_expanded_outside_its_term(on: date) -> None:
    prices = PriceList(versions=(but(published, valid_from=date(2025, 1, 1)),))
    with pytest.raises(OutsideTheTerm, match=f"from 2026-01-01 to 2027-01-01; it cannot be expanded on {on}"):
        quote(prices, currency="EUR", country="DE", term=YEAR, on=on, selections=[select("extensions")])


def test_a_term_without_days_never_divides() -> None:
    with pytest.raises(OutsideTheTerm):
        ask(select("extensions"), term=Term(starts_on=TODAY, ends_on=TODAY))


def test_a_currency_without_a_price_list_is_refused() -> None:
    with pytest.raises(NoPriceList, match="There is no price list in USD on 2026-10-20"):
        quote(PriceList(), currency="USD", country="DE", term=YEAR, on=TODAY, selections=[select("extensions")])


def test_before_the_first_price_list_there_are_no_prices() -> None:
    term = Term(starts_on=date(2025, 7, 1), ends_on=date(2026, 7, 1))
    with pytest.raises(NoPriceList, match="on 2025-12-31"):
        quote(PRICES, currency="EUR", country="DE", term=term, on=date(2025, 12, 31), selections=[select("extensions")])


@pytest.mark.parametrize(
    ("country", "service", "tax_class"), [("CH", "extensions", "standard"), ("FR", "custom_domain", "reduced")]
)
def test_a_country_without_a_tax_rate_is_refused(country: str, service: str, tax_class: str) -> None:
    with pytest.raises(NotSoldThere, match=f"YT EUR has no {tax_class} tax rate for {country}"):
        ask(select(service), country=country)


def test_a_total_above_the_largest_amount_is_refused() -> None:
    with pytest.raises(QuantityNotPossible, match="more than 9,007,199,254,740,992 minor units of EUR"):
        ask(select("moons", 1_000_000), offers=[offer("moons", "moon", 10**12)])


def test_the_largest_amount_is_not_refused() -> None:
    most = Money(amount_minor=2**53, currency="EUR")
    moon = offer("moons", "moon", 2**33, one_time=True)
    assert (
        ask(select("moons", 2**19), select("suns", 2**19), offers=[moon, but(moon, service="suns")], country="NL").total
        == most
    )
