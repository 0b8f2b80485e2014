"""PayPal's REST API: OAuth 2.0 client credentials, Orders v2, and the captures and refunds of Payments v2.

Both payment methods are PayPal orders. `Method.PAYPAL` has the customer log in at PayPal; `Method.CARD` sends the
customer to PayPal's own card form (``landing_page: GUEST_CHECKOUT``), so no card number ever reaches us.

Names in capitals are PayPal's, from its pages "Orders v2", "Payments v2", "Orders v2 errors", "Idempotency" and
"Currency codes".
"""

from __future__ import annotations

import re
import threading
import time
from datetime import UTC
from types import TracebackType
from typing import Annotated, ClassVar, Final, Self, TypeVar
from uuid import UUID, uuid4, uuid5

import httpx
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, JsonValue, ValidationError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from domain.messages import Identifier
from domain.money import Money
from domain.order import Method
from infra.currencies import AmountNotExact, UnknownCurrency, decimal_string, from_decimal_string
from infra.payments.provider import (
    Capture,
    Checkout,
    CredentialsRefused,
    Decline,
    PaymentNotApproved,
    PaymentPending,
    PaymentProviderRefused,
    PaymentProviderUnavailable,
    UnreadableWebhook,
)

CONNECT_TIMEOUT_S: Final = 5.0
ATTEMPTS: Final = 4
TOKEN_MARGIN_S: Final = 60
WEBHOOK_BYTES_MAX: Final = 64 * 1024

LANDING_PAGES: Final = {Method.PAYPAL: "LOGIN", Method.CARD: "GUEST_CHECKOUT"}
WITHOUT_DECIMALS: Final = frozenset({"HUF", "TWD"})
"""ISO 4217 gives these two decimals; PayPal accepts none ("Currency codes")."""

TAKEN: Final = frozenset({"COMPLETED", "PARTIALLY_REFUNDED", "REFUNDED"})
"""The states of a capture whose money was received."""
FAILED: Final = frozenset({"DECLINED", "FAILED", "CANCELLED"})

UNAPPROVED_ISSUES: Final = frozenset({"ORDER_NOT_APPROVED", "PAYER_ACTION_REQUIRED"})
DECLINING_ISSUES: Final = frozenset(
    {
        "INSTRUMENT_DECLINED",
        "CARD_BRAND_NOT_SUPPORTED",
        "COMPLIANCE_VIOLATION",
        "DECLINED_DUE_TO_RELATED_TXN",
        "MAX_NUMBER_OF_PAYMENT_ATTEMPTS_EXCEEDED",
        "PAYEE_BLOCKED_TRANSACTION",
        "PAYER_ACCOUNT_LOCKED_OR_CLOSED",
        "PAYER_ACCOUNT_RESTRICTED",
        "PAYER_CANNOT_PAY",
        "REDIRECT_PAYER_FOR_ALTERNATE_FUNDING",
        "TRANSACTION_BLOCKED_BY_PAYEE",
        "TRANSACTION_LIMIT_EXCEEDED",
        "TRANSACTION_REFUSED",
    }
)
"""Issues of a capture that another card or account may resolve."""
DECLINE_REASON: Final = "The payment was declined; try again with another card or account, or choose another method."

OUR_REQUESTS: Final = UUID("6f9b6f0e-6c2f-4d5a-9d0b-9a4e1c0f7a35")
OUR_REFERENCE: Final = re.compile(r"(paypal|card)/([A-Za-z0-9][A-Za-z0-9._:-]{0,99})")
"""The ``custom_id`` of our orders, which PayPal repeats in their captures: method and order id."""
PAYPAL_ID: Final = re.compile(r"[A-Za-z0-9-]{1,36}")


class _TryAgain(PaymentProviderUnavailable):
    """The attempt failed in a transient way."""


class _Answer(BaseModel):
    """An answer of PayPal. It may add fields that we do not know; its content is not logged."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


def _read_money(value: object) -> Money:
    match value:
        case {"currency_code": str(currency), "value": str(decimal)}:
            try:
                return from_decimal_string(decimal, currency)
            except (UnknownCurrency, AmountNotExact) as error:
                raise ValueError(str(error)) from error
        case _:
            raise ValueError("an amount needs a currency_code and a value")


def _written(amount: Money) -> dict[str, JsonValue]:
    """Convert an amount to PayPal's form, such as ``{"currency_code": "KWD", "value": "12.345"}``.

    Raises:
        PaymentProviderRefused: the currency is not in ISO 4217, so PayPal cannot know it either.
    """
    try:
        value = decimal_string(amount)
    except UnknownCurrency as error:
        raise PaymentProviderRefused(str(error), code="INVALID_CURRENCY_CODE") from error
    if amount.currency in WITHOUT_DECIMALS:
        value = value.removesuffix(".00")  # any other fraction is for PayPal to refuse
    return {"currency_code": amount.currency, "value": value}


class _Related(_Answer):
    order_id: Identifier | None = None


class _Supplement(_Answer):
    related_ids: _Related = _Related()


class _CaptureAnswer(_Answer):
    id: Identifier
    status: str
    amount: Annotated[Money, BeforeValidator(_read_money)]
    create_time: AwareDatetime
    custom_id: str = ""
    supplementary_data: _Supplement = _Supplement()


class _Payments(_Answer):
    captures: tuple[_CaptureAnswer, ...] = ()


class _PurchaseUnit(_Answer):
    payments: _Payments = _Payments()


class _Link(_Answer):
    rel: str
    href: str


class _OrderAnswer(_Answer):
    id: Identifier
    status: str
    purchase_units: tuple[_PurchaseUnit, ...] = ()
    links: tuple[_Link, ...] = ()

    @property
    def captures(self) -> list[_CaptureAnswer]:
        return [capture for unit in self.purchase_units for capture in unit.payments.captures]

    @property
    def spent(self) -> bool:
        """Whether the order can no longer be paid."""
        captures = self.captures
        return self.status == "VOIDED" or (captures != [] and all(capture.status in FAILED for capture in captures))


class _RefundAnswer(_Answer):
    id: str
    status: str


class _TokenAnswer(_Answer):
    access_token: str
    expires_in: int


class _Detail(_Answer):
    issue: str = ""
    description: str = ""


class _Problem(_Answer):
    """An error of the API (name to details) or of its OAuth 2.0 endpoint (error; RFC 6749, section 5.2)."""

    name: str = ""
    message: str = ""
    debug_id: Identifier = ""
    details: tuple[_Detail, ...] = ()
    error: str = ""
    error_description: str = ""


class _Webhook(_Answer):
    event_type: str
    resource: JsonValue = None


class _HintedResource(_Answer):
    id: Identifier


A = TypeVar("A", bound=_Answer)


def hinted_capture(body: bytes) -> str | None:
    """Return the id of the capture that a webhook reports as completed, or None for any other webhook.

    A webhook is a hint, never evidence. Anyone who knows our URL can post one, so nothing in it is trusted: not the
    amount, not the order, not even that there was a payment. The caller passes the id to `PayPal.find_capture`, over
    our own authenticated connection, and acts on that answer alone. So a forged, repeated, late or reordered webhook
    costs one look-up and has no other effect, and no signature has to be verified (PayPal's "Webhooks": verify message
    signatures).

    Args:
        body: the body as received, at most `WEBHOOK_BYTES_MAX`.

    Raises:
        UnreadableWebhook: it is too long, not JSON, or not in PayPal's form.
    """
    if len(body) > WEBHOOK_BYTES_MAX:
        raise UnreadableWebhook(f"The webhook has {len(body)} bytes; PayPal's have at most {WEBHOOK_BYTES_MAX}.")
    try:
        webhook = _Webhook.model_validate_json(body, strict=True)
        if webhook.event_type != "PAYMENT.CAPTURE.COMPLETED":
            return None
        return _HintedResource.model_validate(webhook.resource, strict=True).id
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, problem["loc"])) or "the body" for problem in error.errors())
        raise UnreadableWebhook(f"This is not a PayPal webhook: {fields} cannot be read.") from error


class PayPal:
    """PayPal as a `PaymentProvider`. Thread-safe. Close it at the end, or use it in a ``with``.

    Failed connections, 409 (the previous call is still in progress), 429 and 5xx are retried, `ATTEMPTS` times in all,
    with the same ``PayPal-Request-Id``, which makes the call idempotent. A timeout is not retried: the customer is
    waiting, and the caller may repeat the call.

    Args:
        base_url: ``https://api-m.paypal.com``, ``https://api-m.sandbox.paypal.com``, or a simulator's.
        client_id: of the REST app, from PayPal's developer dashboard.
        client_secret: likewise.
        timeout_s: how long to wait for an answer, in seconds.
        retry_wait_s: the longest pause before the second attempt, in seconds; it doubles with each attempt.
    """

    name: ClassVar[str] = "paypal"

    def __init__(
        self,
        *,
        base_url: str,
        client_id: str,
        client_secret: str,
        timeout_s: float = 20.0,
        retry_wait_s: float = 0.5,
    ) -> None:
        timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s))
        self._http = httpx.Client(base_url=base_url, timeout=timeout, follow_redirects=False)
        self._credentials = httpx.BasicAuth(client_id, client_secret)
        self._retrying = Retrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_random_exponential(multiplier=retry_wait_s),
            retry=retry_if_exception_type(_TryAgain),
            reraise=True,
        )
        self._token_lock = threading.Lock()
        self._token = ""
        self._token_until_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def open_checkout(self, *, order_id: str, method: Method, amount: Money, return_url: str) -> Checkout:
        """See `PaymentProvider.open_checkout`. PayPal remembers request ids for six hours.

        A failed checkout (a card declined for good) is replaced by a new one. If the customer has already approved,
        ``approve_url`` is ``return_url`` itself, so that the missing capture is made.
        """
        if method is Method.OFFLINE:
            raise ValueError("PayPal does not take offline payments; a person confirms those.")
        experience: dict[str, JsonValue] = {
            "return_url": return_url,
            "cancel_url": return_url,
            "landing_page": LANDING_PAGES[method],
            "payment_method_preference": "IMMEDIATE_PAYMENT_REQUIRED",
            "shipping_preference": "NO_SHIPPING",
            "user_action": "PAY_NOW",
        }
        reference = {"custom_id": f"{method}/{order_id}", "description": f"Order {order_id}"}
        body: dict[str, JsonValue] = {
            "intent": "CAPTURE",
            "purchase_units": [{**reference, "amount": _written(amount)}],
            "payment_source": {"paypal": {"experience_context": experience}},
        }
        key = ["checkout", order_id, method, amount.currency, str(amount.amount_minor)]
        while (order := self._call(_OrderAnswer, "POST", "/v2/checkout/orders", _request_id(*key), body)).spent:
            key.append(order.id)
        return Checkout(checkout_id=order.id, approve_url=_approve_url(order, return_url))

    def capture(self, checkout_id: str) -> Capture | Decline:
        """See `PaymentProvider.capture`.

        Each call has its own ``PayPal-Request-Id``: a customer who has since chosen another card must not get the old
        decline again. Even so, an order is captured only once (``ORDER_ALREADY_CAPTURED``).
        """
        path = f"/v2/checkout/orders/{_segment(checkout_id)}"
        try:
            order = self._call(_OrderAnswer, "POST", f"{path}/capture", str(uuid4()), {})
        except PaymentProviderRefused as refused:
            if refused.code in UNAPPROVED_ISSUES:
                raise PaymentNotApproved(f"The customer has not approved the checkout {checkout_id}.") from refused
            if refused.code in DECLINING_ISSUES:
                attempt_id = refused.reference or uuid4().hex
                return Decline(attempt_id=attempt_id, reason=DECLINE_REASON, code=refused.code)
            if refused.code != "ORDER_ALREADY_CAPTURED":
                raise
            order = self._call(_OrderAnswer, "GET", path)
        return _outcome(order)

    def find_capture(self, capture_id: str) -> Capture | None:
        """See `PaymentProvider.find_capture`."""
        if not PAYPAL_ID.fullmatch(capture_id):
            return None
        try:
            answer = self._call(_CaptureAnswer, "GET", f"/v2/payments/captures/{capture_id}")
        except PaymentProviderRefused as refused:
            if refused.code in ("RESOURCE_NOT_FOUND", "INVALID_RESOURCE_ID"):
                return None
            raise
        return _received_capture(answer, answer.supplementary_data.related_ids.order_id)

    def refund(self, capture_id: str, *, refund_id: str, amount: Money) -> None:
        """See `PaymentProvider.refund`. PayPal remembers a ``refund_id`` for 45 days.

        Raises:
            PaymentProviderRefused: also if the refund failed at PayPal; retrying it needs a new ``refund_id``.
        """
        path = f"/v2/payments/captures/{_segment(capture_id)}/refund"
        body: dict[str, JsonValue] = {"amount": _written(amount), "custom_id": refund_id}
        refund = self._call(_RefundAnswer, "POST", path, _request_id("refund", capture_id, refund_id), body)
        if refund.status in FAILED:
            sentence = f"The refund {refund_id} failed at PayPal, with status {refund.status}."
            raise PaymentProviderRefused(sentence, code=refund.status, reference=refund.id)

    def _call(
        self,
        answer: type[A],
        verb: str,
        path: str,
        request_id: str | None = None,
        body: dict[str, JsonValue] | None = None,
    ) -> A:
        """Call the API; if PayPal has revoked our token, retry once with a new one."""
        request = self._http.build_request(verb, path, json=body, headers={"Prefer": "return=representation"})
        if request_id is not None:
            request.headers["PayPal-Request-Id"] = request_id
        token = self._access_token()
        request.headers["Authorization"] = f"Bearer {token}"
        response = self._retrying(self._send, request)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            request.headers["Authorization"] = f"Bearer {self._access_token(refused=token)}"
            response = self._retrying(self._send, request)
        if response.is_client_error:
            raise _refusal(response, PaymentProviderRefused)
        return _parsed(answer, response)

    def _access_token(self, refused: str | None = None) -> str:
        """Return the current token, or a new one if it is about to expire or was ``refused``.

        Raises:
            CredentialsRefused: PayPal does not accept our client id and secret.
        """
        with self._token_lock:
            if self._token == refused or time.monotonic() >= self._token_until_s:
                request = self._http.build_request(
                    "POST", "/v1/oauth2/token", data={"grant_type": "client_credentials"}
                )
                asked_at_s = time.monotonic()
                response = self._retrying(self._send, request, self._credentials)
                if response.is_client_error:
                    raise _refusal(response, CredentialsRefused)
                answer = _parsed(_TokenAnswer, response)
                self._token = answer.access_token
                self._token_until_s = asked_at_s + answer.expires_in - TOKEN_MARGIN_S
            return self._token

    def _send(self, request: httpx.Request, auth: httpx.Auth | None = None) -> httpx.Response:
        """Make one attempt, and convert the library's errors to ours."""
        try:
            response = self._http.send(request, auth=auth)
        except (httpx.NetworkError, httpx.ConnectTimeout, httpx.RemoteProtocolError) as error:
            raise _TryAgain(f"PayPal cannot be reached: {str(error) or type(error).__name__}.") from error
        except httpx.RequestError as error:
            raise PaymentProviderUnavailable(f"PayPal did not answer in time: {type(error).__name__}.") from error
        if response.is_server_error or response.status_code in (httpx.codes.CONFLICT, httpx.codes.TOO_MANY_REQUESTS):
            raise _TryAgain(f"PayPal answered {response.status_code}; try again later.")
        return response


def _request_id(*parts: str) -> str:
    """Return a ``PayPal-Request-Id`` that depends only on what is requested."""
    return str(uuid5(OUR_REQUESTS, "\n".join(parts)))


def _segment(paypal_id: str) -> str:
    """Check that an id is safe in a path; it came through the customer's browser.

    Raises:
        PaymentProviderRefused: it does not have the form of PayPal's ids.
    """
    if not PAYPAL_ID.fullmatch(paypal_id):
        raise PaymentProviderRefused("This is not a PayPal id.", code="INVALID_RESOURCE_ID")
    return paypal_id


def _approve_url(order: _OrderAnswer, return_url: str) -> str:
    if order.status not in ("APPROVED", "COMPLETED"):
        for link in order.links:
            if link.rel in ("payer-action", "approve"):
                return link.href
    return str(httpx.URL(return_url).copy_merge_params({"token": order.id}))


def _received_capture(answer: _CaptureAnswer, checkout_id: str | None) -> Capture | None:
    """Return the capture if the money was received and is for one of our orders."""
    ours = OUR_REFERENCE.fullmatch(answer.custom_id)
    if answer.status not in TAKEN or ours is None:
        return None
    if checkout_id is None:
        raise PaymentProviderUnavailable(f"PayPal does not say which checkout the capture {answer.id} belongs to.")
    return Capture(
        capture_id=answer.id,
        checkout_id=checkout_id,
        order_id=ours[2],
        method=Method(ours[1]),
        amount=answer.amount,
        captured_at=answer.create_time.astimezone(UTC),
    )


def _outcome(order: _OrderAnswer) -> Capture | Decline:
    """Return the result of a capture. ``COMPLETED`` alone is not enough: a declined order is completed, too."""
    if not order.captures:
        raise PaymentProviderUnavailable(f"PayPal reports no payment for the checkout {order.id}.")
    answer = order.captures[-1]
    if answer.status in FAILED:
        return Decline(attempt_id=answer.id, reason=DECLINE_REASON, code=answer.status)
    if answer.status not in TAKEN:
        raise PaymentPending(f"PayPal is holding the payment {answer.id}, with status {answer.status}.")
    capture = _received_capture(answer, order.id)
    if capture is None:
        raise PaymentProviderRefused(f"The checkout {order.id} is not for an order of ours.", code="CUSTOM_ID_UNKNOWN")
    return capture


def _parsed(answer: type[A], response: httpx.Response) -> A:
    """Parse PayPal's answer.

    Raises:
        PaymentProviderUnavailable: something else answered (a redirect, a proxy's page), so the outcome is unknown.
    """
    try:
        if response.is_success:
            return answer.model_validate_json(response.content)
    except ValidationError as error:
        raise PaymentProviderUnavailable("The answer is not one of PayPal's, or cannot be read.") from error
    raise PaymentProviderUnavailable(f"PayPal answered {response.status_code}, which it never does; check its URL.")


def _refusal(response: httpx.Response, kind: type[PaymentProviderRefused]) -> PaymentProviderRefused:
    """Convert PayPal's error to ours, in PayPal's own words."""
    try:
        problem = _Problem.model_validate_json(response.content)
    except ValidationError:
        problem = _Problem()
    detail = problem.details[0] if problem.details else _Detail()
    code = detail.issue or problem.name or problem.error or f"HTTP_{response.status_code}"
    words = detail.description or problem.message or problem.error_description or "it gave no reason"
    return kind(f"PayPal refused, with {code}: {words}", code=code, reference=problem.debug_id)
