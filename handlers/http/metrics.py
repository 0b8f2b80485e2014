"""What others see of a process: figures for Prometheus at ``/metrics``, and the traces of its requests."""

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


class Standing(Collector):
    """What health knows, as figures; asked at each scrape."""

    def __init__(self, health: Callable[[], dict[str, Any]], database_url: str) -> None:
        self._health = health
        self._database_url = database_url

    def collect(self) -> Iterator[Metric]:
        """See the library's interface."""
        try:
            report = self._health()
            with connect(self._database_url) as conn:
                orders = orders_by_state(conn)
        except Exception as error:  # noqa: BLE001 - whatever is away, Prometheus is told that, and gets the rest
            logger.warning("the figures are not whole: %s", error)
            yield _gauge("trunkline_up", "Whether every part of this process does its work.", 0)
            return
        head = report["head"]
        yield _gauge("trunkline_up", "Whether every part of this process does its work.", int(report["ok"]))
        yield _gauge("trunkline_log_position", "The last position of the log.", head)
        lag = GaugeMetricFamily(
            "trunkline_projection_lag", "Events that a read model is behind.", labels=["projection"]
        )
        for name, position in report["projections"].items():
            lag.add_metric([name], max(head - position, 0))
        yield lag
        halted = GaugeMetricFamily("trunkline_projection_halted", "Whether it is halted.", labels=["projection"])
        for name in report["projections"]:
            halted.add_metric([name], int(name in report["halted"]))
        yield halted
        relay = report["relay"]
        yield _gauge("trunkline_relay_lag", "Events that are not in the stream yet.", relay["lag"])
        yield _gauge("trunkline_relay_active", "Whether it is this process that relays.", int(relay["active"]))
        yield _gauge("trunkline_relay_blocked", "Whether an event stops it.", int(relay["blocked"] is not None))
        if report.get("dead_letters") is not None:
            yield _gauge("trunkline_dead_letters", "Messages that wait for a person.", report["dead_letters"])
        states = GaugeMetricFamily("trunkline_orders", "Orders, by state.", labels=["state"])
        for state, count in orders.items():
            states.add_metric([state], count)
        yield states


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(name, what, value=value)


def metrics_pages(health: Callable[[], dict[str, Any]], database_url: str) -> APIRouter:
    """``/metrics``."""
    router = APIRouter()
    standing = CollectorRegistry()
    standing.register(Standing(health, database_url))

    @router.get("/metrics")
    def tell_figures() -> Response:
        """The figures."""
        return Response(generate_latest(REGISTRY) + generate_latest(standing), media_type=CONTENT_TYPE_LATEST)

    return router


class Traced:
    """A span for each request. It names the route and never the path, which may have a token in it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; see ASGI."""
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
