"""What was billed and paid, and what is owed?"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import hypothesis
from hypothesis import strategies as st

from domain.invoice import CreditNoteIssued, InvoiceIssued, credit_of
from domain.order import AsideReason, Method
from projections.billing import (
    BILLING,
    BillingDocumentRow,
    PaymentRow,
    ReceivableRow,
    owed,
    revenue,
)
from tests.support.examples import (
    DEADLINE,
    LATER,
    NOW,
    ORDERED,
    cancelled,
    captured,
    credit_note_issued,
    declined,
    emailed,
    eur,
    expired,
    invoice_issued,
    no_longer_fits,
    placed,
    placed_offline,
    quoted,
    refunded,
    requested,
)
from tests.support.given_domain import but
from tests.support.given_projection import Given, given

offline_captured = but(captured, method=Method.OFFLINE, capture_id="offline:PI-2026-7")
OWED = given(BILLING, requested, placed_offline)
PAID = given(BILLING, requested, placed, captured)


def documents(shown: Given) -> list[BillingDocumentRow]:
    return shown.projection.folded(shown.history).of(BillingDocumentRow)


def credited(amount_minor: int, invoice: InvoiceIssued = invoice_issued, n: int = 1) -> CreditNoteIssued:
    """The credit note of a refund."""
    net, taxes = credit_of(invoice.quote, eur(amount_minor))
    return but(credit_note_issued, credit_note_id=f"credit-note-{n}", net=net, taxes=taxes, total=eur(amount_minor))


# --- receivables ---------------------------------------------------------------------------------------------------


def test_a_requested_order_is_not_owed() -> None:
    given(BILLING).when(requested).then({"order-1": ReceivableRow("order-1", "acme", "EUR", 544_65, DEADLINE)})


def test_an_order_placed_offline_is_owed_from_then_on() -> None:
    given(BILLING, requested).when(placed_offline).then(
        {"order-1": {"owed": True, "pi_number": "PI-2026-7", "owed_since": NOW}}
    )


def test_an_order_placed_at_the_provider_is_not_owed() -> None:
    given(BILLING, requested).when(placed).then_nothing()


def test_after_switching_to_the_provider_nothing_is_owed_offline() -> None:
    OWED.when(placed).then({"order-1": {"owed": False, "pi_number": None, "owed_since": None}})


def test_a_confirmed_payment_is_recorded_and_settles_the_debt() -> None:
    OWED.when(offline_captured).then(
        {
            "order-1": {"owed": False},
            "order-1/offline:PI-2026-7": PaymentRow(
                "order-1", "offline:PI-2026-7", "acme", "offline", "EUR", 544_65, LATER
            ),
        }
    )


def test_a_payment_of_a_wrong_amount_is_recorded_and_all_is_still_owed() -> None:
    aside = but(no_longer_fits, amount=eur(5_00), reason=AsideReason.AMOUNT_DIFFERS, explanation="Too little.")
    OWED.when(aside).then(
        {
            "order-1/capture-1": PaymentRow(
                "order-1",
                "capture-1",
                "acme",
                "paypal",
                "EUR",
                5_00,
                LATER,
                set_aside="amount_differs",
                explanation="Too little.",
            )
        }
    )


def test_a_cancelled_order_is_not_owed() -> None:
    OWED.when(cancelled).then({"order-1": {"owed": False}})


def test_an_expired_order_is_not_owed() -> None:
    OWED.when(expired).then({"order-1": {"owed": False}})


def test_a_refused_card_and_a_mail_change_nothing_here() -> None:
    PAID.after([invoice_issued]).when(declined, emailed).then_nothing()


# --- payments ------------------------------------------------------------------------------------------------------


def test_a_captured_payment_is_recorded() -> None:
    given(BILLING, requested, placed).when(captured).then(
        {"order-1/capture-1": PaymentRow("order-1", "capture-1", "acme", "paypal", "EUR", 544_65, LATER)}
    )


def test_a_second_payment_is_recorded_beside_the_first() -> None:
    second = but(no_longer_fits, capture_id="capture-2", reason=AsideReason.ALREADY_PAID, explanation="Paid twice.")
    shown = PAID.when(second)
    assert shown.after.rows["order-1/capture-2"] == PaymentRow(
        "order-1",
        "capture-2",
        "acme",
        "paypal",
        "EUR",
        544_65,
        LATER,
        set_aside="already_paid",
        explanation="Paid twice.",
    )
    assert shown.after.rows["order-1/capture-1"] == shown.before.rows["order-1/capture-1"]


def test_refunds_add_up() -> None:
    shown = PAID.when(but(refunded, amount=eur(200_00))).then({"order-1/capture-1": {"refunded_minor": 200_00}})
    shown.when(but(refunded, refund_id="refund-2", amount=eur(344_65))).then(
        {"order-1/capture-1": {"refunded_minor": 544_65}}
    )


def test_a_captured_payment_that_no_longer_fits_is_set_aside() -> None:
    PAID.when(no_longer_fits).then(
        {"order-1/capture-1": {"set_aside": "no_longer_fits", "explanation": "The Ultimate Plan no longer fits."}}
    )


def test_a_refund_before_a_payment_is_set_aside_stays() -> None:
    """A part is refunded between payment and fulfilment; then the rest cannot be fulfilled."""
    PAID.after([but(refunded, amount=eur(200_00))]).when(no_longer_fits).then(
        {"order-1/capture-1": {"set_aside": "no_longer_fits", "explanation": "The Ultimate Plan no longer fits."}}
    )


# --- documents -----------------------------------------------------------------------------------------------------


def test_an_invoice_is_shown_by_service() -> None:
    PAID.when(invoice_issued).then(
        {
            "invoice-1": BillingDocumentRow(
                document_id="invoice-1",
                order_id="order-1",
                account_id="acme",
                kind="invoice",
                number="YT-2026-000001",
                corrects=None,
                currency="EUR",
                net_minor=459_90,
                tax_minor=84_75,
                total_minor=544_65,
                by_service={"extensions": 365_00, "ultimate_plan": 73_00, "custom_domain": 21_90},
                issued_at=LATER,
                sha256=invoice_issued.document.sha256,
            )
        }
    )


def test_a_full_credit_note_reverses_every_figure() -> None:
    PAID.after([invoice_issued]).when(credit_note_issued).then(
        {
            "credit-note-1": BillingDocumentRow(
                document_id="credit-note-1",
                order_id="order-1",
                account_id="acme",
                kind="credit_note",
                number="YT-2026-000002",
                corrects="YT-2026-000001",
                currency="EUR",
                net_minor=-459_90,
                tax_minor=-84_75,
                total_minor=-544_65,
                by_service={"extensions": -365_00, "ultimate_plan": -73_00, "custom_domain": -21_90},
                issued_at=LATER,
                sha256=credit_note_issued.document.sha256,
            )
        }
    )


def test_a_partial_credit_note_reverses_each_service_in_proportion() -> None:
    shown = PAID.after([invoice_issued, credited(200_00)])
    credit = documents(shown)[1]
    assert (credit.net_minor, credit.tax_minor, credit.total_minor) == (-168_88, -31_12, -200_00)
    assert credit.by_service == {"extensions": -134_03, "ultimate_plan": -26_81, "custom_domain": -8_04}
    assert sum(credit.by_service.values()) == credit.net_minor


MANY = quoted(extensions=1, ultimate_plan=1, recording_minutes=3, transcription_minutes=1, custom_domain=1)
FEW_CENTS = quoted(recording_minutes=1, transcription_minutes=1)


@hypothesis.settings(deadline=None)
@hypothesis.given(quote=st.sampled_from([ORDERED, MANY, FEW_CENTS]), share=st.integers(1, 100))
def test_a_credit_note_reduces_each_service_by_its_part_and_increases_none(quote: object, share: int) -> None:
    invoice = but(invoice_issued, quote=quote)
    amount_minor = max(1, invoice.quote.total.amount_minor * share // 100)
    bill, credit = documents(PAID.after([invoice, credited(amount_minor, invoice)]))
    assert sum(credit.by_service.values()) == credit.net_minor
    assert credit.net_minor + credit.tax_minor == credit.total_minor
    for service, net in bill.by_service.items():
        exact = credit.net_minor * net / bill.net_minor
        assert abs(credit.by_service[service] - exact) <= 1
        assert credit.by_service[service] <= 0


# --- revenue -------------------------------------------------------------------------------------------------------


def test_revenue_is_net_by_month_service_and_currency_less_credit_notes() -> None:
    november = LATER + timedelta(days=30)
    second = but(
        invoice_issued, invoice_id="invoice-2", order_id="order-2", quote=quoted(extensions=10), issued_at=november
    )
    shown = PAID.after(
        [
            invoice_issued,
            but(requested, order_id="order-2"),
            second,
            but(credited(200_00), issued_at=november),
            but(credited(100_00, n=2), issued_at=november),
        ]
    )
    assert revenue(documents(shown)) == {
        ("2026-10", "extensions", "EUR"): 365_00,
        ("2026-10", "ultimate_plan", "EUR"): 73_00,
        ("2026-10", "custom_domain", "EUR"): 21_90,
        ("2026-11", "extensions", "EUR"): 73_00 - 134_03 - 67_02,
        ("2026-11", "ultimate_plan", "EUR"): -26_81 - 13_40,
        ("2026-11", "custom_domain", "EUR"): -8_04 - 4_02,
    }


def test_an_invoice_fully_refunded_in_its_month_is_no_revenue() -> None:
    shown = PAID.after([invoice_issued, credit_note_issued])
    assert set(revenue(documents(shown)).values()) == {0}


def test_months_are_utc_months_wherever_the_invoice_was_issued() -> None:
    new_year_in_kathmandu = datetime(2027, 1, 1, 3, tzinfo=timezone(timedelta(hours=5, minutes=45)))
    shown = PAID.after([but(invoice_issued, issued_at=new_year_in_kathmandu)])
    assert {month for month, _, _ in revenue(documents(shown))} == {"2026-12"}


def test_without_invoices_there_is_no_revenue() -> None:
    assert revenue([]) == {}


# --- owed ----------------------------------------------------------------------------------------------------------


def receivable(order_id: str, since: datetime | None, *, owed: bool = True) -> ReceivableRow:
    return ReceivableRow(order_id, "acme", "EUR", 544_65, DEADLINE, owed, None, since)


def test_offline_debts_are_listed_oldest_first_with_their_age() -> None:
    monday = datetime(2026, 10, 19, 8, tzinfo=UTC)
    rows = [
        receivable("order-3", monday + timedelta(hours=3)),
        receivable("order-1", monday - timedelta(days=7)),
        receivable("order-2", monday),
        receivable("order-4", monday + timedelta(days=1)),
        receivable("paid", monday, owed=False),
        receivable("never placed", None, owed=False),
    ]
    wednesday = monday + timedelta(days=2, hours=2)
    assert [(row.order_id, days) for row, days in owed(rows, wednesday)] == [
        ("order-1", 9),
        ("order-2", 2),
        ("order-3", 1),
        ("order-4", 1),
    ]


def test_an_order_placed_today_is_owed_for_0_days() -> None:
    rows = OWED.projection.folded(OWED.history).of(ReceivableRow)
    assert [(row.order_id, row.pi_number, days) for row, days in owed(rows, LATER)] == [("order-1", "PI-2026-7", 0)]
