"""Random histories of two accounts: the domain decides every step, and it is committed as the handlers would.

A seed always makes the same history. Refused steps are dropped. Steps late in an order's life are tried as often as
early ones, so that a history has everything in it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cache
from random import Random

from domain.account import ACCOUNT
from domain.allocation import (
    ALLOCATION,
    AllocateCapacity,
    CreatePbx,
    GrantCapacity,
    ReleaseCapacity,
    RemovePbx,
    UpgradePbx,
    WithdrawCapacity,
)
from domain.invoice import INVOICE, InvoiceIssued, IssueCreditNote, IssueInvoice, RecordInvoiceEmailed, credit_of
from domain.invoice_link import INVOICE_LINK, ConsumeLink, IssueLink, RevokeLink
from domain.invoice_series import INVOICE_SERIES, AssignInvoiceNumber
from domain.messages import Refusal
from domain.money import Money
from domain.order import (
    ORDER,
    CancelOrder,
    CapturePayment,
    ChooseBillingContact,
    DeclinePayment,
    ExpireOrder,
    FulfilOrder,
    Method,
    Order,
    PlaceOrder,
    RefundPayment,
    RequestExpansion,
    SetPaymentAside,
    Status,
)
from domain.payment_reference import PAYMENT_REFERENCE, ClaimPaymentReference, capture_reference, pi_reference
from domain.price_list import PRICE_LIST, price_list_id
from domain.services import Plan, Pricing
from domain.subscription import SUBSCRIPTION, ExpandPackage, ReverseGrant
from infra.event_log.log import Log
from infra.event_log.memory_recorder import MemoryRecorder
from infra.event_log.unit_of_work import UnitOfWork
from infra.recorded import Cause, Recorded
from tests.support import examples as an
from tests.support.given_domain import but

ACCOUNTS = ("acme", "slugworth")
TOKEN = "a11ce" + 59 * "0"
CAPACITY = {"extensions": 60, "ultimate_plan": 20, "recording_minutes": 800, "high_availability": 2}
UNPAID = (Status.REQUESTED, Status.PLACED, Status.DECLINED)
FLAT = {offer.service for offer in an.OFFERS if offer.pricing is Pricing.FLAT}


@cache
def told(seed: int, steps: int = 400) -> Log:
    """An in-memory log with the history of a seed. It is shared, so do not append to it."""
    log = Log(MemoryRecorder())
    tell(log, seed, steps)
    return log


def tell(log: Log, seed: int, steps: int) -> list[Recorded]:
    """Append a history of ``steps`` attempted steps to a log, and return it."""
    story = Story(log, Random(seed))  # noqa: S311 - repeatable, and no secret
    story.begin()
    for _ in range(steps):
        story.step()
    return story.recorded


class Story:
    """Does one random thing after another, with any outcome."""

    def __init__(self, log: Log, random: Random) -> None:
        self.recorded: list[Recorded] = []
        self._log = log
        self._random = random
        self._now = an.NOW
        self._count = 0
        self._orders: dict[str, str] = {}
        self._links: dict[str, tuple[str, str, int]] = {}
        self._steps: tuple[Callable[[UnitOfWork, str], None], ...] = (
            self._request,
            self._request,
            self._choose_contact,
            self._place,
            self._place,
            self._pay,
            self._pay,
            self._pay,
            self._decline,
            self._cancel,
            self._expire,
            self._fulfil,
            self._fulfil,
            self._refund,
            self._reverse,
            self._invoice,
            self._credit,
            self._mail,
            self._renew_link,
            self._use_link,
            self._create_pbx,
            self._allocate,
            self._release,
            self._upgrade,
            self._remove_pbx,
        )

    def begin(self) -> None:
        """Publish prices and open two accounts, each with a package and its pool."""
        work = UnitOfWork(self._log)
        work.do(PRICE_LIST, price_list_id("YT", "EUR"), an.publish)
        self._commit(work, None)
        for account_id in ACCOUNTS:
            work, package_id = UnitOfWork(self._log), f"pkg-{account_id}"
            work.do(ACCOUNT, account_id, but(an.open_account, account_id=account_id))
            work.do(ACCOUNT, account_id, but(an.add_receiver, account_id=account_id))
            work.do(ACCOUNT, account_id, but(an.erase_receiver, account_id=account_id, receiver_id="bucket"))
            activate = but(an.activate, package_id=package_id, account_id=account_id, quantities=CAPACITY)
            work.do(SUBSCRIPTION, package_id, activate)
            grant = but(
                an.grant, package_id=package_id, account_id=account_id, grant_id=package_id, quantities=CAPACITY
            )
            work.do(ALLOCATION, package_id, grant)
            self._commit(work, account_id)

    def step(self) -> None:
        """Try something some hours later; a refusal leaves no trace."""
        self._now += timedelta(hours=self._random.randint(0, 3))
        self._count += 1
        account_id, work = self._random.choice(ACCOUNTS), UnitOfWork(self._log)
        with suppress(Refusal, NotThere):
            self._random.choice(self._steps)(work, account_id)
            self._commit(work, account_id)

    def _commit(self, work: UnitOfWork, account_id: str | None) -> None:
        cause = Cause("system:story", f"wish-{self._count}", self._random.choice([None, f"event-{self._count}"]))
        self.recorded += work.commit(account_id=account_id, cause=cause, at=self._now)

    def _order(self, work: UnitOfWork, account_id: str, *wanted: Callable[[Order], object]) -> tuple[str, Order]:
        """Pick one of the account's orders in a wanted status."""
        orders = [(i, work.state(ORDER, i)) for i, owner in self._orders.items() if owner == account_id]
        fitting = [(order_id, order) for order_id, order in orders if all(is_so(order) for is_so in wanted)]
        if not fitting:
            raise NotThere
        return self._random.choice(fitting)

    # --- the purchase

    def _request(self, work: UnitOfWork, account_id: str) -> None:
        order_id = f"order-{self._count}"
        services = self._random.sample([offer.service for offer in an.OFFERS], self._random.randint(1, 4))
        quote = an.quoted(**{service: 1 if service in FLAT else self._random.randint(1, 40) for service in services})
        request = RequestExpansion(
            at=self._now,
            order_id=order_id,
            account_id=account_id,
            package_id=f"pkg-{account_id}",
            quote=quote,
            expires_at=self._now + timedelta(days=self._random.randint(2, 14)),
        )
        work.do(ORDER, order_id, request)
        self._orders[order_id] = account_id
        if self._random.random() < 0.8:
            self._choose(work, order_id)

    def _choose_contact(self, work: UnitOfWork, account_id: str) -> None:
        self._choose(work, self._order(work, account_id)[0])

    def _choose(self, work: UnitOfWork, order_id: str) -> None:
        receiver_id, contact = self._random.choice([("wonka", an.WONKA), ("bucket", an.BUCKET)])
        choice = ChooseBillingContact(at=self._now, order_id=order_id, receiver_id=receiver_id, contact=contact)
        work.do(ORDER, order_id, choice)

    def _place(self, work: UnitOfWork, account_id: str) -> None:
        order_id, _ = self._order(work, account_id, lambda order: order.status in UNPAID and order.billing)
        method = self._random.choice(list(Method))
        pi_number = f"PI-{self._count}" if method is Method.OFFLINE and self._random.random() < 0.5 else None
        work.do(ORDER, order_id, PlaceOrder(at=self._now, order_id=order_id, method=method, pi_number=pi_number))
        if pi_number:
            reference = pi_reference("YT", pi_number)
            claim = ClaimPaymentReference(at=self._now, reference=reference, order_id=order_id)
            work.do(PAYMENT_REFERENCE, reference, claim)

    def _pay(self, work: UnitOfWork, account_id: str) -> None:
        """Capture a payment, mostly the amount owed and mostly in time."""
        mostly = (lambda order: order.open,) if self._random.random() < 0.8 else ()
        order_id, order = self._order(work, account_id, *mostly)
        assert order.requested
        capture_id = f"capture-{self._random.randint(1, self._count)}"
        whole = order.requested.quote.total
        amount = self._random.choice([whole] * 6 + [an.eur(1), Money(amount_minor=whole.amount_minor, currency="USD")])
        reference = capture_reference("paypal", capture_id)
        work.do(
            PAYMENT_REFERENCE, reference, ClaimPaymentReference(at=self._now, reference=reference, order_id=order_id)
        )
        payment = CapturePayment(
            at=self._now,
            order_id=order_id,
            method=order.placed.method if order.placed else Method.CARD,
            capture_id=capture_id,
            amount=amount,
            captured_at=self._now,
        )
        work.do(ORDER, order_id, payment)

    def _decline(self, work: UnitOfWork, account_id: str) -> None:
        order_id, _ = self._order(work, account_id, lambda order: order.open)
        attempt_id = f"attempt-{self._count}"
        decline = DeclinePayment(at=self._now, order_id=order_id, attempt_id=attempt_id, reason="Insufficient funds")
        work.do(ORDER, order_id, decline)

    def _cancel(self, work: UnitOfWork, account_id: str) -> None:
        order_id, _ = self._order(work, account_id)
        cancel = CancelOrder(at=self._now, order_id=order_id, account_id=account_id, reason="Changed our mind")
        work.do(ORDER, order_id, cancel)

    def _expire(self, work: UnitOfWork, account_id: str) -> None:
        order_id, _ = self._order(work, account_id)
        work.do(ORDER, order_id, ExpireOrder(at=self._now, order_id=order_id))

    # --- follow-up

    def _fulfil(self, work: UnitOfWork, account_id: str) -> None:
        """Grant what was paid for, or set the payment aside if the package cannot take it."""
        order_id, order = self._order(work, account_id, lambda order: order.captured and not order.fulfilled)
        assert order.requested
        package_id = order.requested.package_id
        lines = tuple(line for line in order.requested.quote.lines if line.service not in order.given_up)
        grant = ExpandPackage(at=self._now, package_id=package_id, order_id=order_id, lines=lines)
        try:
            work.do(SUBSCRIPTION, package_id, grant)
        except Refusal as refusal:
            work.do(ORDER, order_id, SetPaymentAside(at=self._now, order_id=order_id, explanation=str(refusal)))
            return
        work.do(ORDER, order_id, FulfilOrder(at=self._now, order_id=order_id))
        pooled = {line.service: line.quantity for line in lines if line.to_pbxs}
        if pooled:
            into_the_pool = GrantCapacity(
                at=self._now, package_id=package_id, account_id=account_id, grant_id=order_id, quantities=pooled
            )
            work.do(ALLOCATION, package_id, into_the_pool)

    def _refund(self, work: UnitOfWork, account_id: str) -> None:
        order_id, order = self._order(work, account_id, lambda order: order.refundable_minor)
        assert order.requested
        part = self._random.choice([order.refundable_minor, self._random.randint(1, order.refundable_minor)])
        services = [line.service for line in order.requested.quote.lines]
        refund = RefundPayment(
            at=self._now,
            order_id=order_id,
            refund_id=f"refund-{self._count}",
            amount=an.eur(part),
            services=tuple(self._random.sample(services, self._random.randint(0, len(services)))),
        )
        work.do(ORDER, order_id, refund)

    def _reverse(self, work: UnitOfWork, account_id: str) -> None:
        order_id, order = self._order(work, account_id, lambda order: order.fulfilled and order.refunds)
        assert order.requested
        package_id = order.requested.package_id
        refund = self._random.choice(list(order.refunds.values()))
        reverse = ReverseGrant(at=self._now, package_id=package_id, order_id=order_id, services=refund.services)
        for event in work.do(SUBSCRIPTION, package_id, reverse):
            withdrawn = getattr(event, "withdrawn", {})
            if withdrawn:
                withdraw = WithdrawCapacity(
                    at=self._now, package_id=package_id, withdrawal_id=refund.refund_id, quantities=withdrawn
                )
                work.do(ALLOCATION, package_id, withdraw)

    def _invoice(self, work: UnitOfWork, account_id: str) -> None:
        order_id, order = self._order(work, account_id, lambda order: order.fulfilled)
        assert order.requested
        assert order.captured
        assert order.billing
        invoice_id = f"invoice-{order_id}"
        if work.state(INVOICE, invoice_id).issued:
            return
        invoice = IssueInvoice(
            at=self._now,
            invoice_id=invoice_id,
            number=self._number(work, invoice_id),
            account_id=account_id,
            order_id=order_id,
            package_id=order.requested.package_id,
            seller=an.SELLER,
            receiver_id=order.billing.receiver_id,
            buyer=order.billing.contact,
            quote=order.requested.quote,
            method=order.captured.method,
            capture_id=order.captured.capture_id,
            pi_number=order.placed.pi_number if order.placed else None,
            paid_at=order.captured.captured_at,
            document=an.DOCUMENT,
        )
        work.do(INVOICE, invoice_id, invoice)
        self._issue_link(work, invoice_id, order_id, ordinal=1)

    def _number(self, work: UnitOfWork, document_id: str) -> str:
        assign = AssignInvoiceNumber(at=self._now, seller="YT", year=2026, document_id=document_id)
        return work.do(INVOICE_SERIES, "YT-2026", assign)[0].number

    def _credit(self, work: UnitOfWork, account_id: str) -> None:
        order_id, order = self._order(work, account_id, lambda order: order.refunds)
        refund = self._random.choice(list(order.refunds.values()))
        invoice, credit_note_id = work.state(INVOICE, f"invoice-{order_id}").issued, f"credit-{refund.refund_id}"
        if not isinstance(invoice, InvoiceIssued) or work.state(INVOICE, credit_note_id).issued:
            return
        net, taxes = credit_of(invoice.quote, refund.amount)
        credit = IssueCreditNote(
            at=self._now,
            credit_note_id=credit_note_id,
            number=self._number(work, credit_note_id),
            invoice_id=invoice.invoice_id,
            invoice_number=invoice.number,
            account_id=account_id,
            order_id=order_id,
            refund_id=refund.refund_id,
            seller=an.SELLER,
            receiver_id=invoice.receiver_id,
            buyer=invoice.buyer,
            net=net,
            taxes=taxes,
            total=refund.amount,
            refunded_at=refund.refunded_at,
            document=an.CREDIT_DOCUMENT,
        )
        work.do(INVOICE, credit_note_id, credit)

    # --- the links

    def _issue_link(self, work: UnitOfWork, invoice_id: str, order_id: str, ordinal: int) -> None:
        link_id = f"link-{invoice_id}-{ordinal}"
        issue = IssueLink(
            at=self._now,
            link_id=link_id,
            invoice_id=invoice_id,
            order_id=order_id,
            ordinal=ordinal,
            token_sha256=TOKEN,
            expires_at=self._now + timedelta(hours=24),
        )
        work.do(INVOICE_LINK, link_id, issue)
        self._links[link_id] = (invoice_id, order_id, ordinal)

    def _link(self, account_id: str) -> tuple[str, str, str, int]:
        links = [(i, *of) for i, of in self._links.items() if self._orders[of[1]] == account_id]
        if not links:
            raise NotThere
        return self._random.choice(links)

    def _mail(self, work: UnitOfWork, account_id: str) -> None:
        link_id, invoice_id, _, _ = self._link(account_id)
        mailed = RecordInvoiceEmailed(
            at=self._now,
            invoice_id=invoice_id,
            link_id=link_id,
            receiver_id="wonka",
            recipient="wonka@acme.example",
            message_id=f"<{link_id}@yt.example>",
        )
        work.do(INVOICE, invoice_id, mailed)

    def _renew_link(self, work: UnitOfWork, account_id: str) -> None:
        link_id, invoice_id, order_id, ordinal = self._link(account_id)
        if f"link-{invoice_id}-{ordinal + 1}" not in self._links:
            newer = f"link-{invoice_id}-{ordinal + 1}"
            work.do(INVOICE_LINK, link_id, RevokeLink(at=self._now, link_id=link_id, replaced_by=newer))
            self._issue_link(work, invoice_id, order_id, ordinal + 1)

    def _use_link(self, work: UnitOfWork, account_id: str) -> None:
        link_id, *_ = self._link(account_id)
        at = self._random.choice([self._now, self._now, an.NOW])
        work.do(INVOICE_LINK, link_id, ConsumeLink(at=at, link_id=link_id, token_sha256=TOKEN))

    # --- the pool

    def _create_pbx(self, work: UnitOfWork, account_id: str) -> None:
        create = CreatePbx(
            at=self._now,
            account_id=account_id,
            package_id=f"pkg-{account_id}",
            pbx_id=f"pbx-{account_id}-{self._count}",
            name=self._random.choice(["Chocolate factory", "Sweet shop", "Great glass elevator"]),
            plan=self._random.choice(list(Plan)),
            extensions=self._random.randint(1, 20),
        )
        work.do(ALLOCATION, create.package_id, create)

    def _pbx(self, work: UnitOfWork, account_id: str) -> dict[str, str]:
        pbxs = list(work.state(ALLOCATION, f"pkg-{account_id}").pbxs)
        if not pbxs:
            raise NotThere
        return {"account_id": account_id, "package_id": f"pkg-{account_id}", "pbx_id": self._random.choice(pbxs)}

    def _allocate(self, work: UnitOfWork, account_id: str) -> None:
        pbx = self._pbx(work, account_id)
        service, quantity = self._random.choice(
            [("extensions", 3), ("recording_minutes", 400), ("high_availability", 1), ("transcription_minutes", 5)]
        )
        allocate = AllocateCapacity(
            at=self._now, **pbx, allocation_id=f"allocation-{self._count}", service=service, quantity=quantity
        )
        work.do(ALLOCATION, pbx["package_id"], allocate)

    def _release(self, work: UnitOfWork, account_id: str) -> None:
        pbx = self._pbx(work, account_id)
        service = self._random.choice(["extensions", "high_availability"])
        release = ReleaseCapacity(at=self._now, **pbx, release_id=f"release-{self._count}", service=service, quantity=1)
        work.do(ALLOCATION, pbx["package_id"], release)

    def _upgrade(self, work: UnitOfWork, account_id: str) -> None:
        pbx = self._pbx(work, account_id)
        work.do(ALLOCATION, pbx["package_id"], UpgradePbx(at=self._now, **pbx))

    def _remove_pbx(self, work: UnitOfWork, account_id: str) -> None:
        pbx = self._pbx(work, account_id)
        work.do(ALLOCATION, pbx["package_id"], RemovePbx(at=self._now, **pbx))


class NotThere(Exception):
    """Nothing exists yet to do this to."""
