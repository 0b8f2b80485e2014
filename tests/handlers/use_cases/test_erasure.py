"""What becomes of a purchase whose billing contact is erased on the way; in memory."""

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


def stored(house: InMemory) -> bytes:
    """The state of every event."""
    return b"\n".join(row.state for row in house.recorder.select_notifications(None, 1000))


def test_an_order_that_is_open_needs_another_contact_before_it_is_placed(house: InMemory) -> None:
    house.ordered().ask(erase_receiver)

    with pytest.raises(NoBillingContact, match="was erased; choose another billing contact first"):
        house.ask(check_out(Method.PAYPAL))
    house.ask(BillTo(order_id="order-1", account_id="acme", receiver_id="bucket", contact=BUCKET))
    house.ask(check_out(Method.PAYPAL))

    assert UnitOfWork(house.house.log).state(ORDER, "order-1").status is Status.PLACED


def test_where_the_default_was_erased_a_new_order_names_nobody(house: InMemory) -> None:
    house.opened().ask(erase_receiver)
    house.ask(order())

    assert house.all(BillingContactChosen) == []
    with pytest.raises(NoBillingContact, match="choose a billing contact first"):
        house.ask(check_out(Method.PAYPAL))


def test_what_was_placed_before_is_paid_granted_and_invoiced_to_the_company_and_mailed_to_nobody(
    house: InMemory,
) -> None:
    house.offline().settle()
    told = len(house.mailer.messages)
    house.ask(erase_receiver)
    house.ask(confirm())
    house.settle()

    assert len(house.all(OrderFulfilled)) == 1
    issued = house.one(InvoiceIssued)
    assert issued.buyer == ERASED_CONTACT
    assert (issued.receiver_id, issued.quote.total) == ("wonka", eur(544_65))
    assert house.all(InvoiceEmailed) == []
    assert len(house.mailer.messages) == told
    document = house.house.log.document(issued.document.sha256)
    assert document
    printed = "\n".join(page.extract_text() for page in PdfReader(io.BytesIO(document.content)).pages)
    assert "ACME" in printed
    assert "Germany" in printed
    assert "[erased]" in printed
    assert "Wonka" not in printed


def test_a_refund_after_the_erasure_is_credited_and_mailed_to_nobody(house: InMemory) -> None:
    house.settled()
    told = len(house.mailer.messages)
    house.ask(erase_receiver)
    house.ask(refund())
    house.settle()

    credit = house.one(CreditNoteIssued)
    assert (credit.buyer, credit.total) == (ERASED_CONTACT, eur(544_65))
    assert len(house.mailer.messages) == told


def test_a_link_that_is_renewed_after_the_erasure_is_mailed_to_nobody(house: InMemory) -> None:
    house.settled()
    house.ask(erase_receiver)
    told = len(house.mailer.messages)
    house.ask(RenewInvoiceLink(invoice_id=invoice_of()))
    house.settle()

    assert [link.ordinal for link in house.all(LinkIssued)] == [1, 2]
    assert len(house.mailer.messages) == told


def test_before_the_erasure_the_data_are_to_be_read_and_are_stored_nowhere_as_they_are(house: InMemory) -> None:
    house.refunded().settle()

    assert house.one(InvoiceIssued).buyer == WONKA
    for text in (WONKA.name, WONKA.email, WONKA.company, WONKA.address[0], WONKA.vat_id or ""):
        assert text.encode() not in stored(house)


def test_an_erasure_that_died_after_its_event_is_finished_by_asking_again(house: InMemory) -> None:
    """In memory, where nothing but the handler destroys the key."""
    house.settled()
    house.recorder.crashes = 1
    with pytest.raises(Crashed):
        house.ask(erase_receiver)
    assert house.house.log.has_key(WONKAS)

    house.ask(erase_receiver)

    assert not house.house.log.has_key(WONKAS)
    assert len(house.all(BillingReceiverErased)) == 1
    assert house.one(InvoiceIssued).buyer == ERASED_CONTACT


def test_an_erasure_that_is_refused_destroys_nothing(house: InMemory) -> None:
    house.recorder.rivals.append(lambda: None)
    house.opened()
    with pytest.raises(Exception, match="no billing receiver oompa"):
        house.ask(erase_receiver.model_copy(update={"receiver_id": "oompa"}))
    assert house.house.log.has_key(WONKAS)
