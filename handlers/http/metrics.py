"""Observability of a process: metrics for Prometheus at ``/metrics``, and a trace of each request."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.postgres.connections import connect
from infra.tracing import requested
from projections.orders import orders_by_state

logger = logging.getLogger(__name__)


class HealthCollector(Collector):
    """The health report as metrics, collected at each scrape."""

    def __init__(self, health: Callable[[], dict[str, Any]], database_url: str) -> None:
        self._health = health
        self._database_url = database_url

    def collect(self) -> Iterator[Metric]:
        """See the library's interface."""
        try:
            report = self._health()
            with connect(self._database_url) as conn:
                orders = orders_by_state(conn)
        except Exception as error:  # noqa: BLE001 - Prometheus learns that something is away, and gets the other metrics
            logger.warning("metrics are incomplete: %s", error)
            yield _gauge("trunkline_up", "Whether every part of this process works.", 0)
            return
        head = report["head"]
        yield _gauge("trunkline_up", "Whether every part of this process works.", int(report["ok"]))
        yield _gauge("trunkline_log_position", "The last position of the log.", head)
        lag = GaugeMetricFamily(
            "trunkline_projection_lag", "Events that a read model has not folded yet.", labels=["projection"]
        )
        for name, position in report["projections"].items():
            lag.add_metric([name], max(head - position, 0))
        yield lag
        halted = GaugeMetricFamily(
            "trunkline_projection_halted", "Whether an event halts a read model.", labels=["projection"]
        )
        for name in report["projections"]:
            halted.add_metric([name], int(name in report["halted"]))
        yield halted
        relay = report["relay"]
        yield _gauge("trunkline_relay_lag", "Events that are not published yet.", relay["lag"])
        yield _gauge("trunkline_relay_active", "Whether this process relays.", int(relay["active"]))
        yield _gauge("trunkline_relay_blocked", "Whether an event blocks the relay.", int(relay["blocked"] is not None))
        if report.get("dead_letters") is not None:
            yield _gauge("trunkline_dead_letters", "Dead letters that wait for a person.", report["dead_letters"])
        states = GaugeMetricFamily("trunkline_orders", "Orders, by state.", labels=["state"])
        for state, count in orders.items():
            states.add_metric([state], count)
        yield states


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(name, what, value=value)


def metrics_pages(health: Callable[[], dict[str, Any]], database_url: str) -> APIRouter:
    """Return ``/metrics``."""
    router = APIRouter()
    health_registry = CollectorRegistry()
    health_registry.register(HealthCollector(health, database_url))

    @router.get("/metrics")
    def report_metrics() -> Response:
        """Return all metrics in the text format of Prometheus."""
        return Response(generate_latest(REGISTRY) + generate_latest(health_registry), media_type=CONTENT_TYPE_LATEST)

    return router


class Traced:
    """Traces each request as a span. It is named by the route, never by the path, which may hold a token."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with requested(Headers(scope=scope), scope["method"]) as span:

            async def send_on(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                await send(message)

            span.set_attribute("http.request.method", scope["method"])
            try:
                await self._app(scope, receive, send_on)
            finally:
                if route := getattr(scope.get("route"), "path", None):
                    span.set_attribute("http.route", route)
                    span.update_name(f"{scope['method']} {route}")
