"""What happened to each invoice link, at every attempt?"""

from __future__ import annotations

import pytest

from domain.invoice_link import LinkRefused, RefusalReason
from projections.invoice_links import INVOICE_LINKS, InvoiceLinkAttemptRow, InvoiceLinkRow
from tests.support.examples import (
    DEADLINE,
    LATER,
    NOW,
    consumed,
    emailed,
    invoice_issued,
    link_issued,
    revoked,
)
from tests.support.given_domain import but
from tests.support.given_projection import given


def refused(reason: RefusalReason) -> LinkRefused:
    return LinkRefused(link_id="link-1", reason=reason, refused_at=DEADLINE)


def test_a_link_is_issued() -> None:
    given(INVOICE_LINKS, invoice_issued).when(link_issued).then(
        {
            "link-1": InvoiceLinkRow(
                link_id="link-1",
                invoice_id="invoice-1",
                order_id="order-1",
                account_id="acme",
                ordinal=1,
                state="issued",
                issued_at=NOW,
                expires_at=link_issued.expires_at,
            )
        }
    )


def test_it_is_mailed() -> None:
    given(INVOICE_LINKS, link_issued).when(emailed).then({"link-1": {"emailed_at": LATER}})


def test_it_is_consumed_and_that_is_an_attempt() -> None:
    given(INVOICE_LINKS, link_issued).when(consumed).then(
        {
            "link-1": {"state": "consumed", "consumed_at": LATER},
            "link-1/2": InvoiceLinkAttemptRow("link-1", 2, "acme", "consumed", LATER),
        }
    )


@pytest.mark.parametrize("reason", RefusalReason)
def test_a_refused_use_is_an_attempt_and_changes_nothing_else(reason: RefusalReason) -> None:
    given(INVOICE_LINKS, link_issued).when(refused(reason)).then(
        {"link-1/2": InvoiceLinkAttemptRow("link-1", 2, "acme", reason.value, DEADLINE)}
    )


def test_each_attempt_is_kept_even_at_the_same_moment() -> None:
    shown = given(INVOICE_LINKS, link_issued, consumed).after([refused(RefusalReason.USED)] * 3)
    attempts = [row for row in shown.rows.values() if isinstance(row, InvoiceLinkAttemptRow)]
    assert [(row.position, row.outcome) for row in attempts] == [
        (2, "consumed"),
        (3, "used"),
        (4, "used"),
        (5, "used"),
    ]


def test_it_is_revoked_for_a_newer_one() -> None:
    newer = but(link_issued, link_id="link-2", ordinal=2)
    shown = given(INVOICE_LINKS, link_issued).when(revoked, newer)
    assert shown.after.rows["link-2"] == InvoiceLinkRow(
        "link-2", "invoice-1", "order-1", "acme", 2, "issued", NOW, link_issued.expires_at
    )
    given(INVOICE_LINKS, link_issued).when(revoked).then({"link-1": {"state": "revoked"}})
