from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from domain.money import Money
from domain.order import Method
from infra.clock import Clock
from infra.payments.paypal import ATTEMPTS, WEBHOOK_BYTES_MAX, PayPal, hinted_capture
from infra.payments.provider import (
    Capture,
    Checkout,
    CredentialsRefused,
    Decline,
    PaymentNotApproved,
    PaymentPending,
    PaymentProvider,
    PaymentProviderRefused,
    PaymentProviderUnavailable,
    UnreadableWebhook,
)
from infra.servers.uvicorn_thread import serving
from infra.simulators.payment_simulator import DECLINED_CARD, GOOD_CARD, Faults, SimulatorEndpoint, running_simulator

ORDER = "YT-ORDER-7"
AMOUNT = Money(amount_minor=123_450, currency="EUR")
RETURN_URL = "https://portal.example/paid?lang=en"
NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
UNKNOWN_ID = "0AAAAAAAAAAAAAAA0"
RETRY_WAIT_S = 0.001


class StoppedClock(Clock):
    def now(self) -> datetime:
        return NOON


def adapter(simulator: SimulatorEndpoint, *, timeout_s: float = 5) -> PayPal:
    return PayPal(
        base_url=simulator.url,
        client_id=simulator.client_id,
        client_secret=simulator.client_secret,
        timeout_s=timeout_s,
        retry_wait_s=RETRY_WAIT_S,
    )


def open_checkout(
    provider: PaymentProvider, method: Method = Method.PAYPAL, *, order_id: str = ORDER, amount: Money = AMOUNT
) -> Checkout:
    return provider.open_checkout(order_id=order_id, method=method, amount=amount, return_url=RETURN_URL)


@dataclass(frozen=True)
class Shop:
    """One of our orders, and the provider that takes its payment."""

    simulator: SimulatorEndpoint
    paypal: PayPal
    order_id: str

    def open_checkout(self, method: Method = Method.PAYPAL, amount: Money = AMOUNT) -> Checkout:
        return open_checkout(self.paypal, method, order_id=self.order_id, amount=amount)

    def is_paid(self, amount: Money = AMOUNT) -> Capture:
        checkout = self.open_checkout(amount=amount)
        self.simulator.approve(checkout)
        capture = self.paypal.capture(checkout.checkout_id)
        assert isinstance(capture, Capture)
        return capture


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorEndpoint]:
    with running_simulator(clock=StoppedClock()) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def paypal_simulated(simulator: SimulatorEndpoint) -> Iterator[PayPal]:
    with adapter(simulator) as paypal:
        yield paypal


@pytest.fixture
def shop(simulator: SimulatorEndpoint, paypal_simulated: PayPal) -> Shop:
    simulator.inject(Faults())
    return Shop(simulator, paypal_simulated, f"YT-ORDER-{uuid4()}")


def test_an_approved_checkout_is_captured(shop: Shop) -> None:
    # given a checkout that the customer approved
    checkout = shop.open_checkout()
    landed = httpx.URL(shop.simulator.approve(checkout))
    # when it is captured
    capture = shop.paypal.capture(landed.params["token"])
    # then the provider holds the money for our order
    assert landed.host == "portal.example"
    assert landed.params["lang"] == "en"
    assert isinstance(capture, Capture)
    assert capture == Capture(
        capture_id=capture.capture_id,
        checkout_id=checkout.checkout_id,
        order_id=shop.order_id,
        method=Method.PAYPAL,
        amount=AMOUNT,
        captured_at=NOON,
    )
    # and reports the same when asked
    assert shop.paypal.find_capture(capture.capture_id) == capture


def test_a_card_is_captured_as_a_card(shop: Shop) -> None:
    checkout = shop.open_checkout(Method.CARD)
    shop.simulator.enter_card(checkout, GOOD_CARD)
    capture = shop.paypal.capture(checkout.checkout_id)
    assert isinstance(capture, Capture)
    assert capture.method is Method.CARD
    assert shop.paypal.find_capture(capture.capture_id) == capture


def test_a_checkout_opened_twice_is_one_checkout(shop: Shop) -> None:
    assert shop.open_checkout() == shop.open_checkout()
    # and another method or another amount is another checkout
    assert shop.open_checkout(Method.CARD).checkout_id != shop.open_checkout().checkout_id
    dearer = Money(amount_minor=AMOUNT.amount_minor + 1, currency="EUR")
    assert shop.open_checkout(amount=dearer).checkout_id != shop.open_checkout().checkout_id


def test_a_checkout_that_is_approved_already_leads_back_to_us(shop: Shop) -> None:
    # given a customer who approved but never came back
    checkout = shop.open_checkout()
    shop.simulator.approve(checkout)
    # when the checkout is opened again
    reopened = shop.open_checkout()
    # then it needs no approval, only our capture; once captured, it still leads back to us
    assert reopened == Checkout(
        checkout_id=checkout.checkout_id, approve_url=f"{RETURN_URL}&token={checkout.checkout_id}"
    )
    shop.paypal.capture(checkout.checkout_id)
    assert shop.open_checkout() == reopened


def test_a_checkout_captured_twice_is_one_capture(shop: Shop) -> None:
    capture = shop.is_paid()
    assert shop.paypal.capture(capture.checkout_id) == capture


def test_a_checkout_captured_by_many_at_once_is_one_capture(shop: Shop) -> None:
    checkout = shop.open_checkout()
    shop.simulator.approve(checkout)
    with ThreadPoolExecutor(8) as pool:
        captures = list(pool.map(shop.paypal.capture, [checkout.checkout_id] * 8))
    assert isinstance(captures[0], Capture)
    assert captures == [captures[0]] * 8


def test_a_checkout_that_nobody_approved_is_not_captured(shop: Shop) -> None:
    checkout = shop.open_checkout()
    with pytest.raises(PaymentNotApproved, match=checkout.checkout_id):
        shop.paypal.capture(checkout.checkout_id)
    # and it can be approved later
    shop.simulator.approve(checkout)
    assert isinstance(shop.paypal.capture(checkout.checkout_id), Capture)


@pytest.mark.parametrize("checkout_id", [UNKNOWN_ID, "..", "../../v1/oauth2/token", "A?B=C", ""])
def test_a_checkout_that_paypal_does_not_know_is_refused(shop: Shop, checkout_id: str) -> None:
    with pytest.raises(PaymentProviderRefused) as refused:
        shop.paypal.capture(checkout_id)
    assert refused.value.code == "INVALID_RESOURCE_ID"


def test_a_declined_card_gives_way_to_a_good_one(shop: Shop) -> None:
    # given a card that is declined
    checkout = shop.open_checkout(Method.CARD)
    shop.simulator.enter_card(checkout, DECLINED_CARD)
    declines = [shop.paypal.capture(checkout.checkout_id)]
    with pytest.raises(PaymentNotApproved):
        shop.paypal.capture(checkout.checkout_id)
    shop.simulator.enter_card(checkout, DECLINED_CARD)
    declines.append(shop.paypal.capture(checkout.checkout_id))
    # when another card is entered, at the same checkout
    assert shop.open_checkout(Method.CARD) == checkout
    shop.simulator.enter_card(checkout, GOOD_CARD)
    # then it is captured
    assert isinstance(shop.paypal.capture(checkout.checkout_id), Capture)
    # and each decline was an attempt of its own, with a sentence for the customer
    assert [decline.code for decline in declines if isinstance(decline, Decline)] == ["INSTRUMENT_DECLINED"] * 2
    assert len({decline.attempt_id for decline in declines if isinstance(decline, Decline)}) == 2
    assert isinstance(declines[0], Decline)
    assert declines[0].reason.startswith("The payment was declined; try again")


def test_a_repeated_refund_is_made_once(shop: Shop) -> None:
    capture = shop.is_paid()
    part = Money(amount_minor=100_000, currency="EUR")
    for _ in range(3):
        shop.paypal.refund(capture.capture_id, refund_id="R-1", amount=part)
    # then the rest can be refunded, and the capture is unchanged
    shop.paypal.refund(capture.capture_id, refund_id="R-2", amount=AMOUNT - part)
    assert shop.paypal.find_capture(capture.capture_id) == capture
    with pytest.raises(PaymentProviderRefused) as refused:
        shop.paypal.refund(capture.capture_id, refund_id="R-3", amount=part)
    assert refused.value.code == "CAPTURE_FULLY_REFUNDED"


def test_refund_ids_are_scoped_to_their_capture(shop: Shop) -> None:
    dear, cheap = shop.is_paid(), shop.is_paid(Money(amount_minor=100, currency="EUR"))
    shop.paypal.refund(dear.capture_id, refund_id="R-1", amount=dear.amount)
    shop.paypal.refund(cheap.capture_id, refund_id="R-1", amount=cheap.amount)
    with pytest.raises(PaymentProviderRefused, match="fully refunded"):
        shop.paypal.refund(cheap.capture_id, refund_id="R-2", amount=cheap.amount)


def test_more_than_was_captured_is_never_refunded(shop: Shop) -> None:
    capture = shop.is_paid()
    too_much = Money(amount_minor=AMOUNT.amount_minor + 1, currency="EUR")
    with pytest.raises(PaymentProviderRefused, match="less than or equal") as refused:
        shop.paypal.refund(capture.capture_id, refund_id="R-1", amount=too_much)
    assert refused.value.code == "REFUND_AMOUNT_EXCEEDED"
    assert refused.value.reference
    with pytest.raises(PaymentProviderRefused, match="same currency"):
        shop.paypal.refund(capture.capture_id, refund_id="R-1", amount=Money(amount_minor=1, currency="USD"))


def test_a_capture_whose_answer_is_lost_is_found_by_capturing_again(shop: Shop) -> None:
    # given a provider that takes the money and then says nothing
    shop.simulator.inject(Faults(capture_timeouts=1))
    checkout = shop.open_checkout()
    shop.simulator.approve(checkout)
    # when we capture, then the outcome is unknown
    with adapter(shop.simulator, timeout_s=0.2) as impatient:
        with pytest.raises(PaymentProviderUnavailable, match="did not answer in time: ReadTimeout"):
            impatient.capture(checkout.checkout_id)
        # and capturing again reveals it
        capture = impatient.capture(checkout.checkout_id)
    assert isinstance(capture, Capture)
    assert shop.paypal.find_capture(capture.capture_id) == shop.paypal.capture(checkout.checkout_id) == capture


def test_a_call_to_a_briefly_unavailable_provider_is_retried(shop: Shop) -> None:
    shop.simulator.inject(Faults(unavailable=ATTEMPTS - 1, revoke_tokens=True))
    checkout = shop.open_checkout()
    shop.simulator.approve(checkout)
    shop.simulator.inject(Faults(unavailable=ATTEMPTS - 1))
    capture = shop.paypal.capture(checkout.checkout_id)
    assert isinstance(capture, Capture)
    shop.simulator.inject(Faults(unavailable=ATTEMPTS - 1))
    shop.paypal.refund(capture.capture_id, refund_id="R-1", amount=AMOUNT)


def test_retries_end_if_the_provider_stays_unavailable(shop: Shop) -> None:
    capture = shop.is_paid()
    shop.simulator.inject(Faults(unavailable=ATTEMPTS))
    with pytest.raises(PaymentProviderUnavailable, match="503"):
        shop.paypal.find_capture(capture.capture_id)
    assert shop.paypal.find_capture(capture.capture_id) == capture


def test_an_unreachable_provider_is_unavailable() -> None:
    with running_simulator() as simulator:
        pass
    with adapter(simulator) as paypal, pytest.raises(PaymentProviderUnavailable, match="cannot be reached"):
        open_checkout(paypal)


def test_wrong_credentials_are_reported(simulator: SimulatorEndpoint) -> None:
    stranger = replace(simulator, client_secret="wrong")  # noqa: S106 - as it says
    with adapter(stranger) as paypal, pytest.raises(CredentialsRefused) as refused:
        open_checkout(paypal)
    assert refused.value.code == "invalid_client"
    assert str(refused.value) == "PayPal refused, with invalid_client: Client Authentication failed"


def test_a_token_that_was_revoked_is_replaced(shop: Shop) -> None:
    checkout = shop.open_checkout()
    shop.simulator.inject(Faults(revoke_tokens=True))
    assert shop.open_checkout() == checkout


@pytest.mark.parametrize(
    ("amount_minor", "currency", "value"),
    [(1200, "JPY", "1200"), (12_345, "KWD", "12.345"), (5, "EUR", "0.05"), (2**53, "EUR", "90071992547409.92")],
)
def test_amounts_have_the_decimals_of_their_currency(shop: Shop, amount_minor: int, currency: str, value: str) -> None:
    amount = Money(amount_minor=amount_minor, currency=currency)
    page = httpx.get(shop.open_checkout(amount=amount).approve_url)
    assert f"<strong>{value} {currency}</strong>" in page.text
    capture = shop.is_paid(amount)
    assert capture.amount == amount
    shop.paypal.refund(capture.capture_id, refund_id="R-1", amount=amount)


def test_a_currency_that_iso_4217_does_not_know_is_refused(shop: Shop) -> None:
    for currency in ("RMB", "XAU"):
        with pytest.raises(PaymentProviderRefused, match=currency):
            shop.open_checkout(amount=Money(amount_minor=100, currency=currency))


def test_an_amount_of_nothing_is_refused(shop: Shop) -> None:
    with pytest.raises(PaymentProviderRefused) as refused:
        shop.open_checkout(amount=Money(amount_minor=0, currency="EUR"))
    assert refused.value.code == "CANNOT_BE_ZERO_OR_NEGATIVE"


def test_the_provider_takes_no_offline_payments(shop: Shop) -> None:
    with pytest.raises(ValueError, match="offline"):
        shop.open_checkout(Method.OFFLINE)


@pytest.mark.parametrize("capture_id", [UNKNOWN_ID, "..", "A/../B", "offline:PI-1"])
def test_a_forged_capture_id_is_no_capture(shop: Shop, capture_id: str) -> None:
    assert shop.paypal.find_capture(capture_id) is None


# --- behaviour of PayPal that the simulator lacks: a server gives answers from PayPal's documentation ---------------


@dataclass
class Canned:
    """The answers to give, one per call that is not for a token, and the requests received."""

    token_lifetime_s: int = 32400
    answers: list[tuple[int, object]] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str], Any]] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        return [f"{verb} {path}" for verb, path, _, _ in self.requests]

    @property
    def request_ids(self) -> list[str]:
        return [headers["paypal-request-id"] for _, _, headers, _ in self.requests if "paypal-request-id" in headers]

    async def answer(self, request: Request) -> Response:
        body = await request.body()
        as_json = request.headers.get("content-type") == "application/json"
        sent = json.loads(body) if as_json and body else body
        self.requests.append((request.method, request.url.path, dict(request.headers), sent))
        if request.url.path == "/v1/oauth2/token":
            token = f"T{len(self.requests)}"
            return JSONResponse({"access_token": token, "expires_in": self.token_lifetime_s, "nonce": "N"})
        status, content = self.answers.pop(0)
        if isinstance(content, bytes):
            return Response(content, status, headers={"Location": "/elsewhere"})
        return JSONResponse(content, status)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[Canned]]]:
    current: list[Canned] = []
    app = FastAPI()

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    async def answer(request: Request) -> Response:
        return await current[0].answer(request)

    with serving(app) as url:
        yield url, current


@pytest.fixture
def canned(server: tuple[str, list[Canned]]) -> Canned:
    canned = Canned()
    server[1][:] = [canned]
    return canned


@pytest.fixture
def paypal(server: tuple[str, list[Canned]], canned: Canned) -> Iterator[PayPal]:
    client_secret = "s"  # noqa: S105 - nobody's
    with PayPal(base_url=server[0], client_id="us", client_secret=client_secret, retry_wait_s=RETRY_WAIT_S) as paypal:
        yield paypal


def capture_json(**changes: object) -> dict[str, object]:
    return {
        "id": "3C679366HH908993F",
        "status": "COMPLETED",
        "amount": {"currency_code": "EUR", "value": "1234.50"},
        "custom_id": f"paypal/{ORDER}",
        "create_time": "2026-03-01T13:00:00+01:00",
        "seller_protection": {"status": "ELIGIBLE"},
        "supplementary_data": {"related_ids": {"order_id": "5O190127TN364715T"}},
        **changes,
    }


def order_json(*captures: dict[str, object], status: str = "COMPLETED", **changes: object) -> dict[str, object]:
    units = [{"reference_id": "default", "payments": {"captures": list(captures)}}]
    return {"id": "5O190127TN364715T", "status": status, "purchase_units": units, **changes}


def refusal(issue: str) -> dict[str, object]:
    return {"name": "UNPROCESSABLE_ENTITY", "debug_id": "f1d2", "details": [{"issue": issue, "description": "No."}]}


CAPTURE = Capture(
    capture_id="3C679366HH908993F",
    checkout_id="5O190127TN364715T",
    order_id=ORDER,
    method=Method.PAYPAL,
    amount=AMOUNT,
    captured_at=NOON,
)


def test_a_checkout_is_requested_in_the_form_of_orders_v2(canned: Canned, paypal: PayPal) -> None:
    # given the page to which PayPal sends the customer
    page = {"rel": "payer-action", "href": "https://www.paypal.com/checkoutnow?token=5O190127TN364715T"}
    created = order_json(status="PAYER_ACTION_REQUIRED", links=[{"rel": "self", "href": "x"}, page])
    canned.answers += [(201, created), (200, created)]
    # when a checkout is opened twice
    for _ in range(2):
        assert open_checkout(paypal, Method.CARD).approve_url == page["href"]
    # then a token was requested once, with our credentials
    assert canned.paths == ["POST /v1/oauth2/token", *["POST /v2/checkout/orders"] * 2]
    (_, _, headers, form), (_, _, first, body), (_, _, second, _) = canned.requests
    assert (headers["authorization"], form) == ("Basic dXM6cw==", b"grant_type=client_credentials")
    assert first["authorization"] == second["authorization"] == "Bearer T1"
    # and PayPal sees both calls as the same
    assert first["paypal-request-id"] == second["paypal-request-id"]
    assert body["intent"] == "CAPTURE"
    assert body["purchase_units"] == [
        {
            "custom_id": f"card/{ORDER}",
            "description": f"Order {ORDER}",
            "amount": {"currency_code": "EUR", "value": "1234.50"},
        }
    ]
    experience = body["payment_source"]["paypal"]["experience_context"]
    assert (experience["return_url"], experience["landing_page"]) == (RETURN_URL, "GUEST_CHECKOUT")


@pytest.mark.parametrize(
    ("amount_minor", "currency", "value"), [(150_000, "HUF", "1500"), (150_050, "HUF", "1500.50"), (100, "TWD", "1")]
)
def test_currencies_that_paypal_takes_whole_are_sent_whole(
    canned: Canned, paypal: PayPal, amount_minor: int, currency: str, value: str
) -> None:
    canned.answers += [(201, order_json(status="CREATED"))]
    open_checkout(paypal, amount=Money(amount_minor=amount_minor, currency=currency))
    assert canned.requests[1][3]["purchase_units"][0]["amount"]["value"] == value


@pytest.mark.parametrize("status", ["DECLINED", "FAILED"])
def test_a_complete_order_may_be_a_declined_one(canned: Canned, paypal: PayPal, status: str) -> None:
    """PayPal, "Order status": check the payment's status before fulfilling; a completed order can be declined."""
    spent = order_json(capture_json(status=status))
    fresh = order_json(status="PAYER_ACTION_REQUIRED", id="NEW", links=[{"rel": "payer-action", "href": "x"}])
    canned.answers += [(201, spent), (200, spent), (201, fresh)]
    # when such an order is captured, then it is a decline
    decline = paypal.capture("5O190127TN364715T")
    assert isinstance(decline, Decline)
    assert (decline.attempt_id, decline.code) == ("3C679366HH908993F", status)
    # and when the checkout is opened again, then a new one replaces the failed one that PayPal remembers
    assert open_checkout(paypal).checkout_id == "NEW"
    assert len(set(canned.request_ids)) == 3


def test_a_payment_under_review_is_not_ours_yet(canned: Canned, paypal: PayPal) -> None:
    pending = capture_json(status="PENDING")
    canned.answers += [(201, order_json(pending)), (200, pending), (200, capture_json())]
    with pytest.raises(PaymentPending, match="PENDING"):
        paypal.capture("5O190127TN364715T")
    assert paypal.find_capture("3C679366HH908993F") is None
    # and is found once PayPal completes it
    assert paypal.find_capture("3C679366HH908993F") == CAPTURE


def test_a_foreign_capture_is_not_ours(canned: Canned, paypal: PayPal) -> None:
    foreign = capture_json(custom_id="shop-4711")
    canned.answers += [(200, foreign), (201, order_json(foreign))]
    assert paypal.find_capture("3C679366HH908993F") is None
    with pytest.raises(PaymentProviderRefused, match="not for an order of ours"):
        paypal.capture("5O190127TN364715T")


def test_a_capture_that_names_no_checkout_is_an_error(canned: Canned, paypal: PayPal) -> None:
    canned.answers += [(200, capture_json(supplementary_data={}))]
    with pytest.raises(PaymentProviderUnavailable, match="which checkout"):
        paypal.find_capture("3C679366HH908993F")


@pytest.mark.parametrize("issue", ["PAYER_CANNOT_PAY", "TRANSACTION_REFUSED", "PAYEE_BLOCKED_TRANSACTION"])
def test_another_issue_with_the_payer_is_a_decline_too(canned: Canned, paypal: PayPal, issue: str) -> None:
    canned.answers += [(422, refusal(issue))]
    decline = paypal.capture("5O190127TN364715T")
    assert isinstance(decline, Decline)
    assert (decline.attempt_id, decline.code) == ("f1d2", issue)


def test_an_issue_of_ours_is_a_refusal_in_paypals_words(canned: Canned, paypal: PayPal) -> None:
    canned.answers += [(422, refusal("PAYEE_ACCOUNT_RESTRICTED"))] * 2
    with pytest.raises(PaymentProviderRefused) as refused:
        paypal.capture("5O190127TN364715T")
    assert str(refused.value) == "PayPal refused, with PAYEE_ACCOUNT_RESTRICTED: No."
    assert refused.value.reference == "f1d2"
    with pytest.raises(PaymentProviderRefused, match="PAYEE_ACCOUNT_RESTRICTED"):
        paypal.find_capture("3C679366HH908993F")


@pytest.mark.parametrize("status", [409, 429, 500, 502])
def test_a_transient_failure_is_retried_with_the_same_request_id(canned: Canned, paypal: PayPal, status: int) -> None:
    canned.answers += [(status, b"busy"), (status, b"busy"), (201, order_json(capture_json()))]
    assert paypal.capture("5O190127TN364715T") == CAPTURE
    assert len(canned.request_ids) == 3
    assert len(set(canned.request_ids)) == 1


@pytest.mark.parametrize(
    "answer",
    [
        (200, b"<html>Welcome to the hotel's network</html>"),
        (302, b""),
        (200, {"id": "5O190127TN364715T", "status": "COMPLETED"}),
        (200, order_json(capture_json(amount={"currency_code": "EUR", "value": "1234.505"}))),
        (200, order_json(capture_json(amount={"currency_code": "EUR", "value": "NaN"}))),
        (200, order_json(capture_json(amount={"currency_code": "RMB", "value": "1.00"}))),
        (200, order_json(capture_json(amount=1234.50))),
    ],
)
def test_an_answer_that_is_not_paypals_leaves_the_outcome_unknown(
    canned: Canned, paypal: PayPal, answer: tuple[int, object]
) -> None:
    canned.answers += [answer]
    with pytest.raises(PaymentProviderUnavailable):
        paypal.capture("5O190127TN364715T")
    assert len(canned.requests) == 2  # and a redirect is not followed


def test_a_refund_that_fails_at_paypal_is_refused(canned: Canned, paypal: PayPal) -> None:
    canned.answers += [(201, {"id": "1JU08902781691411", "status": "FAILED"})]
    with pytest.raises(PaymentProviderRefused, match="R-1"):
        paypal.refund("3C679366HH908993F", refund_id="R-1", amount=AMOUNT)


def test_a_token_is_used_until_shortly_before_it_expires(canned: Canned, paypal: PayPal) -> None:
    canned.token_lifetime_s = 59
    canned.answers += [(404, b"")] * 2
    for _ in range(2):
        with pytest.raises(PaymentProviderRefused, match="HTTP_404"):
            paypal.capture("5O190127TN364715T")
    assert canned.paths.count("POST /v1/oauth2/token") == 2


def test_a_webhook_hints_at_a_capture() -> None:
    webhook = {"id": "WH-1", "event_type": "PAYMENT.CAPTURE.COMPLETED", "resource": capture_json(), "links": []}
    assert hinted_capture(json.dumps(webhook).encode()) == "3C679366HH908993F"


@pytest.mark.parametrize("event_type", ["PAYMENT.CAPTURE.PENDING", "CUSTOMER.DISPUTE.CREATED", ""])
def test_a_webhook_of_anything_else_hints_at_nothing(event_type: str) -> None:
    assert hinted_capture(json.dumps({"event_type": event_type, "resource": {"id": "PP-D-1"}}).encode()) is None
    assert hinted_capture(json.dumps({"event_type": event_type}).encode()) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"capture_id=3C679366HH908993F",
        b"null",
        b"[]",
        b"{}",
        b'{"event_type": 7}',
        b'{"event_type": "PAYMENT.CAPTURE.COMPLETED"}',
        b'{"event_type": "PAYMENT.CAPTURE.COMPLETED", "resource": "3C679366HH908993F"}',
        b'{"event_type": "PAYMENT.CAPTURE.COMPLETED", "resource": {"id": 7}}',
        b'{"event_type": "PAYMENT.CAPTURE.COMPLETED", "resource": {"id": "../../v1/oauth2"}}',
        b'{"event_type": "PAYMENT.CAPTURE.COMPLETED", "resource": {"id": "3C6793',
        b'{"resource": ' + b"[" * 20_000,
        b" " * (WEBHOOK_BYTES_MAX + 1),
    ],
)
def test_garbage_is_no_webhook(body: bytes) -> None:
    with pytest.raises(UnreadableWebhook, match="webhook"):
        hinted_capture(body)
