"""The Trunkline payment simulator: the part of PayPal's API that `infra.payments.paypal` uses, and the buyer's pages.

No money moves here. Every page says so in its title, and every response in the header ``X-Simulator``. Differences from
PayPal:

- Only cards are declined, always with the 422 ``INSTRUMENT_DECLINED``; no payment is held for a review.
- Checkouts, tokens and request ids never expire, and responses are always complete (``Prefer`` is ignored).
- It accepts every currency of ISO 4217, so also KWD, which PayPal does not.
- A webhook is sent once, not repeated until acknowledged: `SimulatorEndpoint.redeliver` repeats it on demand.

Requests under ``/simulator`` inject faults. The state of an application is in memory. Every handler runs on the
application's one event loop and awaits nothing between reading and writing, so none sees a partial change.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import string
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

import httpx
import iso4217
from fastapi import APIRouter, Depends, FastAPI, Form, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from jinja2 import Environment
from pydantic import BaseModel, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.clock import Clock, SystemClock
from infra.payments.provider import Checkout
from infra.servers.uvicorn_thread import serving

NAME: Final = "Trunkline payment simulator"
TITLE: Final = f"{NAME} - no money moves here"

GOOD_CARD: Final = "4111 1111 1111 1111"
DECLINED_CARD: Final = "4000 0000 0000 0002"
TEST_CARDS: Final = {
    GOOD_CARD: "Visa, pays",
    "5555 5555 5555 4444": "Mastercard, pays",
    "3782 822463 10005": "American Express, pays",
    DECLINED_CARD: "Visa, declined",
}
"""The only accepted numbers, as the page shows them, so that nobody enters a real card."""

TOKEN_LIFETIME_S: Final = 32400
WEBHOOK_TIMEOUT_S: Final = 10.0

logger = logging.getLogger(__name__)

CHECKOUT_PAGE: Final = Environment(autoescape=True).from_string("""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{{ title }}</title>
<h1>{{ title }}</h1>
{% if message %}<p role="alert">{{ message }}</p>{% endif %}
{% if order %}
<p>{{ order.description }}: <strong>{{ order.amount.value }} {{ order.amount.currency_code }}</strong></p>
{% if not order.capture %}
<form method="post" action="/checkoutnow">
  <input type="hidden" name="token" value="{{ order.id }}">
  {% if order.by_card %}
  <label>Card number <input name="number" autocomplete="off" inputmode="numeric" maxlength="30" required></label>
  <button>Pay with this card</button>
  <p>Only these test cards work:</p>
  <ul>{% for number, what in cards.items() %}<li><code>{{ number }}</code> {{ what }}</li>{% endfor %}</ul>
  {% else %}
  <button>Approve the payment</button>
  {% endif %}
</form>
<p><a href="{{ cancel_url }}">Give up and go back</a></p>
{% endif %}
{% endif %}
</html>
""")


class _Amount(BaseModel):
    currency_code: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    value: Annotated[str, Field(pattern=r"^[0-9]{1,16}([.][0-9]{1,4})?$")]

    @property
    def decimal(self) -> Decimal:
        return Decimal(self.value)


class _PurchaseUnit(BaseModel):
    amount: _Amount
    custom_id: Annotated[str, Field(max_length=127)] = ""
    description: Annotated[str, Field(max_length=127)] = ""


class _Experience(BaseModel):
    return_url: Annotated[str, Field(pattern=r"^https?://")]
    cancel_url: Annotated[str, Field(pattern=r"^https?://")]
    landing_page: Literal["LOGIN", "GUEST_CHECKOUT", "NO_PREFERENCE"] = "NO_PREFERENCE"


class _Wallet(BaseModel):
    experience_context: _Experience


class _PaymentSource(BaseModel):
    paypal: _Wallet


class _OrderRequest(BaseModel):
    intent: Literal["CAPTURE"]
    purchase_units: Annotated[list[_PurchaseUnit], Field(min_length=1, max_length=1)]
    payment_source: _PaymentSource


class _RefundRequest(BaseModel):
    amount: _Amount
    custom_id: Annotated[str, Field(max_length=127)] = ""


class _Redelivery(BaseModel):
    times: Annotated[int, Field(ge=1, le=100)] = 1
    after_s: Annotated[float, Field(ge=0, le=3600)] = 0


class _WebhookAddress(BaseModel):
    url: Annotated[str, Field(pattern=r"^https?://")] | None


class Faults(BaseModel):
    """The faults to inject next."""

    capture_timeouts: Annotated[int, Field(ge=0)] = 0
    """The number of captures that take the money and then do not answer."""
    unavailable: Annotated[int, Field(ge=0)] = 0
    """The number of API calls that are answered with 503."""
    revoke_tokens: bool = False
    """Whether to revoke all access tokens issued so far."""


@dataclass
class _Refund:
    id: str
    amount: _Amount
    custom_id: str
    created_at: datetime


@dataclass
class _Capture:
    id: str
    order: _Order
    request_id: str | None
    created_at: datetime
    webhook_id: str
    refunds: dict[str, _Refund] = field(default_factory=dict)

    @property
    def refundable(self) -> Decimal:
        refunded = sum((refund.amount.decimal for refund in self.refunds.values()), Decimal(0))
        return self.order.amount.decimal - refunded


@dataclass
class _Card:
    """The stored data of a card: never its number."""

    last_digits: str
    declined: bool


@dataclass
class _Order:
    id: str
    amount: _Amount
    custom_id: str
    description: str
    experience: _Experience
    created_at: datetime
    status: str = "PAYER_ACTION_REQUIRED"
    card: _Card | None = None
    capture: _Capture | None = None

    @property
    def by_card(self) -> bool:
        return self.experience.landing_page == "GUEST_CHECKOUT"


class _ProblemError(Exception):
    """An error response in PayPal's form."""

    def __init__(self, status: int, issue: str, description: str, redirect: str | None = None) -> None:
        super().__init__(issue)
        self.status = status
        self.issue = issue
        self.description = description
        self.redirect = redirect


class _Named:
    """Middleware that adds the header ``X-Simulator`` to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-simulator", NAME.encode())]
            await send(message)

        await self._app(scope, receive, named)


class _Simulator:
    """The state, and the handlers that `payment_simulator` routes to."""

    def __init__(self, client_id: str, client_secret: str, webhook_url: str | None, clock: Clock) -> None:
        self._client = (client_id, client_secret)
        self._webhook_url = webhook_url
        self._clock = clock
        self._faults = Faults()
        self._tokens: set[str] = set()
        self._orders: dict[str, _Order] = {}
        self._captures: dict[str, _Capture] = {}
        self._opened: dict[str, _Order] = {}
        self._deliveries: set[asyncio.Task[list[int]]] = set()
        self._http: httpx.AsyncClient

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Deliver webhooks while the application runs."""
        async with httpx.AsyncClient(timeout=WEBHOOK_TIMEOUT_S, trust_env=False) as self._http:
            yield
            for delivery in self._deliveries:
                delivery.cancel()
            await asyncio.gather(*self._deliveries, return_exceptions=True)

    async def available(self) -> None:
        """Answer 503 while that fault is injected."""
        if self._faults.unavailable:
            self._faults.unavailable -= 1
            raise _ProblemError(503, "SERVICE_UNAVAILABLE", "The simulator was told to be unavailable.")

    async def authorised(self, authorization: Annotated[str, Header()] = "") -> None:
        """Require a valid access token."""
        if authorization.removeprefix("Bearer ") not in self._tokens:
            raise _ProblemError(401, "AUTHENTICATION_FAILURE", "The access token is missing or unknown.")

    async def token(
        self,
        grant_type: Annotated[str, Form()],
        credentials: Annotated[HTTPBasicCredentials | None, Depends(HTTPBasic(auto_error=False))],
    ) -> Response:
        """POST /v1/oauth2/token (RFC 6749, section 4.4)."""
        if grant_type != "client_credentials":
            return JSONResponse({"error": "unsupported_grant_type", "error_description": "Not supported"}, 400)
        if credentials is None or (credentials.username, credentials.password) != self._client:
            problem = {"error": "invalid_client", "error_description": "Client Authentication failed"}
            return JSONResponse(problem, 401)
        token = secrets.token_urlsafe(32)
        self._tokens.add(token)
        return JSONResponse({"access_token": token, "token_type": "Bearer", "expires_in": TOKEN_LIFETIME_S})

    async def open_order(
        self, asked: _OrderRequest, request: Request, paypal_request_id: Annotated[str | None, Header()] = None
    ) -> Response:
        """POST /v2/checkout/orders."""
        if paypal_request_id is not None and paypal_request_id in self._opened:
            return JSONResponse(_order_json(self._opened[paypal_request_id], request))
        [unit] = asked.purchase_units
        _check(unit.amount)
        order = _Order(
            id=_new_id(),
            amount=unit.amount,
            custom_id=unit.custom_id,
            description=unit.description,
            experience=asked.payment_source.paypal.experience_context,
            created_at=self._clock.now(),
        )
        self._orders[order.id] = order
        if paypal_request_id is not None:
            self._opened[paypal_request_id] = order
        return JSONResponse(_order_json(order, request), 201)

    async def order(self, order_id: str, request: Request) -> Response:
        """GET /v2/checkout/orders/{order_id}."""
        return JSONResponse(_order_json(self._known_order(order_id), request))

    async def capture_order(
        self, order_id: str, request: Request, paypal_request_id: Annotated[str | None, Header()] = None
    ) -> Response:
        """POST /v2/checkout/orders/{order_id}/capture."""
        order = self._known_order(order_id)
        if order.capture is not None:
            if paypal_request_id is None or order.capture.request_id != paypal_request_id:
                raise _ProblemError(422, "ORDER_ALREADY_CAPTURED", "Order already captured.")
            return JSONResponse(_order_json(order, request))
        if order.status != "APPROVED":
            raise _ProblemError(422, "ORDER_NOT_APPROVED", "Payer has not yet approved the Order for payment.")
        if order.card is not None and order.card.declined:
            order.status = "PAYER_ACTION_REQUIRED"
            sentence = "The instrument presented was either declined by the processor or bank."
            raise _ProblemError(422, "INSTRUMENT_DECLINED", sentence, _approve_url(order, request))
        order.status = "COMPLETED"
        order.capture = _Capture(_new_id(), order, paypal_request_id, self._clock.now(), f"WH-{_new_id()}")
        self._captures[order.capture.id] = order.capture
        answer = _order_json(order, request)
        self._start(self._deliver(_webhook_json(order.capture, request), times=1))
        if self._faults.capture_timeouts:
            self._faults.capture_timeouts -= 1
            await _until_hung_up(request)
        return JSONResponse(answer, 201)

    async def capture(self, capture_id: str, request: Request) -> Response:
        """GET /v2/payments/captures/{capture_id}."""
        return JSONResponse(_capture_json(self._known_capture(capture_id), request))

    async def refund(
        self,
        capture_id: str,
        asked: _RefundRequest,
        request: Request,
        paypal_request_id: Annotated[str | None, Header()] = None,
    ) -> Response:
        """POST /v2/payments/captures/{capture_id}/refund."""
        capture = self._known_capture(capture_id)
        key = paypal_request_id or _new_id()
        if key in capture.refunds:
            return JSONResponse(_refund_json(capture.refunds[key], capture, request))
        _check(asked.amount)
        if asked.amount.currency_code != capture.order.amount.currency_code:
            sentence = "Refund must be in the same currency as the capture."
            raise _ProblemError(422, "REFUND_CAPTURE_CURRENCY_MISMATCH", sentence)
        if capture.refundable == 0:
            raise _ProblemError(422, "CAPTURE_FULLY_REFUNDED", "The capture has already been fully refunded.")
        if asked.amount.decimal > capture.refundable:
            sentence = "The refund amount must be less than or equal to the capture amount that is not refunded yet."
            raise _ProblemError(422, "REFUND_AMOUNT_EXCEEDED", sentence)
        refund = _Refund(_new_id(), asked.amount, asked.custom_id, self._clock.now())
        capture.refunds[key] = refund
        return JSONResponse(_refund_json(refund, capture, request), 201)

    async def approve_page(self, token: str = "") -> Response:
        """GET /checkoutnow: what the buyer sees at the provider."""
        order = self._orders.get(token)
        if order is None:
            return _page(404, message="There is no such checkout.")
        return _page(200, order=order, message="This checkout is paid." if order.capture else "")

    async def approve(self, token: Annotated[str, Form()], number: Annotated[str, Form()] = "") -> Response:
        """POST /checkoutnow: the buyer approves, or enters a card, of which only the last four digits are kept."""
        order = self._orders.get(token)
        if order is None:
            return _page(404, message="There is no such checkout.")
        if order.capture is not None:
            return _page(409, order=order, message="This checkout is paid already.")
        if order.by_card:
            digits = re.sub(r"[ -]", "", number)
            declined = {_digits(card): card == DECLINED_CARD for card in TEST_CARDS}.get(digits)
            if declined is None:
                return _page(422, order=order, message="This is not one of the test cards; do not enter a real card.")
            order.card = _Card(digits[-4:], declined)
        order.status = "APPROVED"
        query = {"token": order.id, "PayerID": "SIMULATEDBUYER"}
        return RedirectResponse(str(httpx.URL(order.experience.return_url).copy_merge_params(query)), 303)

    async def set_webhook(self, address: _WebhookAddress) -> Response:
        """PUT /simulator/webhook: set the URL for webhooks."""
        self._webhook_url = address.url
        return Response(status_code=204)

    async def set_faults(self, faults: Faults) -> Response:
        """POST /simulator/faults: replace the faults to inject."""
        self._faults = faults
        if faults.revoke_tokens:
            self._tokens.clear()
        return Response(status_code=204)

    async def redeliver(self, capture_id: str, redelivery: _Redelivery, request: Request) -> Response:
        """POST /simulator/captures/{capture_id}/webhooks: deliver now and return the statuses, or deliver later."""
        webhook = _webhook_json(self._known_capture(capture_id), request)
        delivery = self._start(self._deliver(webhook, redelivery.times, redelivery.after_s))
        return JSONResponse({"statuses": [] if redelivery.after_s else await delivery}, 202)

    def _known_order(self, order_id: str) -> _Order:
        if order_id not in self._orders:
            raise _ProblemError(404, "INVALID_RESOURCE_ID", "Specified resource ID does not exist.")
        return self._orders[order_id]

    def _known_capture(self, capture_id: str) -> _Capture:
        if capture_id not in self._captures:
            raise _ProblemError(404, "INVALID_RESOURCE_ID", "Specified resource ID does not exist.")
        return self._captures[capture_id]

    def _start(self, delivery: Coroutine[None, None, list[int]]) -> asyncio.Task[list[int]]:
        task = asyncio.create_task(delivery)
        self._deliveries.add(task)
        task.add_done_callback(self._deliveries.discard)
        return task

    async def _deliver(self, webhook: dict[str, Any], times: int, after_s: float = 0) -> list[int]:
        """Post a webhook ``times`` times at once. Returns the statuses, 0 for each without an answer."""
        await asyncio.sleep(after_s)
        return list(await asyncio.gather(*[self._post(webhook) for _ in range(times)]))

    async def _post(self, webhook: dict[str, Any]) -> int:
        if self._webhook_url is None:
            return 0
        try:
            answer = await self._http.post(self._webhook_url, json=webhook, headers={"X-Simulator": NAME})
        except httpx.RequestError as error:
            logger.warning("the webhook %s was not delivered: %s", webhook["id"], type(error).__name__)
            return 0
        return answer.status_code


def _new_id() -> str:
    """Return an id like PayPal's: 17 capital letters and digits, 87 bits, so it cannot be guessed."""
    return "".join(secrets.choice(string.ascii_uppercase + string.digits) for _ in range(17))


def _digits(number: str) -> str:
    return number.replace(" ", "")


def _check(amount: _Amount) -> None:
    try:
        exponent = iso4217.Currency(amount.currency_code).exponent
    except ValueError:
        exponent = None
    if exponent is None:
        raise _ProblemError(422, "INVALID_CURRENCY_CODE", "Currency code is invalid or is not currently supported.")
    if len(amount.value.partition(".")[2]) > exponent:
        raise _ProblemError(422, "DECIMAL_PRECISION", f"{amount.currency_code} has at most {exponent} decimals.")
    if amount.decimal == 0:
        raise _ProblemError(422, "CANNOT_BE_ZERO_OR_NEGATIVE", "Must be greater than zero.")


def _approve_url(order: _Order, request: Request) -> str:
    return f"{request.base_url}checkoutnow?token={order.id}"


def _link(request: Request, path: str, rel: str, method: str = "GET") -> dict[str, str]:
    return {"href": f"{request.base_url}{path}", "rel": rel, "method": method}


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _order_json(order: _Order, request: Request) -> dict[str, Any]:
    path = f"v2/checkout/orders/{order.id}"
    links = [_link(request, path, "self")]
    if order.status == "PAYER_ACTION_REQUIRED":
        links.append({"href": _approve_url(order, request), "rel": "payer-action", "method": "GET"})
    if order.status == "APPROVED":
        links.append(_link(request, f"{path}/capture", "capture", "POST"))
    unit: dict[str, Any] = {
        "reference_id": "default",
        "amount": order.amount.model_dump(),
        "custom_id": order.custom_id,
        "description": order.description,
    }
    if order.capture is not None:
        unit["payments"] = {"captures": [_capture_json(order.capture, request)]}
    card = {"card": {"last_digits": order.card.last_digits}} if order.card else {}
    return {
        "id": order.id,
        "intent": "CAPTURE",
        "status": order.status,
        "create_time": _time(order.created_at),
        "payment_source": card or {"paypal": {}},
        "purchase_units": [unit],
        "links": links,
    }


def _capture_json(capture: _Capture, request: Request) -> dict[str, Any]:
    path = f"v2/payments/captures/{capture.id}"
    refunded = "PARTIALLY_REFUNDED" if capture.refundable else "REFUNDED"
    return {
        "id": capture.id,
        "status": refunded if capture.refunds else "COMPLETED",
        "amount": capture.order.amount.model_dump(),
        "final_capture": True,
        "custom_id": capture.order.custom_id,
        "supplementary_data": {"related_ids": {"order_id": capture.order.id}},
        "create_time": _time(capture.created_at),
        "links": [
            _link(request, path, "self"),
            _link(request, f"{path}/refund", "refund", "POST"),
            _link(request, f"v2/checkout/orders/{capture.order.id}", "up"),
        ],
    }


def _refund_json(refund: _Refund, capture: _Capture, request: Request) -> dict[str, Any]:
    return {
        "id": refund.id,
        "status": "COMPLETED",
        "amount": refund.amount.model_dump(),
        "custom_id": refund.custom_id,
        "create_time": _time(refund.created_at),
        "links": [_link(request, f"v2/payments/captures/{capture.id}", "up")],
    }


def _webhook_json(capture: _Capture, request: Request) -> dict[str, Any]:
    return {
        "id": capture.webhook_id,
        "event_version": "1.0",
        "create_time": _time(capture.created_at),
        "resource_type": "capture",
        "resource_version": "2.0",
        "event_type": "PAYMENT.CAPTURE.COMPLETED",
        "summary": f"A payment was simulated by the {NAME}; no money moved.",
        "resource": _capture_json(capture, request),
    }


def _page(status: int, *, order: _Order | None = None, message: str = "") -> Response:
    context: dict[str, Any] = {"title": TITLE, "order": order, "message": message, "cards": TEST_CARDS}
    if order is not None:
        context["cancel_url"] = str(httpx.URL(order.experience.cancel_url).copy_merge_params({"token": order.id}))
    return HTMLResponse(CHECKOUT_PAGE.render(context), status, headers={"Cache-Control": "no-store"})


async def _until_hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, _ProblemError)
    names = {401: "AUTHENTICATION_FAILURE", 404: "RESOURCE_NOT_FOUND", 422: "UNPROCESSABLE_ENTITY"}
    answer: dict[str, Any] = {
        "name": names.get(error.status, error.issue),
        "message": error.description,
        "debug_id": secrets.token_hex(7),
        "details": [{"issue": error.issue, "description": error.description}],
    }
    if error.redirect is not None:
        answer["links"] = [{"href": error.redirect, "rel": "redirect", "method": "GET"}]
    return JSONResponse(answer, error.status)


async def _malformed(request: Request, error: Exception) -> Response:
    """Name the malformed fields, but never repeat their values: one may be a card number."""
    assert isinstance(error, RequestValidationError)
    fields = ", ".join("/".join(map(str, problem["loc"])) for problem in error.errors())
    return await _problem(request, _ProblemError(400, "INVALID_REQUEST", f"Missing or malformed: {fields}"))


def payment_simulator(
    *, client_id: str, client_secret: str, webhook_url: str | None = None, clock: Clock | None = None
) -> FastAPI:
    """Make the simulator's application.

    Args:
        client_id: the only client that is admitted.
        client_secret: its secret.
        webhook_url: where captures are reported, if anywhere. ``PUT /simulator/webhook`` changes it.
        clock: the source of timestamps; by default the system's.
    """
    simulator = _Simulator(client_id, client_secret, webhook_url, clock or SystemClock())
    app = FastAPI(title=TITLE, lifespan=simulator.lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_Named)
    app.add_exception_handler(_ProblemError, _problem)
    app.add_exception_handler(RequestValidationError, _malformed)

    available, authorised = Depends(simulator.available), Depends(simulator.authorised)
    app.post("/v1/oauth2/token", dependencies=[available])(simulator.token)
    api = APIRouter(prefix="/v2", dependencies=[available, authorised])
    api.post("/checkout/orders")(simulator.open_order)
    api.get("/checkout/orders/{order_id}")(simulator.order)
    api.post("/checkout/orders/{order_id}/capture")(simulator.capture_order)
    api.get("/payments/captures/{capture_id}")(simulator.capture)
    api.post("/payments/captures/{capture_id}/refund")(simulator.refund)
    app.include_router(api)

    app.get("/checkoutnow")(simulator.approve_page)
    app.post("/checkoutnow")(simulator.approve)

    app.put("/simulator/webhook")(simulator.set_webhook)
    app.post("/simulator/faults")(simulator.set_faults)
    app.post("/simulator/captures/{capture_id}/webhooks")(simulator.redeliver)
    return app


@dataclass(frozen=True)
class SimulatorEndpoint:
    """A running simulator: what an adapter needs to call it, and the actions of a buyer or a demonstration.

    Each method is one HTTP request, and raises `ValueError` with the simulator's answer if it is an error.
    """

    url: str
    client_id: str
    client_secret: str = field(repr=False)
    http: httpx.Client = field(repr=False)

    def approve(self, checkout: Checkout) -> str:
        """Approve as the buyer. Returns the URL that the browser is redirected to."""
        return self._ask("POST", "/checkoutnow", data={"token": checkout.checkout_id}).headers["Location"]

    def enter_card(self, checkout: Checkout, number: str) -> str:
        """Enter one of `TEST_CARDS` as the buyer. Returns the URL that the browser is redirected to."""
        form = {"token": checkout.checkout_id, "number": number}
        return self._ask("POST", "/checkoutnow", data=form).headers["Location"]

    def redeliver(self, capture_id: str, times: int = 1, *, after_s: float = 0) -> list[int]:
        """Deliver the webhook of a capture again, ``times`` times at once.

        Returns:
            The HTTP status of each delivery, 0 without an answer; empty if they follow after ``after_s`` seconds.
        """
        request = {"times": times, "after_s": after_s}
        answer = self._ask("POST", f"/simulator/captures/{capture_id}/webhooks", json=request)
        return [int(status) for status in answer.json()["statuses"]]

    def send_webhooks_to(self, url: str | None) -> None:
        """Set the URL for webhooks; None stops them."""
        self._ask("PUT", "/simulator/webhook", json={"url": url})

    def inject(self, faults: Faults) -> None:
        """Inject these faults next."""
        self._ask("POST", "/simulator/faults", json=faults.model_dump())

    def _ask(
        self, verb: str, path: str, *, data: dict[str, str] | None = None, json: dict[str, Any] | None = None
    ) -> httpx.Response:
        answer = self.http.request(verb, path, data=data, json=json)
        if answer.is_error:
            raise ValueError(f"The simulator answered {answer.status_code}: {answer.text}")
        return answer


@contextmanager
def running_simulator(*, webhook_url: str | None = None, clock: Clock | None = None) -> Iterator[SimulatorEndpoint]:
    """Run a simulator on a free port of 127.0.0.1, with its own credentials."""
    client_id, client_secret = f"simulator-{secrets.token_hex(8)}", secrets.token_urlsafe(32)
    app = payment_simulator(client_id=client_id, client_secret=client_secret, webhook_url=webhook_url, clock=clock)
    with (
        serving(app) as url,
        httpx.Client(base_url=url, timeout=2 * WEBHOOK_TIMEOUT_S, trust_env=False) as http,
    ):
        yield SimulatorEndpoint(url, client_id, client_secret, http)
