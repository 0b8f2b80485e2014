"""The scenes of the demo: a whole purchase, and what may go wrong on the way."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from email.message import EmailMessage
from typing import Any, TypeVar

import httpx
from rich.console import Console

from domain.account import BillingContact, OpenAccount
from domain.allocation import AllocateCapacity, CreatePbx, UpgradePbx
from domain.invoice import InvoiceEmailed
from domain.messages import Event, Message, Refusal
from domain.money import Money
from domain.order import ORDER, CancelOrder, ExpansionRequested, Method, OrderPlaced, PaymentCaptured, PaymentSetAside
from domain.quote import Quote, Selection, Term
from domain.services import Plan
from domain.subscription import ActivatePackage
from handlers.context import Actor, Role
from handlers.demo.environment import DemoEnvironment
from handlers.demo.narrator import WAIT_S, Narrator, StoryBroken
from handlers.demo.prices import BEGIN, PRICES
from handlers.dispatch import Outcome, handle
from handlers.requests import (
    BillTo,
    CheckOut,
    CompleteCheckout,
    ConfirmOfflinePayment,
    OrderExpansion,
    RenewInvoiceLink,
)
from handlers.use_cases.invoicing import invoice_id_of
from infra.currencies import format_money, format_rate
from infra.payments.provider import Capture, Checkout, Decline, PaymentProviderUnavailable
from infra.postgres.connections import connect
from infra.simulators.payment_simulator import DECLINED_CARD, GOOD_CARD, Faults
from projections.allocations import AllocationRow
from projections.billing import BillingDocumentRow, PaymentRow, ReceivableRow, owed, revenue
from projections.engine.rows import Row, stored
from projections.entitlements import ENTITLEMENTS, Entitlement, EntitlementRow, entitlements
from projections.invoice_links import InvoiceLinkAttemptRow, InvoiceLinkRow
from projections.maintenance.runner import PROJECTIONS
from projections.orders import OrderRow

E = TypeVar("E", bound=Event)
R = TypeVar("R", bound=Row)
TERM = Term(starts_on=date(2026, 3, 2), ends_on=date(2027, 3, 2))
ADMIN = Actor(Role.ADMIN, "ada")
DISTRIBUTOR = Actor(Role.DISTRIBUTOR, "dora")


class Story:
    """The scenes in order, a method each."""

    def __init__(self, environment: DemoEnvironment, console: Console) -> None:
        self.account_id = f"acme{environment.suffix}"
        self.package_id = f"pkg-acme{environment.suffix}"
        self.partner = Actor(Role.PARTNER, "alice", self.account_id)
        self.narrator = Narrator(environment.running, self.account_id, console)
        self._running = environment.running
        self._clock = environment.clock
        self._simulator = environment.simulator
        self._catcher = environment.catcher
        self._suffix = environment.suffix
        self._asked = 0

    def tell(self) -> dict[str, Any]:
        """Run all scenes. Returns the end state, and every figure that the narration claims."""
        self.begin()
        self.ultimate_by_paypal()
        self.the_mail_and_its_link()
        self.capacity_to_pbxs()
        before_second = self._running.dependencies.log.head()
        self.mid_term_by_card()
        self.offline_with_a_pi_number()
        self.an_expired_link()
        self.a_payment_after_cancellation()
        self.minutes_to_a_pbx()
        self.as_it_was(before_second)
        return self.end()

    # the scenes

    def begin(self) -> None:
        """A price list, an account, a package."""
        with self.narrator.scene(
            "1. A partner and its package",
            "A price list is published, ACME opens an account, and its package is activated: 100 extensions for a "
            f"year, from {TERM.starts_on} to {TERM.ends_on}.",
        ):
            self._ask(PRICES, ADMIN)
            contact = BillingContact(
                name="Alice Anders",
                email="alice@acme.example",
                company="ACME GmbH",
                address=("Hauptstrasse 7", "80331 Munich"),
                country="DE",
                vat_id="DE987654321",
            )
            opening = OpenAccount(
                at=BEGIN,
                account_id=self.account_id,
                name="ACME GmbH",
                seller="YT",
                currency="EUR",
                country="DE",
                manager_email="dora@distributor.example",
                receiver_id="alice",
                contact=contact,
            )
            self._ask(opening, ADMIN)
            activation = ActivatePackage(
                at=BEGIN,
                package_id=self.package_id,
                account_id=self.account_id,
                term=TERM,
                quantities={"extensions": 100},
            )
            self._ask(activation, ADMIN)
            self.narrator.figures["package_extensions"] = 100

    def ultimate_by_paypal(self) -> None:
        """A carve-out, paid by PayPal; the provider repeats its webhook again and again."""
        with self.narrator.scene(
            "2. Twenty extensions go Ultimate, paid by PayPal",
            "On the first day Alice subscribes to the Ultimate Plan for 20 of the 100 extensions. She approves the "
            "payment at the (simulated) provider. Payment grants the capacity at once, issues the invoice, and mails "
            "a link to it.",
        ):
            self._refused(
                OrderExpansion(
                    order_id=self._order(0),
                    account_id=self.account_id,
                    package_id=self.package_id,
                    selections=(Selection(service="ultimate_plan", quantity=101),),
                ),
                "ultimate_above_extensions",
            )
            order_id, quote = self._order_expansion(1, ultimate_plan=20)
            self._explain(quote, "first")
            checkout = self._check_out(order_id, Method.PAYPAL)
            self._simulator.approve(checkout)
            capture = self._complete(order_id, checkout.checkout_id)
            assert isinstance(capture, Capture)
            self._until(InvoiceEmailed)
            delivered = self._simulator.redeliver(capture.capture_id, times=25)
            history = self._running.dependencies.log.load(ORDER.stream(order_id))
            captured = sum(isinstance(recorded.event, PaymentCaptured) for recorded in history)
            if captured != 1 or not all(httpx.codes.is_success(status) for status in delivered):
                raise StoryBroken("A capture that was delivered again was refused, or recorded again.")
            self.narrator.say(
                f"The provider's webhook arrives {len(delivered)} more times; each is answered with 2xx, and none "
                "changes anything.",
                webhooks_redelivered=len(delivered),
                webhook_answers=sorted(set(delivered)),
                captures_recorded_of_the_first_order=captured,
            )
        now = self._entitlements()
        self.narrator.say(
            f"100 extensions: {now['enterprise_plan'].total} Enterprise + {now['ultimate_plan'].total} Ultimate.",
            enterprise_after_first_order=now["enterprise_plan"].total,
            ultimate_after_first_order=now["ultimate_plan"].total,
        )

    def the_mail_and_its_link(self) -> None:
        """The mail that the billing contact receives, and its link."""
        with self.narrator.scene(
            "3. The mail, and a link that works once",
            "This is the mail as it was received, over SMTP:",
        ):
            mail = self._mail_to("alice@acme.example", 1)
            self.narrator.quote(_as_received(mail))
            link = _link_in(mail)
            shown = httpx.get(link, trust_env=False)
            self.narrator.say(
                f"A mail scanner opens the link (GET: {shown.status_code}); that does not use it. Alice presses the "
                "button (POST) and gets the document; the second time she is refused.",
            )
            first = httpx.post(link, trust_env=False)
            issued = hashlib.sha256(first.content).hexdigest()
            documents = self._documents()
            second = httpx.post(link, trust_env=False)
            if issued != documents[-1].sha256 or not first.content.startswith(b"%PDF"):
                raise StoryBroken("The document of the link is not the one that was issued.")
            self.narrator.say(
                f"First use: {first.status_code}, a PDF of {len(first.content):,} bytes whose SHA-256 is in "
                f"InvoiceIssued of {documents[-1].number}."
            )
            self.narrator.refused(f"second use: {second.status_code}, {_refusal_in(second)}")
            self.narrator.figures |= {
                "link_get_status": shown.status_code,
                "link_first_use_status": first.status_code,
                "link_second_use_status": second.status_code,
                "link_second_use_answer": _refusal_in(second),
                "mail_subject": str(mail["Subject"]),
                "invoice_sha256": issued,
                "invoice_bytes": len(first.content),
            }

    def capacity_to_pbxs(self) -> None:
        """The pool is allocated to PBXs, and never oversold."""
        with self.narrator.scene(
            "4. Capacity goes to PBXs",
            "Three PBXs are created from the pool: the head office with 60 Enterprise extensions, sales with 12 on "
            "Ultimate, and a lab with 8 on Enterprise. A fourth needs more than is left, and is refused. The lab is "
            "upgraded: its 8 extensions move from the Enterprise share to the Ultimate share.",
        ):
            self._ask(self._pbx("head-office", "Head office", Plan.ENTERPRISE, 60), self.partner)
            self._ask(self._pbx("sales", "Sales", Plan.ULTIMATE, 12), self.partner)
            self._ask(self._pbx("lab", "Lab", Plan.ENTERPRISE, 8), self.partner)
            self._refused(self._pbx("annex", "Annex", Plan.ENTERPRISE, 13), "one_too_many")
            upgrade = UpgradePbx(
                at=self._clock.now(), account_id=self.account_id, package_id=self.package_id, pbx_id="lab"
            )
            self._ask(upgrade, self.partner)
        now = self._entitlements()
        self.narrator.figures |= {
            "enterprise_available_after_upgrade": now["enterprise_plan"].available,
            "ultimate_available_after_upgrade": now["ultimate_plan"].available,
        }

    def mid_term_by_card(self) -> None:
        """Prorated amounts, and a card that is declined and tried again."""
        self._clock.advance(datetime(2026, 9, 1, 10, 0, tzinfo=UTC) - self._clock.now())
        with self.narrator.scene(
            "5. Half a year later: more of everything, by card",
            "It is 1 September. An expansion ends with the package that it expands, so its price is prorated to the "
            "remaining days. The card is declined; Alice tries another.",
        ):
            order_id, quote = self._order_expansion(
                2,
                extensions=25,
                recording_minutes=10_000,
                transcription_minutes=3_000,
                high_availability=2,
                ycm_white_label=1,
                custom_domain=1,
            )
            self._explain(quote, "second")
            checkout = self._check_out(order_id, Method.CARD)
            self._simulator.enter_card(checkout, DECLINED_CARD)
            decline = self._complete(order_id, checkout.checkout_id)
            assert isinstance(decline, Decline)
            self.narrator.refused(f"by the provider: {decline.reason}")
            self.narrator.figures["decline_reason"] = decline.reason
            self._simulator.enter_card(checkout, GOOD_CARD)
            self._complete(order_id, checkout.checkout_id)
            self._until(InvoiceEmailed)

    def offline_with_a_pi_number(self) -> None:
        """A proforma invoice, whose payment the distributor collects; its number cannot be used again."""
        with self.narrator.scene(
            "6. Offline, with a PI number",
            "PCE White Label and 10 extensions, against proforma invoice PI-2026-0815. A new billing contact, Bob, is "
            "added on the way. The distributor gets a mail, collects the money and confirms it.",
        ):
            order_id, quote = self._order_expansion(3, pce_white_label=1, extensions=10)
            self._explain(quote, "third")
            bob = BillingContact(
                name="Bob Berger",
                email="bob@acme.example",
                company="ACME GmbH, Accounts",
                address=("Hauptstrasse 7", "80331 Munich"),
                country="DE",
            )
            self._ask(
                BillTo(order_id=order_id, account_id=self.account_id, receiver_id="bob", contact=bob), self.partner
            )
            number = f"PI-2026-0815{self._suffix}".upper()
            offline = CheckOut(order_id=order_id, account_id=self.account_id, method=Method.OFFLINE, pi_number=number)
            self._ask(offline, self.partner)
            self._until(OrderPlaced)
            mail = self._mail_to("dora@distributor.example", 1)
            self.narrator.say(
                f"The distributor's mail: {mail['Subject']}", pi_number=number, distributors_mail=str(mail["Subject"])
            )
            self._refused(ConfirmOfflinePayment(order_id=order_id, amount=quote.total), "confirmed_by_the_customer")
            self._ask(ConfirmOfflinePayment(order_id=order_id, amount=quote.total), DISTRIBUTOR)
            self._until(InvoiceEmailed)
            other, _ = self._order_expansion(4, extensions=1)
            self._refused(
                CheckOut(order_id=other, account_id=self.account_id, method=Method.OFFLINE, pi_number=number),
                "pi_number_again",
            )

    def an_expired_link(self) -> None:
        """A link lives for 24 hours."""
        self._clock.advance(timedelta(hours=25))
        with self.narrator.scene(
            "7. A link that was not used in time",
            "Bob opens his mail 25 hours later. The link has expired; an admin issues a new one, and it works.",
        ):
            link = _link_in(self._mail_to("bob@acme.example", 1))
            late = httpx.post(link, trust_env=False)
            self.narrator.refused(f"{late.status_code}, {_refusal_in(late)}")
            self._ask(RenewInvoiceLink(invoice_id=invoice_id_of(self._order(3))), ADMIN)
            self._until(InvoiceEmailed)
            renewed = httpx.post(_link_in(self._mail_to("bob@acme.example", 2)), trust_env=False)
            self.narrator.say(f"The new link: {renewed.status_code}, {len(renewed.content):,} bytes.")
            self.narrator.figures |= {
                "expired_link_status": late.status_code,
                "expired_link_answer": _refusal_in(late),
                "renewed_link_status": renewed.status_code,
                "renewed_link_bytes": len(renewed.content),
            }

    def a_payment_after_cancellation(self) -> None:
        """The answer of the provider is lost, the customer cancels, and the money arrives."""
        with self.narrator.scene(
            "8. A payment after cancellation",
            "Order 4 is to be paid by PayPal after all. The provider takes the money, but its answer is lost; Alice "
            "gives up and cancels. Then the webhook of the provider arrives. The payment is set aside for a "
            "person: it is not lost, and it fulfils nothing.",
        ):
            order_id = self._order(4)
            checkout = self._check_out(order_id, Method.PAYPAL)
            self._simulator.approve(checkout)
            self._simulator.send_webhooks_to(None)
            self._simulator.inject(Faults(capture_timeouts=1))
            try:
                self._complete(order_id, checkout.checkout_id)
            except PaymentProviderUnavailable as error:
                self.narrator.refused(str(error))
                self.narrator.figures["lost_answer"] = str(error)
            else:
                raise StoryBroken("The provider answered, but its answer had to be lost.")
            self._ask(CancelOrder(at=self._clock.now(), order_id=order_id, account_id=self.account_id), self.partner)
            self._simulator.send_webhooks_to(f"{self._running.url}/webhooks/paypal")
            late = self._running.dependencies.provider.capture(checkout.checkout_id)
            assert isinstance(late, Capture)
            self._simulator.redeliver(late.capture_id)
            aside = self._until(PaymentSetAside)
            self.narrator.say(
                f"Set aside: {format_money(aside.amount)}, because the order was {aside.reason}.",
                set_aside_minor=aside.amount.amount_minor,
                set_aside_reason=aside.reason,
            )

    def minutes_to_a_pbx(self) -> None:
        """Recording minutes: the first 500 of a PBX are free."""
        with self.narrator.scene(
            "9. What was bought is allocated",
            "The head office gets 700 recording minutes: 500 are free with every PBX, 200 come from the pool. It "
            "also becomes highly available.",
        ):
            for service, quantity in (("recording_minutes", 700), ("high_availability", 1)):
                allocation = AllocateCapacity(
                    at=self._clock.now(),
                    account_id=self.account_id,
                    package_id=self.package_id,
                    pbx_id="head-office",
                    allocation_id=f"{service}-1",
                    service=service,
                    quantity=quantity,
                )
                self._ask(allocation, self.partner)

    def as_it_was(self, position: int) -> None:
        """A read model as of an earlier position."""
        rows = ENTITLEMENTS.as_of(self._running.dependencies.log, self.account_id, position)
        before = {entitlement.service: entitlement for entitlement in entitlements(rows.of(EntitlementRow))}
        now = self._entitlements()
        self.narrator.table(
            f"Entitlements as they were before the second order (position {position}), and now",
            ["service", "total then", "allocated then", "total now", "allocated now"],
            [
                (
                    service,
                    before[service].total if service in before else "",
                    before[service].allocated if service in before else "",
                    now[service].total,
                    now[service].allocated,
                )
                for service in now
            ],
        )
        self.narrator.figures |= {
            "position_before_the_second_order": position,
            "entitlements_before_the_second_order": {
                service: {"total": entitlement.total, "allocated": entitlement.allocated}
                for service, entitlement in before.items()
            },
        }

    def end(self) -> dict[str, Any]:
        """Show and return the end state, and prove that the read models match the log."""
        now = self._entitlements()
        self.narrator.table(
            "Entitlements of ACME",
            ["service", "total", "allocated", "available", "valid until"],
            [
                (e.service, "on" if e.total else "off", "", "", e.valid_until)
                if e.flat
                else (e.service, f"{e.total:,}", e.allocated, e.available, e.valid_until)
                for e in now.values()
            ],
        )
        documents, payments, receivables = self._documents(), self._rows(PaymentRow), self._rows(ReceivableRow)
        self.narrator.table(
            "Billing of ACME",
            ["number", "kind", "issued", "net", "tax", "total"],
            [
                (
                    row.number,
                    row.kind,
                    f"{row.issued_at:%Y-%m-%d}",
                    *(_money(minor, row.currency) for minor in (row.net_minor, row.tax_minor, row.total_minor)),
                )
                for row in documents
            ]
            + [
                (
                    "",
                    f"set aside, {row.set_aside}",
                    f"{row.captured_at:%Y-%m-%d}",
                    "",
                    "",
                    _money(row.amount_minor, row.currency),
                )
                for row in payments
                if row.set_aside
            ],
        )
        self._prove()
        return {
            "figures": self.narrator.figures,
            "entitlements": [asdict(entitlement) for entitlement in now.values()],
            "allocations": [asdict(row) for row in self._rows(AllocationRow)],
            "orders": [asdict(row) for row in self._rows(OrderRow)],
            "billing": {
                "documents": [asdict(row) for row in documents],
                "payments": [asdict(row) for row in payments],
                "owed": [asdict(row) for row, _ in owed(receivables, self._clock.now())],
                "revenue_minor": [
                    {"month": month, "service": service, "currency": currency, "net_minor": net}
                    for (month, service, currency), net in sorted(revenue(documents).items())
                ],
            },
            "invoice_links": [asdict(row) for row in self._rows(InvoiceLinkRow)],
            "invoice_link_attempts": [asdict(row) for row in self._rows(InvoiceLinkAttemptRow)],
        }

    # helpers of the scenes

    def _prove(self) -> None:
        log = self._running.dependencies.log
        for projection in PROJECTIONS:
            replayed = projection.as_of(log, self.account_id, log.head())
            for table in projection.tables:
                if {r.key(): r for r in replayed.of(table)} != {r.key(): r for r in self._rows(table)}:
                    raise StoryBroken(f"read.{table.TABLE} does not match the log.")
        events = sum(1 for _ in log.history())
        self.narrator.say(
            f"\nProof: {events} events replayed from the start give every row of every read model.",
            events=events,
            replay_equals_read_models=True,
        )

    def _ask(self, message: Message, actor: Actor) -> Outcome:
        self._asked += 1
        return handle(message, self._running.dependencies, actor, correlation_id=f"demo{self._suffix}-{self._asked}")

    def _refused(self, message: Message, figure: str) -> None:
        try:
            self._ask(message, self.partner)
        except Refusal as refusal:
            self.narrator.refused(str(refusal))
            self.narrator.figures[f"refused_{figure}"] = str(refusal)
        else:
            raise StoryBroken(f"{type(message).__name__} was accepted, but had to be refused.")

    def _order(self, number: int) -> str:
        return f"order-{number}{self._suffix}"

    def _order_expansion(self, number: int, **quantities: int) -> tuple[str, Quote]:
        order_id = self._order(number)
        selections = tuple(Selection(service=service, quantity=n) for service, n in quantities.items())
        expansion = OrderExpansion(
            order_id=order_id, account_id=self.account_id, package_id=self.package_id, selections=selections
        )
        outcome = self._ask(expansion, self.partner)
        requested = outcome.context.recorded[0].event
        assert isinstance(requested, ExpansionRequested)
        return order_id, requested.quote

    def _explain(self, quote: Quote, which: str) -> None:
        for line in quote.lines:
            days = "one-time" if line.one_time else f"x {line.days_remaining} of {line.days_of_term} days"
            price = f"{line.quantity:,} x {_money(line.unit_price_minor, quote.currency)} {days}"
            self.narrator.say(f"  {line.title}: {price} = {_money(line.amount_minor, quote.currency)}")
        for tax in quote.taxes:
            self.narrator.say(f"  tax {format_rate(tax.rate_bp)}: {_money(tax.tax_minor, quote.currency)}")
        self.narrator.say(f"  to pay: {format_money(quote.total)}")
        self.narrator.figures[f"{which}_order"] = {
            "lines": {
                line.service: {
                    "quantity": line.quantity,
                    "unit_price_minor": line.unit_price_minor,
                    "days_remaining": line.days_remaining,
                    "days_of_term": line.days_of_term,
                    "amount_minor": line.amount_minor,
                }
                for line in quote.lines
            },
            "net_minor": quote.net.amount_minor,
            "taxes": [{"rate_bp": tax.rate_bp, "tax_minor": tax.tax_minor} for tax in quote.taxes],
            "tax_minor": quote.tax.amount_minor,
            "total_minor": quote.total.amount_minor,
        }

    def _check_out(self, order_id: str, method: Method) -> Checkout:
        outcome = self._ask(CheckOut(order_id=order_id, account_id=self.account_id, method=method), self.partner)
        assert isinstance(outcome.answer, Checkout), "the provider returns where to approve"
        return outcome.answer

    def _complete(self, order_id: str, checkout_id: str) -> Capture | Decline:
        completion = CompleteCheckout(order_id=order_id, account_id=self.account_id, checkout_id=checkout_id)
        answer: Capture | Decline = self._ask(completion, self.partner).answer
        return answer

    def _pbx(self, pbx_id: str, name: str, plan: Plan, extensions: int) -> CreatePbx:
        return CreatePbx(
            at=self._clock.now(),
            account_id=self.account_id,
            package_id=self.package_id,
            pbx_id=pbx_id,
            name=name,
            plan=plan,
            extensions=extensions,
        )

    def _until(self, kind: type[E]) -> E:
        event = self.narrator.until(lambda recorded: isinstance(recorded.event, kind)).event
        assert isinstance(event, kind)
        return event

    def _rows(self, table: type[R]) -> list[R]:
        with connect(self._running.database_url) as conn:
            return stored(conn, table, account_id=self.account_id)

    def _entitlements(self) -> dict[str, Entitlement]:
        return {entitlement.service: entitlement for entitlement in entitlements(self._rows(EntitlementRow))}

    def _documents(self) -> list[BillingDocumentRow]:
        return sorted(self._rows(BillingDocumentRow), key=lambda row: row.number)

    def _mail_to(self, address: str, number: int) -> EmailMessage:
        """Return the ``number``-th mail to an address, from 1, and wait for it if necessary."""
        while True:
            seen = list(self._catcher.messages)
            mails = [mail for mail in seen if address in str(mail["To"])]
            if len(mails) >= number:
                return mails[number - 1]
            try:
                self._catcher.wait_for(len(seen) + 1, WAIT_S)
            except TimeoutError as error:
                raise StoryBroken(f"No mail arrived for {address} in time; see the logs of the servers.") from error


def _text_of(mail: EmailMessage) -> str:
    body = mail.get_body(("plain",))
    assert body, "each of our mails has a plain text"
    return str(body.get_content())


def _as_received(mail: EmailMessage) -> str:
    headers = "\n".join(f"{name}: {mail[name]}" for name in ("From", "To", "Subject", "Date"))
    return f"{headers}\n\n{_text_of(mail).strip()}"


def _link_in(mail: EmailMessage) -> str:
    link = re.search(r"https?://\S+/invoices/\S+", _text_of(mail))
    assert link, "the mail has a link"
    return link.group()


def _refusal_in(answer: httpx.Response) -> str:
    """Return the refusal of a link that cannot be used any more."""
    if answer.status_code != httpx.codes.NOT_FOUND:
        raise StoryBroken(f"A link that had to be refused was answered with {answer.status_code}.")
    return str(answer.json()["detail"])


def _money(minor: int, currency: str) -> str:
    return format_money(Money(amount_minor=minor, currency=currency))
