"""The HTTP application: the invoice link's page, the payment provider's webhook, and health.

Errors are ``application/problem+json`` (RFC 9457); a browser on a link's page gets a page. A token is in no log: the
server writes no access log, and no page carries it anywhere but to this application.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from jinja2 import Environment, StrictUndefined
from starlette.exceptions import HTTPException

from domain.invoice_link import UnknownLink
from domain.messages import Refusal
from handlers.context import SYSTEM
from handlers.dependencies import Dependencies
from handlers.dispatch import handle
from handlers.http.metrics import Traced
from handlers.requests import ReconcileCapture, UseInvoiceLink
from handlers.use_cases.payment import UnknownPayment
from infra.payments.paypal import MAX_WEBHOOK_BYTES, hinted_capture
from infra.payments.provider import PaymentProviderUnavailable, UnreadableWebhook
from infra.tracing import new_correlation_id

SAFE_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex",
}
NOT_FOUND_CODES = (UnknownLink, UnknownPayment)
PAGE = Environment(autoescape=True, undefined=StrictUndefined).from_string(
    files("handlers.http").joinpath("templates/invoice_link.html").read_text(encoding="utf-8")
)
logger = logging.getLogger(__name__)


def problem(status: int, code: str, detail: str) -> JSONResponse:
    """An error as RFC 9457 wants it. ``code`` is stable for machines, ``detail`` is for people."""
    kind = {"type": f"urn:trunkline:problem:{code}", "title": code.replace("_", " ")}
    body = {**kind, "status": status, "detail": detail}
    return JSONResponse(body, status, media_type="application/problem+json", headers=SAFE_HEADERS)


def bare_application() -> FastAPI:
    """An application without a page, whose errors are told as RFC 9457 wants it."""
    app = FastAPI(title="Trunkline", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(Exception, _unexpected)
    for kind, responder in RESPONDERS.items():
        app.add_exception_handler(kind, responder)
    return app


def application(dependencies: Dependencies) -> FastAPI:
    """The application over a house: what customers open, and what the payment provider calls."""
    app = bare_application()
    app.add_middleware(Traced)

    @app.api_route("/invoices/{token}", methods=["GET", "HEAD"])
    def show_link(token: str) -> Response:  # noqa: ARG001 - whatever it is, it is not looked up
        """A page with a button. It is the same for any token, and uses nothing up: mail scanners open links."""
        return HTMLResponse(PAGE.render(refused=None), headers=SAFE_HEADERS)

    @app.post("/invoices/{token}")
    def use_link(token: str, request: Request) -> Response:
        """The invoice, once."""
        try:
            outcome = handle(UseInvoiceLink(token=token), dependencies, SYSTEM, correlation_id=new_correlation_id())
        except UnknownLink as refusal:
            if "text/html" in request.headers.get("accept", ""):
                return HTMLResponse(PAGE.render(refused=str(refusal)), 404, headers=SAFE_HEADERS)
            return problem(404, refusal.code, str(refusal))
        document = outcome.answer
        disposition = {"Content-Disposition": 'inline; filename="invoice.pdf"'}
        return Response(document.content, media_type=document.media_type, headers=SAFE_HEADERS | disposition)

    @app.post("/webhooks/paypal")
    async def provider_says(request: Request) -> Response:
        """A hint that a capture exists. The provider is asked; a forged hint finds nothing."""
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_WEBHOOK_BYTES:
                return problem(413, "too_large", f"A webhook has at most {MAX_WEBHOOK_BYTES} bytes.")
        capture_id = hinted_capture(body)
        if capture_id is not None:
            hint = ReconcileCapture(capture_id=capture_id)
            await run_in_threadpool(handle, hint, dependencies, SYSTEM, correlation_id=new_correlation_id())
        return Response(status_code=204)

    return app


def health_pages(health: Callable[[], dict[str, Any]]) -> APIRouter:
    """``/health``: what ``health`` gives; ``ok`` in it decides the status."""
    router = APIRouter()

    @router.get("/health")
    def report_health() -> JSONResponse:
        """Whether every part of this process does its work."""
        report = health()
        return JSONResponse(report, 200 if report["ok"] else 503)

    return router


def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return problem(404 if isinstance(error, NOT_FOUND_CODES) else 409, error.code, str(error))


def _unreadable(_request: Request, error: Exception) -> Response:
    return problem(400, "unreadable_webhook", str(error))


def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    wrong = "; ".join(f"{'.'.join(map(str, issue['loc']))}: {issue['msg']}" for issue in error.errors())
    return problem(422, "invalid", wrong)


def _no_such_page(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = problem(error.status_code, "http", str(error.detail))
    answer.headers.update(error.headers or {})  # RFC 9110, 15.5.6: who used a wrong method is told the right ones
    return answer


def _unavailable(_request: Request, error: Exception) -> Response:
    return problem(503, "payment_provider_unavailable", str(error))


def _unexpected(_request: Request, error: Exception) -> Response:
    logger.error("a request failed", exc_info=error)
    answer = problem(503, "unavailable", "Something that this needs does not answer; try again later.")
    answer.headers["Connection"] = "close"  # as the server does after that; or the next request may be on its way
    return answer


RESPONDERS: dict[type[Exception], Callable[[Request, Exception], Response]] = {
    Refusal: _refused,
    UnreadableWebhook: _unreadable,
    RequestValidationError: _invalid,
    HTTPException: _no_such_page,
    PaymentProviderUnavailable: _unavailable,
}
