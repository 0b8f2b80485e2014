"""A purchase whose billing contact is erased on the way, in memory."""

from __future__ import annotations

import io

import pytest
from pypdf import PdfReader

from domain.account import ERASED_CONTACT, BillingReceiverErased
from domain.invoice import CreditNoteIssued, InvoiceEmailed, InvoiceIssued
from domain.invoice_link import LinkIssued
from domain.order import ORDER, BillingContactChosen, Method, NoBillingContact, OrderFulfilled, Status
from handlers.requests import BillTo, RenewInvoiceLink
from infra.event_log.unit_of_work import UnitOfWork
from tests.support.examples import BUCKET, WONKA, erase_receiver, eur
from tests.support.in_memory import Crashed, InMemory, check_out, confirm, invoice_of, order, refund

WONKAS = "acme/wonka"


def stored(store: InMemory) -> bytes:
    """The stored state of every event."""
    return b"\n".join(row.state for row in store.recorder.select_notifications(None, 1000))


def test_an_order_that_is_open_needs_another_contact_before_it_is_placed(store: InMemory) -> None:
    store.ordered().ask(erase_receiver)

    with pytest.raises(NoBillingContact, match="was erased; choose another billing contact first"):
        store.ask(check_out(Method.PAYPAL))
    store.ask(BillTo(order_id="order-1", account_id="acme", receiver_id="bucket", contact=BUCKET))
    store.ask(check_out(Method.PAYPAL))

    assert UnitOfWork(store.dependencies.log).state(ORDER, "order-1").status is Status.PLACED


def test_after_the_default_is_erased_a_new_order_has_no_billing_contact(store: InMemory) -> None:
    store.opened().ask(erase_receiver)
    store.ask(order())

    assert store.all(BillingContactChosen) == []
    with pytest.raises(NoBillingContact, match="choose a billing contact first"):
        store.ask(check_out(Method.PAYPAL))


def test_an_order_placed_before_is_paid_granted_and_invoiced_to_the_company_and_mailed_to_nobody(
    store: InMemory,
) -> None:
    store.offline().settle()
    told = len(store.mailer.messages)
    store.ask(erase_receiver)
    store.ask(confirm())
    store.settle()

    assert len(store.all(OrderFulfilled)) == 1
    issued = store.one(InvoiceIssued)
    assert issued.buyer == ERASED_CONTACT
    assert (issued.receiver_id, issued.quote.total) == ("wonka", eur(544_65))
    assert store.all(InvoiceEmailed) == []
    assert len(store.mailer.messages) == told
    document = store.dependencies.log.document(issued.document.sha256)
    assert document
    printed = "\n".join(page.extract_text() for page in PdfReader(io.BytesIO(document.content)).pages)
    assert "ACME" in printed
    assert "Germany" in printed
    assert "[erased]" in printed
    assert "Wonka" not in printed


def test_a_refund_after_the_erasure_is_credited_and_mailed_to_nobody(store: InMemory) -> None:
    store.settled()
    told = len(store.mailer.messages)
    store.ask(erase_receiver)
    store.ask(refund())
    store.settle()

    credit = store.one(CreditNoteIssued)
    assert (credit.buyer, credit.total) == (ERASED_CONTACT, eur(544_65))
    assert len(store.mailer.messages) == told


def test_a_link_that_is_renewed_after_the_erasure_is_mailed_to_nobody(store: InMemory) -> None:
    store.settled()
    store.ask(erase_receiver)
    told = len(store.mailer.messages)
    store.ask(RenewInvoiceLink(invoice_id=invoice_of()))
    store.settle()

    assert [link.ordinal for link in store.all(LinkIssued)] == [1, 2]
    assert len(store.mailer.messages) == told


def test_before_the_erasure_the_data_can_be_read_but_are_never_stored_in_clear_text(store: InMemory) -> None:
    store.refunded().settle()

    assert store.one(InvoiceIssued).buyer == WONKA
    for text in (WONKA.name, WONKA.email, WONKA.company, WONKA.address[0], WONKA.vat_id or ""):
        assert text.encode() not in stored(store)


def test_an_erasure_that_crashed_after_its_event_is_finished_by_a_retry(store: InMemory) -> None:
    """In memory, only the handler destroys the key."""
    store.settled()
    store.recorder.crashes = 1
    with pytest.raises(Crashed):
        store.ask(erase_receiver)
    assert store.dependencies.log.has_key(WONKAS)

    store.ask(erase_receiver)

    assert not store.dependencies.log.has_key(WONKAS)
    assert len(store.all(BillingReceiverErased)) == 1
    assert store.one(InvoiceIssued).buyer == ERASED_CONTACT


def test_an_erasure_that_is_refused_destroys_nothing(store: InMemory) -> None:
    store.recorder.rivals.append(lambda: None)
    store.opened()
    with pytest.raises(Exception, match="no billing receiver oompa"):
        store.ask(erase_receiver.model_copy(update={"receiver_id": "oompa"}))
    assert store.dependencies.log.has_key(WONKAS)
