from __future__ import annotations

import logging
import queue
import re
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, closing, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI, Request, Response

from domain.money import Money
from domain.order import Method
from infra.payments.paypal import PayPal, hinted_capture
from infra.payments.provider import Capture, Checkout, PaymentProviderUnavailable
from infra.servers.supervisor import ServerDidNotStart
from infra.servers.uvicorn_thread import listening, serving
from infra.simulators.payment_simulator import (
    DECLINED_CARD,
    GOOD_CARD,
    NAME,
    TITLE,
    Faults,
    SimulatorEndpoint,
    payment_simulator,
    running_simulator,
)

AMOUNT = Money(amount_minor=123_450, currency="EUR")
RETURN_URL = "https://portal.example/paid"
PAYPAL_ID = re.compile(r"[A-Z0-9]{17}")
DELIVERY_TIMEOUT_S = 30


@dataclass(frozen=True)
class OurServer:
    """The URL for webhooks, and the webhooks received."""

    url: str
    received: queue.Queue[bytes]

    def next_hint(self) -> str | None:
        return hinted_capture(self.received.get(timeout=DELIVERY_TIMEOUT_S))


@pytest.fixture(scope="module")
def our_server() -> Iterator[OurServer]:
    received: queue.Queue[bytes] = queue.Queue()
    app = FastAPI()

    @app.post("/webhooks/paypal")
    async def webhook(request: Request) -> Response:
        assert request.headers["X-Simulator"] == NAME
        received.put(await request.body())
        return Response(status_code=204)

    with serving(app) as url:
        yield OurServer(f"{url}/webhooks/paypal", received)


def adapter(simulator: SimulatorEndpoint, *, timeout_s: float = 5) -> PayPal:
    return PayPal(
        base_url=simulator.url,
        client_id=simulator.client_id,
        client_secret=simulator.client_secret,
        timeout_s=timeout_s,
    )


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorEndpoint]:
    with running_simulator() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def paypal(simulator: SimulatorEndpoint) -> Iterator[PayPal]:
    with adapter(simulator) as paypal:
        yield paypal


@dataclass(frozen=True)
class Notified:
    """A simulator, an adapter to it, and our server, which gets its webhooks."""

    simulator: SimulatorEndpoint
    paypal: PayPal
    our_server: OurServer


@pytest.fixture
def notified(our_server: OurServer) -> Iterator[Notified]:
    our_server.received.queue.clear()
    with running_simulator(webhook_url=our_server.url) as simulator, adapter(simulator) as paypal:
        yield Notified(simulator, paypal, our_server)


@pytest.fixture(scope="module")
def api(simulator: SimulatorEndpoint) -> Iterator[httpx.Client]:
    """The API without our adapter."""
    client, form = (simulator.client_id, simulator.client_secret), {"grant_type": "client_credentials"}
    with httpx.Client(base_url=simulator.url) as api:
        token = api.post("/v1/oauth2/token", data=form, auth=client).json()["access_token"]
        api.headers["Authorization"] = f"Bearer {token}"
        yield api


def checkout_of(paypal: PayPal, method: Method = Method.PAYPAL) -> Checkout:
    """A checkout of a new order."""
    order_id = f"YT-ORDER-{uuid4()}"
    return paypal.open_checkout(order_id=order_id, method=method, amount=AMOUNT, return_url=RETURN_URL)


def order_request(value: str, currency_code: str) -> dict[str, object]:
    experience = {"return_url": RETURN_URL, "cancel_url": RETURN_URL}
    return {
        "intent": "CAPTURE",
        "purchase_units": [{"amount": {"value": value, "currency_code": currency_code}}],
        "payment_source": {"paypal": {"experience_context": experience}},
    }


def paid(simulator: SimulatorEndpoint, paypal: PayPal) -> Capture:
    checkout = checkout_of(paypal)
    simulator.approve(checkout)
    capture = paypal.capture(checkout.checkout_id)
    assert isinstance(capture, Capture)
    return capture


def test_a_capture_sends_one_webhook(notified: Notified) -> None:
    capture = paid(notified.simulator, notified.paypal)
    assert notified.our_server.next_hint() == capture.capture_id
    # and capturing again, which takes no money, sends no webhook: only the requested redelivery arrives
    notified.paypal.capture(capture.checkout_id)
    notified.simulator.redeliver(capture.capture_id)
    assert notified.our_server.received.qsize() == 1


def test_a_webhook_is_redelivered_at_once_and_later(notified: Notified) -> None:
    # given a webhook that was delivered
    capture = paid(notified.simulator, notified.paypal)
    first = notified.our_server.received.get(timeout=DELIVERY_TIMEOUT_S)
    # when it is redelivered, then our server gets the same webhook three times
    assert notified.simulator.redeliver(capture.capture_id, 3) == [204, 204, 204]
    assert [notified.our_server.received.get_nowait() for _ in range(3)] == [first] * 3
    # and once more, later
    assert notified.simulator.redeliver(capture.capture_id, after_s=0.05) == []
    assert notified.our_server.received.get(timeout=DELIVERY_TIMEOUT_S) == first


def test_a_capture_whose_answer_is_lost_still_sends_its_webhook(notified: Notified) -> None:
    # given a capture that times out after the money was taken
    checkout = checkout_of(notified.paypal)
    notified.simulator.approve(checkout)
    notified.simulator.inject(Faults(capture_timeouts=1))
    with adapter(notified.simulator, timeout_s=0.2) as impatient, pytest.raises(PaymentProviderUnavailable):
        impatient.capture(checkout.checkout_id)
    # when the webhook arrives, then it leads to the capture
    hint = notified.our_server.next_hint()
    assert hint is not None
    assert notified.paypal.find_capture(hint) == notified.paypal.capture(checkout.checkout_id)


def test_webhooks_go_where_they_are_sent(our_server: OurServer, caplog: pytest.LogCaptureFixture) -> None:
    with running_simulator() as simulator, adapter(simulator) as paypal:
        # given no URL
        capture = paid(simulator, paypal)
        assert simulator.redeliver(capture.capture_id) == [0]
        # when our server's URL is set, then they arrive
        simulator.send_webhooks_to(our_server.url)
        assert simulator.redeliver(capture.capture_id) == [204]
        assert our_server.next_hint() == capture.capture_id
        # and if no server listens there, that is logged
        simulator.send_webhooks_to("http://127.0.0.1:1/nobody")
        with caplog.at_level(logging.WARNING):
            assert simulator.redeliver(capture.capture_id) == [0]
        assert "was not delivered: ConnectError" in caplog.text
        # and a pending delivery does not outlive the simulator
        assert simulator.redeliver(capture.capture_id, after_s=3600) == []


@pytest.mark.parametrize("path", ["/checkoutnow", "/v2/checkout/orders/A", "/v1/oauth2/token", "/nothing"])
def test_every_response_says_that_it_is_simulated(simulator: SimulatorEndpoint, path: str) -> None:
    assert httpx.get(f"{simulator.url}{path}").headers["X-Simulator"] == NAME


def test_the_page_of_a_checkout_says_that_no_money_moves(simulator: SimulatorEndpoint, paypal: PayPal) -> None:
    checkout = checkout_of(paypal)
    page = httpx.get(checkout.approve_url).text
    assert f"<title>{TITLE}</title>" in page
    assert "Order YT-ORDER-" in page
    assert "<strong>1234.50 EUR</strong>" in page
    assert "Approve the payment" in page
    assert "Card number" not in page
    assert f'href="{RETURN_URL}?token={checkout.checkout_id}"' in page
    # and once it is paid, there is nothing left to approve
    simulator.approve(checkout)
    paypal.capture(checkout.checkout_id)
    page = httpx.get(checkout.approve_url).text
    assert "This checkout is paid." in page
    assert "Approve the payment" not in page
    with pytest.raises(ValueError, match="This checkout is paid already"):
        simulator.approve(checkout)


def test_only_test_cards_are_accepted(simulator: SimulatorEndpoint, paypal: PayPal) -> None:
    checkout = checkout_of(paypal, Method.CARD)
    page = httpx.get(checkout.approve_url).text
    assert "Card number" in page
    assert GOOD_CARD in page
    assert f"{DECLINED_CARD}</code> Visa, declined" in page
    # a number that could be real is refused and not repeated; and a card checkout needs a card
    with pytest.raises(ValueError, match="not one of the test cards") as refused:
        simulator.enter_card(checkout, "4539 1488 0343 6467")
    assert "6467" not in str(refused.value)
    with pytest.raises(ValueError, match="not one of the test cards"):
        simulator.approve(checkout)


def test_only_the_last_four_digits_of_a_card_are_kept(
    simulator: SimulatorEndpoint, paypal: PayPal, api: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    # given a card number, in any notation
    checkout = checkout_of(paypal, Method.CARD)
    with caplog.at_level(logging.DEBUG):
        simulator.enter_card(checkout, GOOD_CARD.replace(" ", "-"))
    # then the simulator knows only its last digits
    order = api.get(f"/v2/checkout/orders/{checkout.checkout_id}").json()
    assert order["payment_source"] == {"card": {"last_digits": "1111"}}
    assert order["status"] == "APPROVED"
    # and nothing more was logged
    assert "4111" not in caplog.text


def test_an_unknown_checkout_is_not_found(simulator: SimulatorEndpoint) -> None:
    for answer in (
        httpx.get(f"{simulator.url}/checkoutnow", params={"token": "<script>"}),
        httpx.post(f"{simulator.url}/checkoutnow", data={"token": "<script>", "number": GOOD_CARD}),
    ):
        assert answer.status_code == 404
        assert TITLE in answer.text
        assert "script" not in answer.text


def test_ids_are_like_paypals(simulator: SimulatorEndpoint, paypal: PayPal) -> None:
    capture = paid(simulator, paypal)
    assert PAYPAL_ID.fullmatch(capture.checkout_id)
    assert PAYPAL_ID.fullmatch(capture.capture_id)


def test_a_malformed_request_is_refused_naming_its_fields_but_no_values(simulator: SimulatorEndpoint) -> None:
    with pytest.raises(ValueError, match="body/times") as refused:
        simulator.redeliver("A", 4111)
    assert "4111" not in str(refused.value)


@pytest.mark.parametrize(
    ("value", "currency_code", "status", "issue"),
    [
        ("1.005", "EUR", 422, "DECIMAL_PRECISION"),
        ("1.00", "JPY", 422, "DECIMAL_PRECISION"),
        ("1.00", "RMB", 422, "INVALID_CURRENCY_CODE"),
        ("1.00", "XAU", 422, "INVALID_CURRENCY_CODE"),
        ("0.00", "EUR", 422, "CANNOT_BE_ZERO_OR_NEGATIVE"),
        ("-1.00", "EUR", 400, "INVALID_REQUEST"),
        ("1e3", "EUR", 400, "INVALID_REQUEST"),
    ],
)
def test_amounts_that_paypal_refuses_are_refused(
    api: httpx.Client, value: str, currency_code: str, status: int, issue: str
) -> None:
    answer = api.post("/v2/checkout/orders", json=order_request(value, currency_code))
    assert (answer.status_code, answer.json()["details"][0]["issue"]) == (status, issue)
    assert answer.json()["debug_id"]


def test_a_request_id_makes_a_call_idempotent(simulator: SimulatorEndpoint, api: httpx.Client) -> None:
    # given two orders that were opened without a request id
    orders = [api.post("/v2/checkout/orders", json=order_request("1.00", "EUR")) for _ in range(2)]
    order_id, other_id = [order.json()["id"] for order in orders]
    assert order_id != other_id
    # when one is captured twice with the same request id, then both answers show the same capture
    simulator.approve(Checkout(checkout_id=order_id, approve_url=""))
    path, headers = f"/v2/checkout/orders/{order_id}/capture", {"PayPal-Request-Id": "R-1"}
    first, second = [api.post(path, headers=headers) for _ in range(2)]
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json()
    # and without it, or with another one, the order counts as already captured
    for other in ({}, {"PayPal-Request-Id": "R-2"}):
        assert api.post(path, headers=other).json()["details"][0]["issue"] == "ORDER_ALREADY_CAPTURED"


def test_a_token_is_given_for_client_credentials_only(api: httpx.Client) -> None:
    answer = api.post("/v1/oauth2/token", data={"grant_type": "password"})
    assert (answer.status_code, answer.json()["error"]) == (400, "unsupported_grant_type")


def test_an_unknown_token_is_refused(simulator: SimulatorEndpoint) -> None:
    answer = httpx.post(f"{simulator.url}/v2/checkout/orders", json={}, headers={"Authorization": "Bearer guessed"})
    assert answer.status_code == 401
    assert answer.json()["name"] == "AUTHENTICATION_FAILURE"


def test_simulators_share_no_state(simulator: SimulatorEndpoint, paypal: PayPal) -> None:
    capture = paid(simulator, paypal)
    with running_simulator() as other, adapter(other) as elsewhere:
        assert elsewhere.find_capture(capture.capture_id) is None


# --- serving


def test_an_application_that_cannot_start_is_not_served() -> None:
    def no_database(_: FastAPI) -> AbstractAsyncContextManager[None]:
        raise OSError("no database")

    with pytest.raises(ServerDidNotStart, match="the log says why"), serving(FastAPI(lifespan=no_database)):
        pass


def test_a_served_application_is_stopped_on_any_exception() -> None:
    app = payment_simulator(client_id="us", client_secret="s")  # noqa: S106 - nobody's
    urls = []
    with suppress(KeyboardInterrupt), serving(app) as url:
        urls.append(url)
        assert httpx.get(url).status_code == 404
        raise KeyboardInterrupt
    with pytest.raises(httpx.ConnectError):
        httpx.get(urls[0])


def test_an_idle_connection_is_kept_longer_than_clients_keep_theirs(simulator: SimulatorEndpoint) -> None:
    """Otherwise a request may arrive on a connection that is just being closed."""
    kept_s = httpx.Limits().keepalive_expiry
    assert kept_s
    with closing(HTTPConnection(simulator.url.removeprefix("http://"))) as connection:
        connection.request("GET", "/nothing")
        assert connection.getresponse().read()
        time.sleep(kept_s + 0.2)
        connection.request("GET", "/nothing")
        assert connection.getresponse().read()


def test_a_port_that_is_taken_is_named() -> None:
    with listening() as taken:
        port = taken.getsockname()[1]
        taken.listen()
        with pytest.raises(ServerDidNotStart, match=str(port)):
            listening(port)
