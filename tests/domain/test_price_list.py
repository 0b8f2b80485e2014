from datetime import date, timedelta

import pytest

from domain.messages import Refusal
from domain.price_list import (
    PRICE_LIST,
    PriceListAmbiguous,
    PriceListOutOfOrder,
    PriceListVersionExists,
    PublishPriceList,
    price_list_id,
)
from tests.support.examples import OFFERS, TAXES, publish, published
from tests.support.given_domain import but, given

CHEAPER = (but(OFFERS[0], unit_price_minor=30_00), *OFFERS[1:])
publish_2 = but(publish, version=2, valid_from=date(2026, 7, 1), offers=CHEAPER)
published_2 = but(published, version=2, valid_from=date(2026, 7, 1), offers=CHEAPER)


def test_a_price_list_is_published() -> None:
    prices = given(PRICE_LIST).when(publish).then(published)
    assert prices.state.versions == (published,)


def test_a_version_follows_the_one_before_it() -> None:
    prices = given(PRICE_LIST, published).when(publish_2).then(published_2)
    assert prices.state.versions == (published, published_2)


@pytest.mark.parametrize("again", [publish, publish_2])
def test_a_version_published_twice_is_published_once(again: PublishPriceList) -> None:
    given(PRICE_LIST, published, published_2).when(again).then_nothing()


@pytest.mark.parametrize(
    ("wrong", "reason", "sentence"),
    [
        (but(publish, offers=CHEAPER), PriceListVersionExists, "publish the new prices as version 2"),
        (but(publish_2, version=3), PriceListOutOfOrder, "would leave a gap; the next version is 2"),
        (but(publish_2, valid_from=publish.valid_from), PriceListOutOfOrder, "after version 1, which holds from 2026"),
        (but(publish_2, offers=(*OFFERS, OFFERS[0])), PriceListAmbiguous, "The service extensions appears twice"),
        (but(publish_2, taxes=(*TAXES, TAXES[1])), PriceListAmbiguous, "The tax rule DE reduced appears twice"),
    ],
)
def test_an_inconsistent_price_list_is_refused(wrong: PublishPriceList, reason: type[Refusal], sentence: str) -> None:
    given(PRICE_LIST, published).when(wrong).then_refused(reason, saying=sentence)


def test_the_first_version_is_version_1() -> None:
    given(PRICE_LIST).when(publish_2).then_refused(PriceListOutOfOrder, saying="the next version is 1")


def test_the_later_of_two_second_versions_published_at_once_is_refused() -> None:
    dearer = but(publish_2, offers=OFFERS)
    given(PRICE_LIST, published).when(dearer).losing_to(publish_2).then_refused(
        PriceListVersionExists, saying="Version 2 of price list YT EUR is already published"
    )


@pytest.mark.parametrize(
    ("on", "version"),
    [
        (date(2026, 1, 1), 1),
        (date(2026, 6, 30), 1),
        (date(2026, 7, 1), 2),
        (date(2036, 1, 1), 2),
    ],
)
def test_a_version_holds_from_its_first_day_until_the_next_takes_over(on: date, version: int) -> None:
    in_force = given(PRICE_LIST, published, published_2).state.in_force(on)
    assert in_force
    assert in_force.version == version


def test_before_the_first_version_there_are_no_prices() -> None:
    assert given(PRICE_LIST, published).state.in_force(published.valid_from - timedelta(days=1)) is None


def test_every_seller_and_every_currency_has_its_own_prices() -> None:
    assert len({price_list_id("YT", "EUR"), price_list_id("YT", "USD"), price_list_id("XT", "EUR")}) == 3
