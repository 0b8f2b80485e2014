"""Errors over HTTP: ``application/problem+json`` (RFC 9457)."""

from __future__ import annotations

import logging
from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from domain.invoice_link import UnknownLink
from domain.messages import Refusal
from handlers.use_cases.payment import UnknownPayment
from infra.payments.provider import PaymentProviderUnavailable, UnreadableWebhook

SAFE_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex",
}
NOT_FOUND = (UnknownLink, UnknownPayment)
logger = logging.getLogger(__name__)


def problem(status: int, code: str, detail: str) -> JSONResponse:
    """Return an error as RFC 9457 defines it. ``code`` is stable, for machines; ``detail`` is for people."""
    kind = {"type": f"urn:trunkline:problem:{code}", "title": code.replace("_", " ")}
    body = {**kind, "status": status, "detail": detail}
    return JSONResponse(body, status, media_type="application/problem+json", headers=SAFE_HEADERS)


def add_problem_responses(app: FastAPI) -> None:
    """Answer every exception of an application as a problem; those that nobody foresaw with 503."""
    app.add_exception_handler(Exception, _unexpected)
    for kind, responder in RESPONDERS.items():
        app.add_exception_handler(kind, responder)


def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return problem(404 if isinstance(error, NOT_FOUND) else 409, error.code, str(error))


def _unreadable(_request: Request, error: Exception) -> Response:
    return problem(400, "unreadable_webhook", str(error))


def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    wrong = "; ".join(f"{'.'.join(map(str, issue['loc']))}: {issue['msg']}" for issue in error.errors())
    return problem(422, "invalid", wrong)


def _no_such_page(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = problem(error.status_code, "http", str(error.detail))
    answer.headers.update(error.headers or {})  # as Allow, which 405 needs (RFC 9110, 15.5.6)
    return answer


def _unavailable(_request: Request, error: Exception) -> Response:
    return problem(503, "payment_provider_unavailable", str(error))


def _unexpected(_request: Request, error: Exception) -> Response:
    logger.error("a request failed", exc_info=error)
    answer = problem(503, "unavailable", "Something that this needs does not answer; try again later.")
    answer.headers["Connection"] = "close"  # the server closes it; a client must not send another request on it
    return answer


RESPONDERS: dict[type[Exception], Callable[[Request, Exception], Response]] = {
    Refusal: _refused,
    UnreadableWebhook: _unreadable,
    RequestValidationError: _invalid,
    HTTPException: _no_such_page,
    PaymentProviderUnavailable: _unavailable,
}
