import pytest

from domain.invoice_series import INVOICE_SERIES, invoice_number, series_id
from tests.support.examples import assign, assigned
from tests.support.given_domain import but, given

assign_2 = but(assign, document_id="credit-note-1")
assigned_2 = but(assigned, document_id="credit-note-1", sequence=2)


def test_the_first_number_is_1_and_the_next_one_follows() -> None:
    given(INVOICE_SERIES).when(assign).then(assigned).when(assign_2).then(assigned_2)


def test_a_document_has_one_number() -> None:
    given(INVOICE_SERIES, assigned).when(assign).then_nothing()


def test_the_second_of_two_documents_numbered_at_once_gets_the_next_number() -> None:
    given(INVOICE_SERIES).when(assign_2).losing_to(assign).then(assigned_2)


def test_a_document_numbered_twice_at_once_has_one_number() -> None:
    given(INVOICE_SERIES).when(assign).losing_to(assign).then_nothing()


@pytest.mark.parametrize(
    ("sequence", "printed"),
    [(42, "YT-2026-000042"), (999_999, "YT-2026-999999"), (1_000_000, "YT-2026-1000000")],
)
def test_a_number_is_printed_with_its_seller_and_year(sequence: int, printed: str) -> None:
    assert invoice_number("YT", 2026, sequence) == printed
    assert but(assigned, sequence=sequence).number == printed


def test_every_seller_and_every_year_has_a_series() -> None:
    assert len({series_id("YT", 2026), series_id("YT", 2027), series_id("XT", 2026)}) == 3
