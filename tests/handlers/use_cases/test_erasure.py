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


def stored(dependencies: InMemory) -> bytes:
    """The state of every event."""
    return b"\n".join(row.state for row in dependencies.recorder.select_notifications(None, 1000))


def test_an_order_that_is_open_needs_another_contact_before_it_is_placed(dependencies: InMemory) -> None:
    dependencies.ordered().ask(erase_receiver)

    with pytest.raises(NoBillingContact, match="was erased; choose another billing contact first"):
        dependencies.ask(check_out(Method.PAYPAL))
    dependencies.ask(BillTo(order_id="order-1", account_id="acme", receiver_id="bucket", contact=BUCKET))
    dependencies.ask(check_out(Method.PAYPAL))

    assert UnitOfWork(dependencies.dependencies.log).state(ORDER, "order-1").status is Status.PLACED


def test_where_the_default_was_erased_a_new_order_names_nobody(dependencies: InMemory) -> None:
    dependencies.opened().ask(erase_receiver)
    dependencies.ask(order())

    assert dependencies.all(BillingContactChosen) == []
    with pytest.raises(NoBillingContact, match="choose a billing contact first"):
        dependencies.ask(check_out(Method.PAYPAL))


def test_what_was_placed_before_is_paid_granted_and_invoiced_to_the_company_and_mailed_to_nobody(
    dependencies: InMemory,
) -> None:
    dependencies.offline().settle()
    told = len(dependencies.mailer.messages)
    dependencies.ask(erase_receiver)
    dependencies.ask(confirm())
    dependencies.settle()

    assert len(dependencies.all(OrderFulfilled)) == 1
    issued = dependencies.one(InvoiceIssued)
    assert issued.buyer == ERASED_CONTACT
    assert (issued.receiver_id, issued.quote.total) == ("wonka", eur(544_65))
    assert dependencies.all(InvoiceEmailed) == []
    assert len(dependencies.mailer.messages) == told
    document = dependencies.dependencies.log.document(issued.document.sha256)
    assert document
    printed = "\n".join(page.extract_text() for page in PdfReader(io.BytesIO(document.content)).pages)
    assert "ACME" in printed
    assert "Germany" in printed
    assert "[erased]" in printed
    assert "Wonka" not in printed


def test_a_refund_after_the_erasure_is_credited_and_mailed_to_nobody(dependencies: InMemory) -> None:
    dependencies.settled()
    told = len(dependencies.mailer.messages)
    dependencies.ask(erase_receiver)
    dependencies.ask(refund())
    dependencies.settle()

    credit = dependencies.one(CreditNoteIssued)
    assert (credit.buyer, credit.total) == (ERASED_CONTACT, eur(544_65))
    assert len(dependencies.mailer.messages) == told


def test_a_link_that_is_renewed_after_the_erasure_is_mailed_to_nobody(dependencies: InMemory) -> None:
    dependencies.settled()
    dependencies.ask(erase_receiver)
    told = len(dependencies.mailer.messages)
    dependencies.ask(RenewInvoiceLink(invoice_id=invoice_of()))
    dependencies.settle()

    assert [link.ordinal for link in dependencies.all(LinkIssued)] == [1, 2]
    assert len(dependencies.mailer.messages) == told


def test_before_the_erasure_the_data_are_to_be_read_and_are_stored_nowhere_as_they_are(dependencies: InMemory) -> None:
    dependencies.refunded().settle()

    assert dependencies.one(InvoiceIssued).buyer == WONKA
    for text in (WONKA.name, WONKA.email, WONKA.company, WONKA.address[0], WONKA.vat_id or ""):
        assert text.encode() not in stored(dependencies)


def test_an_erasure_that_died_after_its_event_is_finished_by_asking_again(dependencies: InMemory) -> None:
    """In memory, where nothing but the handler destroys the key."""
    dependencies.settled()
    dependencies.recorder.crashes = 1
    with pytest.raises(Crashed):
        dependencies.ask(erase_receiver)
    assert dependencies.dependencies.log.has_key(WONKAS)

    dependencies.ask(erase_receiver)

    assert not dependencies.dependencies.log.has_key(WONKAS)
    assert len(dependencies.all(BillingReceiverErased)) == 1
    assert dependencies.one(InvoiceIssued).buyer == ERASED_CONTACT


def test_an_erasure_that_is_refused_destroys_nothing(dependencies: InMemory) -> None:
    dependencies.recorder.rivals.append(lambda: None)
    dependencies.opened()
    with pytest.raises(Exception, match="no billing receiver oompa"):
        dependencies.ask(erase_receiver.model_copy(update={"receiver_id": "oompa"}))
    assert dependencies.dependencies.log.has_key(WONKAS)
