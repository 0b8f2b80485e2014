"""Memorable data: ACME, its package of 100 extensions, and its order with a fifth of the year left.

Commands are named in the imperative and events in the past tense, like their classes;
`tests.support.given_domain.but` returns a variation of one.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from domain.account import (
    AccountOpened,
    AddBillingReceiver,
    BillingContact,
    BillingReceiverAdded,
    BillingReceiverChanged,
    BillingReceiverErased,
    ChangeBillingReceiver,
    ChooseDefaultBillingReceiver,
    DefaultBillingReceiverChosen,
    EraseBillingReceiver,
    OpenAccount,
)
from domain.allocation import (
    AllocateCapacity,
    CapacityAllocated,
    CapacityGranted,
    CapacityReleased,
    CapacityWithdrawn,
    CreatePbx,
    GrantCapacity,
    PbxCreated,
    PbxRemoved,
    PbxUpgraded,
    ReleaseCapacity,
    RemovePbx,
    UpgradePbx,
    WithdrawCapacity,
)
from domain.invoice import (
    CreditNoteIssued,
    DeleteDocument,
    Document,
    DocumentDeleted,
    InvoiceEmailed,
    InvoiceIssued,
    IssueCreditNote,
    IssueInvoice,
    RecordInvoiceEmailed,
    Seller,
)
from domain.invoice_link import ConsumeLink, IssueLink, LinkConsumed, LinkIssued, LinkRevoked, RevokeLink
from domain.invoice_series import AssignInvoiceNumber, InvoiceNumberAssigned
from domain.money import Money
from domain.order import (
    AsideReason,
    BillingContactChosen,
    CancelOrder,
    CapturePayment,
    ChooseBillingContact,
    DeclinePayment,
    ExpansionRequested,
    ExpireOrder,
    FulfilOrder,
    Method,
    OrderCancelled,
    OrderExpired,
    OrderFulfilled,
    OrderPlaced,
    PaymentCaptured,
    PaymentDeclined,
    PaymentRefunded,
    PaymentSetAside,
    PlaceOrder,
    RefundPayment,
    RequestExpansion,
    SetPaymentAside,
)
from domain.payment_reference import ClaimPaymentReference, PaymentReferenceClaimed
from domain.price_list import Offer, PriceList, PriceListPublished, PublishPriceList, TaxRule
from domain.quote import Line, Quote, Selection, Term, quote
from domain.services import Plan, Pricing
from domain.subscription import (
    ActivatePackage,
    CapacityExpanded,
    ExpandPackage,
    GrantReversed,
    PackageActivated,
    ReverseGrant,
    ServiceSubscribed,
)

NOW = datetime(2026, 10, 20, 9, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
DEADLINE = NOW + timedelta(days=14)
TODAY = NOW.date()
YEAR = Term(starts_on=date(2026, 1, 1), ends_on=date(2027, 1, 1))
"""On 20 October, 73 of its 365 days are left, that day included: a fifth."""


def eur(amount_minor: int) -> Money:
    """Euros, as ``eur(544_65)``."""
    return Money(amount_minor=amount_minor, currency="EUR")


# --- the account ---------------------------------------------------------------------------------------------------

WONKA = BillingContact(
    name="Willy Wonka",
    email="wonka@acme.example",
    company="ACME GmbH",
    address=("Chocolate Street 1", "10115 Berlin"),
    country="DE",
    vat_id="DE123456789",
)
BUCKET = BillingContact(
    name="Charlie Bucket",
    email="charlie@acme.example",
    company="ACME GmbH",
    address=("Chocolate Street 2", "10115 Berlin"),
    country="DE",
    phone="+49 30 1234",
)

open_account = OpenAccount(
    at=NOW,
    account_id="acme",
    name="ACME",
    seller="YT",
    currency="EUR",
    country="DE",
    manager_email="dora@yt.example",
    receiver_id="wonka",
    contact=WONKA,
)
add_receiver = AddBillingReceiver(at=NOW, account_id="acme", receiver_id="bucket", contact=BUCKET)
change_receiver = ChangeBillingReceiver(at=NOW, account_id="acme", receiver_id="wonka", contact=BUCKET)
erase_receiver = EraseBillingReceiver(at=NOW, account_id="acme", receiver_id="wonka")
choose_default = ChooseDefaultBillingReceiver(at=NOW, account_id="acme", receiver_id="bucket")

opened = AccountOpened(
    account_id="acme", name="ACME", seller="YT", currency="EUR", country="DE", manager_email="dora@yt.example"
)
wonka_added = BillingReceiverAdded(account_id="acme", receiver_id="wonka", contact=WONKA)
wonka_default = DefaultBillingReceiverChosen(account_id="acme", receiver_id="wonka")
bucket_added = BillingReceiverAdded(account_id="acme", receiver_id="bucket", contact=BUCKET)
bucket_default = DefaultBillingReceiverChosen(account_id="acme", receiver_id="bucket")
wonka_erased = BillingReceiverErased(account_id="acme", receiver_id="wonka")
wonka_changed = BillingReceiverChanged(account_id="acme", receiver_id="wonka", contact=BUCKET)

# --- the prices ----------------------------------------------------------------------------------------------------

QUANTITY, FLAT = Pricing.QUANTITY, Pricing.FLAT


def offer(
    service: str, unit: str, unit_price_minor: int, pricing: Pricing = QUANTITY, *, one_time: bool = False
) -> Offer:
    """A line of the price list. Services with a quantity are allocated to PBXs; flat services are not."""
    return Offer(
        service=service,
        title=service.replace("_", " ").capitalize(),
        unit=unit,
        pricing=pricing,
        to_pbxs=pricing is QUANTITY,
        one_time=one_time,
        unit_price_minor=unit_price_minor,
        tax_class="reduced" if service == "custom_domain" else "standard",
    )


OFFERS = (
    offer("extensions", "extension", 36_50),
    offer("ultimate_plan", "extension", 18_25),
    offer("recording_minutes", "minute", 5),
    offer("high_availability", "PBX", 365_00),
    offer("transcription_minutes", "minute", 4, one_time=True),
    offer("ycm_white_label", "account", 730_00, FLAT),
    offer("pce_white_label", "account", 547_50, FLAT),
    offer("custom_domain", "account", 109_50, FLAT),
)
"""All eight services; a fifth of each price (whole for the one-time minutes) is a whole number of cents."""

TAXES = (
    TaxRule(country="DE", rate_bp=19_00),
    TaxRule(country="DE", tax_class="reduced", rate_bp=7_00),
    TaxRule(country="FR", rate_bp=20_00),
    TaxRule(country="NL", category="AE", rate_bp=0, note="Reverse charge"),
)

publish = PublishPriceList(
    at=NOW, seller="YT", currency="EUR", version=1, valid_from=date(2026, 1, 1), offers=OFFERS, taxes=TAXES
)
published = PriceListPublished(
    seller="YT", currency="EUR", version=1, valid_from=date(2026, 1, 1), offers=OFFERS, taxes=TAXES
)
PRICES = PriceList(versions=(published,))


def quoted(**quantities: int) -> Quote:
    """ACME's price today for units by service: ``quoted(extensions=50)``."""
    selections = [Selection(service=service, quantity=n) for service, n in quantities.items()]
    return quote(PRICES, currency="EUR", country="DE", term=YEAR, on=TODAY, selections=selections)


def lines(**quantities: int) -> tuple[Line, ...]:
    """The lines of an order."""
    return quoted(**quantities).lines


# --- the package ---------------------------------------------------------------------------------------------------

FIRST_CAPACITY = {"extensions": 100, "ultimate_plan": 20, "recording_minutes": 1_000, "high_availability": 2}
"""80 Enterprise and 20 Ultimate extensions, and the other services for PBXs."""

ORDERED = quoted(extensions=50, ultimate_plan=20, custom_domain=1)
"""365.00 + 73.00 at 19 % and 21.90 at 7 %: net 459.90, tax 83.22 + 1.53, total 544.65."""

activate = ActivatePackage(
    at=NOW, package_id="pkg-acme", account_id="acme", term=YEAR, quantities={"extensions": 100, "ultimate_plan": 20}
)
expand = ExpandPackage(at=NOW, package_id="pkg-acme", order_id="order-1", lines=ORDERED.lines)
reverse = ReverseGrant(
    at=NOW, package_id="pkg-acme", order_id="order-1", services=("extensions", "ultimate_plan", "custom_domain")
)

activated = PackageActivated(
    package_id="pkg-acme", account_id="acme", term=YEAR, quantities={"extensions": 100, "ultimate_plan": 20}
)


def expanded(service: str, quantity: int, order_id: str = "order-1") -> CapacityExpanded:
    """An order granted the package units of a service."""
    return CapacityExpanded(package_id="pkg-acme", order_id=order_id, service=service, quantity=quantity)


def subscribed(service: str, order_id: str = "order-1") -> ServiceSubscribed:
    """An order switched a flat service on."""
    return ServiceSubscribed(package_id="pkg-acme", order_id=order_id, service=service)


def reversed_(order_id: str = "order-1", *off: str, **withdrawn: int) -> GrantReversed:
    """The grant of an order was reversed: ``reversed_("order-1", "custom_domain", extensions=50)``."""
    return GrantReversed(package_id="pkg-acme", order_id=order_id, withdrawn=withdrawn, switched_off=off)


# --- the pool ------------------------------------------------------------------------------------------------------

grant = GrantCapacity(at=NOW, package_id="pkg-acme", account_id="acme", grant_id="pkg-acme", quantities=FIRST_CAPACITY)
withdraw = WithdrawCapacity(
    at=NOW, package_id="pkg-acme", withdrawal_id="refund-1", quantities={"extensions": 30, "ultimate_plan": 10}
)
create_factory = CreatePbx(
    at=NOW,
    account_id="acme",
    package_id="pkg-acme",
    pbx_id="pbx-factory",
    name="Chocolate factory",
    plan=Plan.ENTERPRISE,
    extensions=60,
)
create_shop = CreatePbx(
    at=NOW,
    account_id="acme",
    package_id="pkg-acme",
    pbx_id="pbx-shop",
    name="Sweet shop",
    plan=Plan.ULTIMATE,
    extensions=15,
)
allocate = AllocateCapacity(
    at=NOW,
    account_id="acme",
    package_id="pkg-acme",
    pbx_id="pbx-factory",
    allocation_id="allocation-1",
    service="extensions",
    quantity=20,
)
release = ReleaseCapacity(
    at=NOW,
    account_id="acme",
    package_id="pkg-acme",
    pbx_id="pbx-factory",
    release_id="release-1",
    service="extensions",
    quantity=10,
)
upgrade = UpgradePbx(at=NOW, account_id="acme", package_id="pkg-acme", pbx_id="pbx-factory")
remove = RemovePbx(at=NOW, account_id="acme", package_id="pkg-acme", pbx_id="pbx-factory")

granted = CapacityGranted(package_id="pkg-acme", account_id="acme", grant_id="pkg-acme", quantities=FIRST_CAPACITY)
withdrawn = CapacityWithdrawn(
    package_id="pkg-acme", withdrawal_id="refund-1", quantities={"extensions": 30, "ultimate_plan": 10}
)
factory_created = PbxCreated(
    package_id="pkg-acme", pbx_id="pbx-factory", name="Chocolate factory", plan=Plan.ENTERPRISE, extensions=60
)
shop_created = PbxCreated(
    package_id="pkg-acme", pbx_id="pbx-shop", name="Sweet shop", plan=Plan.ULTIMATE, extensions=15
)
allocated = CapacityAllocated(
    package_id="pkg-acme",
    pbx_id="pbx-factory",
    allocation_id="allocation-1",
    plan=Plan.ENTERPRISE,
    service="extensions",
    quantity=20,
    drawn=20,
)
released = CapacityReleased(
    package_id="pkg-acme",
    pbx_id="pbx-factory",
    release_id="release-1",
    plan=Plan.ENTERPRISE,
    service="extensions",
    quantity=10,
)
factory_upgraded = PbxUpgraded(package_id="pkg-acme", pbx_id="pbx-factory", extensions=60)
factory_removed = PbxRemoved(
    package_id="pkg-acme", pbx_id="pbx-factory", plan=Plan.ENTERPRISE, released={"extensions": 60}
)

# --- the order -----------------------------------------------------------------------------------------------------

request = RequestExpansion(
    at=NOW, order_id="order-1", account_id="acme", package_id="pkg-acme", quote=ORDERED, expires_at=DEADLINE
)
choose_contact = ChooseBillingContact(at=NOW, order_id="order-1", receiver_id="wonka", contact=WONKA)
place = PlaceOrder(at=NOW, order_id="order-1", method=Method.PAYPAL)
place_offline = PlaceOrder(at=NOW, order_id="order-1", method=Method.OFFLINE, pi_number="PI-2026-7")
capture = CapturePayment(
    at=LATER,
    order_id="order-1",
    method=Method.PAYPAL,
    capture_id="capture-1",
    amount=eur(544_65),
    captured_at=LATER,
)
set_aside = SetPaymentAside(at=LATER, order_id="order-1", explanation="The Ultimate Plan no longer fits.")
decline = DeclinePayment(at=LATER, order_id="order-1", attempt_id="attempt-1", reason="Insufficient funds")
fulfil = FulfilOrder(at=LATER, order_id="order-1")
cancel = CancelOrder(at=LATER, order_id="order-1", account_id="acme", reason="Changed our mind")
expire = ExpireOrder(at=DEADLINE, order_id="order-1")
refund = RefundPayment(at=LATER, order_id="order-1", refund_id="refund-1", amount=eur(544_65))

requested = ExpansionRequested(
    order_id="order-1",
    account_id="acme",
    package_id="pkg-acme",
    quote=ORDERED,
    requested_at=NOW,
    expires_at=DEADLINE,
)
contact_chosen = BillingContactChosen(order_id="order-1", receiver_id="wonka", contact=WONKA)
placed = OrderPlaced(order_id="order-1", method=Method.PAYPAL, pi_number=None, placed_at=NOW)
placed_offline = OrderPlaced(order_id="order-1", method=Method.OFFLINE, pi_number="PI-2026-7", placed_at=NOW)
captured = PaymentCaptured(
    order_id="order-1", method=Method.PAYPAL, capture_id="capture-1", amount=eur(544_65), captured_at=LATER
)
declined = PaymentDeclined(
    order_id="order-1",
    method=Method.PAYPAL,
    attempt_id="attempt-1",
    reason="Insufficient funds",
    declined_at=LATER,
)
no_longer_fits = PaymentSetAside(
    order_id="order-1",
    method=Method.PAYPAL,
    capture_id="capture-1",
    amount=eur(544_65),
    reason=AsideReason.NO_LONGER_FITS,
    explanation="The Ultimate Plan no longer fits.",
    captured_at=LATER,
)
fulfilled = OrderFulfilled(order_id="order-1", fulfilled_at=LATER)
cancelled = OrderCancelled(order_id="order-1", reason="Changed our mind", cancelled_at=LATER)
expired = OrderExpired(order_id="order-1", expired_at=DEADLINE)
refunded = PaymentRefunded(
    order_id="order-1",
    refund_id="refund-1",
    capture_id="capture-1",
    amount=eur(544_65),
    services=("extensions", "ultimate_plan", "custom_domain"),
    refunded_at=LATER,
)

# --- the payment's number ------------------------------------------------------------------------------------------

claim = ClaimPaymentReference(at=NOW, reference="pi:YT:PI-2026-7", order_id="order-1")
claimed = PaymentReferenceClaimed(reference="pi:YT:PI-2026-7", order_id="order-1")

# --- the invoice ---------------------------------------------------------------------------------------------------

SELLER = Seller(
    code="YT",
    name="Yonder Telephony",
    address=("Harbour Road 7", "20457 Hamburg"),
    country="DE",
    vat_id="DE987654321",
    email="billing@yt.example",
)
DOCUMENT = Document(sha256="d0c" + 61 * "0", media_type="application/pdf", size_bytes=48_611)
CREDIT_DOCUMENT = Document(sha256="c4ed17" + 58 * "0", media_type="application/pdf", size_bytes=40_118)

assign = AssignInvoiceNumber(at=NOW, seller="YT", year=2026, document_id="invoice-1")
assigned = InvoiceNumberAssigned(seller="YT", year=2026, sequence=1, document_id="invoice-1")

issue_invoice = IssueInvoice(
    at=LATER,
    invoice_id="invoice-1",
    number="YT-2026-000001",
    account_id="acme",
    order_id="order-1",
    package_id="pkg-acme",
    seller=SELLER,
    receiver_id="wonka",
    buyer=WONKA,
    quote=ORDERED,
    method=Method.PAYPAL,
    capture_id="capture-1",
    pi_number=None,
    paid_at=LATER,
    document=DOCUMENT,
)
record_emailed = RecordInvoiceEmailed(
    at=LATER,
    invoice_id="invoice-1",
    link_id="link-1",
    receiver_id="wonka",
    recipient="wonka@acme.example",
    message_id="<1@yt.example>",
)
issue_credit_note = IssueCreditNote(
    at=LATER,
    credit_note_id="credit-note-1",
    number="YT-2026-000002",
    invoice_id="invoice-1",
    invoice_number="YT-2026-000001",
    account_id="acme",
    order_id="order-1",
    refund_id="refund-1",
    seller=SELLER,
    receiver_id="wonka",
    buyer=WONKA,
    net=eur(459_90),
    taxes=ORDERED.taxes,
    total=eur(544_65),
    refunded_at=LATER,
    document=CREDIT_DOCUMENT,
)

delete_document = DeleteDocument(at=datetime(2035, 1, 1, tzinfo=UTC), invoice_id="invoice-1", kept_years=8)

invoice_issued = InvoiceIssued(**issue_invoice.model_dump(exclude={"at"}), issued_at=LATER)
emailed = InvoiceEmailed(**record_emailed.model_dump(exclude={"at"}), emailed_at=LATER)
credit_note_issued = CreditNoteIssued(**issue_credit_note.model_dump(exclude={"at"}), issued_at=LATER)
document_deleted = DocumentDeleted(
    invoice_id="invoice-1", sha256=issue_invoice.document.sha256, deleted_at=delete_document.at
)

# --- the link ------------------------------------------------------------------------------------------------------

issue_link = IssueLink(
    at=NOW,
    link_id="link-1",
    invoice_id="invoice-1",
    order_id="order-1",
    ordinal=1,
    token_sha256="a11ce" + 59 * "0",
    expires_at=NOW + timedelta(hours=24),
)
consume = ConsumeLink(at=LATER, link_id="link-1", token_sha256="a11ce" + 59 * "0")
revoke = RevokeLink(at=LATER, link_id="link-1", replaced_by="link-2")

link_issued = LinkIssued(**issue_link.model_dump(exclude={"at"}))
consumed = LinkConsumed(link_id="link-1", consumed_at=LATER)
revoked = LinkRevoked(link_id="link-1", replaced_by="link-2", revoked_at=LATER)
