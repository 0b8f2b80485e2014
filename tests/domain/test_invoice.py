"""The invoice here: 438.00 at 19 % and 21.90 at 7 %, which is 459.90 net, 83.22 + 1.53 tax, and 544.65 in all."""

from datetime import UTC, datetime, timedelta, timezone

import hypothesis
import pytest
from hypothesis import strategies as st

from domain.invoice import INVOICE, StillKept, UnknownInvoice, credit_of, kept_until, let_go_before
from domain.quote import TaxTotal
from tests.support.examples import (
    LATER,
    NOW,
    ORDERED,
    credit_note_issued,
    delete_document,
    document_deleted,
    emailed,
    eur,
    invoice_issued,
    issue_credit_note,
    issue_invoice,
    quoted,
    record_emailed,
)
from tests.support.given_domain import but, given


def test_an_invoice_is_issued() -> None:
    invoice = given(INVOICE).when(issue_invoice).then(invoice_issued).state
    assert invoice.issued == invoice_issued
    assert invoice_issued.number == "YT-2026-000001"
    assert invoice_issued.issued_at == LATER


def test_an_invoice_issued_twice_is_issued_once_and_never_changed() -> None:
    given(INVOICE, invoice_issued).when(issue_invoice).then_nothing()
    given(INVOICE, invoice_issued).when(but(issue_invoice, number="YT-2026-000007", at=NOW)).then_nothing()


def test_the_first_of_two_issuers_at_once_sets_the_invoice_number() -> None:
    invoice = given(INVOICE).when(but(issue_invoice, number="YT-2026-000007")).losing_to(issue_invoice).then_nothing()
    assert invoice.state.issued == invoice_issued


def test_a_mail_of_an_invoice_is_recorded() -> None:
    assert given(INVOICE, invoice_issued).when(record_emailed).then(emailed).state.emailed == {"link-1"}


def test_a_mail_recorded_twice_is_recorded_once() -> None:
    given(INVOICE, invoice_issued, emailed).when(but(record_emailed, message_id="<2@yt.example>")).then_nothing()


def test_a_mail_with_a_new_link_is_another_mail() -> None:
    given(INVOICE, invoice_issued, emailed).when(but(record_emailed, link_id="link-2")).then(
        but(emailed, link_id="link-2")
    )


def test_a_mail_of_an_invoice_that_was_never_issued_is_refused() -> None:
    given(INVOICE).when(record_emailed).then_refused(UnknownInvoice, saying="no invoice invoice-1; issue it first")


def test_a_mail_recorded_twice_at_once_is_recorded_once() -> None:
    given(INVOICE, invoice_issued).when(record_emailed).losing_to(record_emailed).then_nothing()


def test_a_refund_issues_a_credit_note_that_names_its_invoice() -> None:
    note = given(INVOICE).when(issue_credit_note).then(credit_note_issued).state
    assert note.issued == credit_note_issued
    assert (credit_note_issued.number, credit_note_issued.invoice_number) == ("YT-2026-000002", "YT-2026-000001")


def test_a_credit_note_issued_twice_is_issued_once() -> None:
    given(INVOICE, credit_note_issued).when(issue_credit_note).then_nothing()


def test_a_credit_note_issued_twice_at_once_is_issued_once() -> None:
    again = but(issue_credit_note, number="YT-2026-000003")
    given(INVOICE).when(again).losing_to(issue_credit_note).then_nothing()


# --- retention -----------------------------------------------------------------------------------------------------

MOMENTS = st.datetimes(datetime(1990, 1, 1), datetime(2140, 1, 1), timezones=st.timezones())  # noqa: DTZ001 - bounds


def test_a_document_is_deleted_after_its_retention_period() -> None:
    state = given(INVOICE, invoice_issued).when(delete_document).then(document_deleted).state
    assert state.deleted
    assert state.issued == invoice_issued


def test_a_document_is_kept_until_the_last_moment_of_its_retention_period() -> None:
    too_soon = but(delete_document, at=delete_document.at - timedelta(microseconds=1))
    saying = "YT-2026-000001 must be kept until 2035-01-01"
    given(INVOICE, invoice_issued).when(too_soon).then_refused(StillKept, saying=saying)
    given(INVOICE, credit_note_issued).when(too_soon).then_refused(StillKept, saying="YT-2026-000002")


def test_retention_years_are_utc_years() -> None:
    new_york = timezone(timedelta(hours=-5))
    assert kept_until(datetime(2026, 12, 31, 20, tzinfo=new_york), 8) == datetime(2036, 1, 1, tzinfo=UTC)


@hypothesis.given(MOMENTS, MOMENTS, st.integers(1, 100))
def test_both_retention_functions_agree(issued_at: datetime, at: datetime, years: int) -> None:
    assert (issued_at < let_go_before(at, years)) == (kept_until(issued_at, years) <= at)


def test_a_document_deleted_twice_is_deleted_once() -> None:
    given(INVOICE, invoice_issued, document_deleted).when(delete_document).then_nothing()
    given(INVOICE, invoice_issued).when(delete_document).losing_to(delete_document).then_nothing()


def test_an_invoice_that_was_never_issued_has_no_document_to_delete() -> None:
    given(INVOICE).when(delete_document).then_refused(UnknownInvoice, saying="no invoice invoice-1")


# --- the figures of a credit note ----------------------------------------------------------------------------------


def shares(amount_minor: int) -> list[tuple[int, int]]:
    """The net and the tax of a refund by rate: 19 % and 7 %."""
    _, taxes = credit_of(ORDERED, eur(amount_minor))
    return [(tax.net_minor, tax.tax_minor) for tax in taxes]


def test_a_full_refund_returns_the_figures_of_the_invoice() -> None:
    assert credit_of(ORDERED, ORDERED.total) == (ORDERED.net, ORDERED.taxes)


def test_a_partial_refund_is_split_in_proportion_to_the_invoice() -> None:
    assert credit_of(quoted(extensions=50), eur(217_17)) == (
        eur(182_50),
        (
            TaxTotal(category="S", rate_bp=19_00, note="", net_minor=182_50, tax_minor=34_67),
        ),  # 69.35 x 217.17 / 434.35 = 34.674
    )
    # 100.00 of 544.65: tax 15.2795 and 0.2809, gross 95.6981 and the rest
    assert shares(100_00) == [(80_42, 15_28), (4_02, 28)]


def test_a_refund_of_a_cent_is_a_cent() -> None:
    assert shares(1) == [(1, 0), (0, 0)]


def test_a_cent_of_two_equal_halves_is_one_cent_and_not_two() -> None:
    first, second, _ = ORDERED.lines
    halves = but(
        ORDERED,
        lines=(but(first, amount_minor=1_00), but(second, amount_minor=1_10)),
        taxes=(but(ORDERED.taxes[0], net_minor=1_00, tax_minor=10), but(ORDERED.taxes[1], net_minor=1_10, tax_minor=0)),
    )
    assert credit_of(halves, eur(1))[0] == eur(1)


@pytest.mark.parametrize("amount_minor", [1, 2, 3, 99, 100_00, 272_33, 544_64, 544_65])
def test_net_and_tax_add_up_to_the_refund_exactly(amount_minor: int) -> None:
    net, taxes = credit_of(ORDERED, eur(amount_minor))
    assert net.amount_minor + sum(tax.tax_minor for tax in taxes) == amount_minor
    assert net.amount_minor == sum(tax.net_minor for tax in taxes)
