"""The HTTP application: the page of an invoice link, the webhook of the payment provider, and health.

Errors are ``application/problem+json`` (RFC 9457); a browser on the page of a link gets a page. Tokens stay out of
logs: the server writes no access log, and no page sends a token anywhere but to this application.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse, Response
from jinja2 import Environment, StrictUndefined

from domain.invoice_link import UnknownLink
from handlers.context import SYSTEM
from handlers.dependencies import Dependencies
from handlers.dispatch import handle
from handlers.http.metrics import Traced
from handlers.http.problems import SAFE_HEADERS, add_problem_responses, problem
from handlers.requests import ReconcileCapture, UseInvoiceLink
from infra.payments.paypal import WEBHOOK_BYTES_MAX, hinted_capture
from infra.tracing import new_correlation_id

LINK_PAGE = Environment(autoescape=True, undefined=StrictUndefined).from_string(
    files("handlers.http").joinpath("templates/invoice_link.html").read_text(encoding="utf-8")
)


def bare_application() -> FastAPI:
    """Return an application without a page, whose errors are problems as RFC 9457 defines them."""
    app = FastAPI(title="Trunkline", docs_url=None, redoc_url=None, openapi_url=None)
    add_problem_responses(app)
    return app


def application(dependencies: Dependencies) -> FastAPI:
    """Return the application: the pages that customers open, and the webhook that the payment provider calls."""
    app = bare_application()
    app.add_middleware(Traced)

    @app.api_route("/invoices/{token}", methods=["GET", "HEAD"])
    def show_link(token: str) -> Response:  # noqa: ARG001 - it is not looked up
        """Show a page with a button, the same for any token. Opening it does not use the link: mail scanners do."""
        return HTMLResponse(LINK_PAGE.render(refused=None), headers=SAFE_HEADERS)

    @app.post("/invoices/{token}")
    def use_link(token: str, request: Request) -> Response:
        """Return the invoice, once."""
        try:
            outcome = handle(UseInvoiceLink(token=token), dependencies, SYSTEM, correlation_id=new_correlation_id())
        except UnknownLink as refusal:
            if "text/html" in request.headers.get("accept", ""):
                return HTMLResponse(LINK_PAGE.render(refused=str(refusal)), 404, headers=SAFE_HEADERS)
            return problem(404, refusal.code, str(refusal))
        document = outcome.answer
        disposition = {"Content-Disposition": 'inline; filename="invoice.pdf"'}
        return Response(document.content, media_type=document.media_type, headers=SAFE_HEADERS | disposition)

    @app.post("/webhooks/paypal")
    async def receive_webhook(request: Request) -> Response:
        """Take a hint that a capture exists, and ask the provider. A forged hint finds nothing."""
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > WEBHOOK_BYTES_MAX:
                return problem(413, "too_large", f"A webhook has at most {WEBHOOK_BYTES_MAX} bytes.")
        capture_id = hinted_capture(body)
        if capture_id is not None:
            hint = ReconcileCapture(capture_id=capture_id)
            await run_in_threadpool(handle, hint, dependencies, SYSTEM, correlation_id=new_correlation_id())
        return Response(status_code=204)

    return app


def health_pages(health: Callable[[], dict[str, Any]]) -> APIRouter:
    """Return ``/health``: the report of ``health``, with status 200 if it is ``ok``, else 503."""
    router = APIRouter()

    @router.get("/health")
    def report_health() -> JSONResponse:
        """Report whether every part of this process works."""
        report = health()
        return JSONResponse(report, 200 if report["ok"] else 503)

    return router
