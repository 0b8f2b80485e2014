"""Traces of the whole composition: one trace per request with all its consequences, each span below its cause."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from uuid import UUID, uuid4

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from domain.invoice import InvoiceEmailed, InvoiceIssued
from domain.order import PaymentCaptured
from infra import tracing
from infra.broker.relay import POSITION_HEADER
from tests.support.at_work import AtWork, eventually
from tests.support.broker import Broker
from tests.support.in_memory import InMemory, order

CALLERS = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{CALLERS}-00f067aa0ba902b7-01"
FROM_REQUEST_TO_MAIL = [
    "POST /webhooks/paypal",
    "ReconcileCapture",
    "order.PaymentCaptured.v1",
    "send trunkline.events.v1.order.PaymentCaptured",
    "fulfil_order",
    "FulfilPaidOrder",
    "order.OrderFulfilled.v1",
    "send trunkline.events.v1.order.OrderFulfilled",
    "issue_invoice",
    "InvoiceFulfilledOrder",
    "invoice_link.LinkIssued.v1",
    "send trunkline.events.v1.invoice_link.LinkIssued",
    "mail_invoice",
    "MailInvoiceLink",
    "send mail",
]


@pytest.fixture(name="exporter")
def _exporter() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    with tracing.exporting(SimpleSpanProcessor(exporter)):
        yield exporter


def ids(span: ReadableSpan) -> tuple[int, int]:
    context = span.context
    assert context is not None
    return context.trace_id, context.span_id


def above(span: ReadableSpan, spans: list[ReadableSpan]) -> list[str]:
    """The names of a span's ancestors, from the root."""
    by_id = {ids(each): each for each in spans}
    names = [span.name]
    while span.parent is not None and (higher := by_id.get((span.parent.trace_id, span.parent.span_id))):
        names.insert(0, higher.name)
        span = higher
    return names


@pytest.fixture(name="paid")
def _paid(exporter: InMemorySpanExporter, trunkline: AtWork) -> tuple[AtWork, list[ReadableSpan], str]:
    """The spans of an order paid by a webhook whose caller sent its own trace, and the order's id."""
    order_id, capture_id = trunkline.taken()
    body = {"id": "WH-1", "event_type": "PAYMENT.CAPTURE.COMPLETED", "resource": {"id": capture_id}}
    headers = {"traceparent": TRACEPARENT}
    assert httpx.post(f"{trunkline.url}/webhooks/paypal", json=body, headers=headers, trust_env=False).is_success
    trunkline.until(InvoiceEmailed, order_id)

    def of_request() -> list[ReadableSpan]:
        spans = exporter.get_finished_spans()
        traces = [ids(span)[0] for span in spans if span.name == "POST /webhooks/paypal"]
        found = [span for span in spans if ids(span)[0] in traces]
        return (
            found if {span.name for span in found} >= {*FROM_REQUEST_TO_MAIL} else []
        )  # a span is exported when it ends

    return trunkline, eventually(of_request, "every span") or [], order_id


def test_a_payment_is_one_trace_from_the_request_to_the_mail(
    paid: tuple[AtWork, list[ReadableSpan], str],
) -> None:
    _, spans, _ = paid
    (mail,) = [span for span in spans if span.name == "send mail"]

    assert above(mail, spans) == FROM_REQUEST_TO_MAIL
    assert {ids(span)[0] for span in spans} == {ids(mail)[0]}


def test_a_stranger_does_not_choose_the_correlation_id_and_is_linked(
    paid: tuple[AtWork, list[ReadableSpan], str],
) -> None:
    _, spans, _ = paid
    (request,) = [span for span in spans if span.kind is SpanKind.SERVER]
    assert request.parent is None
    assert ids(request)[0] != int(CALLERS, 16)
    assert [f"{link.context.trace_id:032x}" for link in request.links] == [CALLERS]
    assert request.attributes is not None
    assert request.attributes["http.response.status_code"] == 204


def test_the_log_names_the_trace_so_an_auditor_finds_it(paid: tuple[AtWork, list[ReadableSpan], str]) -> None:
    trunkline, spans, order_id = paid
    captured, issued = trunkline.all(PaymentCaptured, order_id)[0], trunkline.all(InvoiceIssued, order_id)[0]
    for recorded in trunkline.history():
        if recorded.event in (captured, issued):
            assert recorded.cause.correlation_id == str(UUID(int=ids(spans[0])[0]))
            (span,) = [each for each in spans if ids(each)[1] == tracing.span_id(recorded.event_id)]
            assert span.attributes is not None
            assert span.attributes["trunkline.position"] == recorded.position


def test_another_service_gets_the_trace_with_the_message(
    paid: tuple[AtWork, list[ReadableSpan], str], nats_url: str
) -> None:
    trunkline, spans, order_id = paid
    del order_id
    position = next(each.position for each in trunkline.history() if isinstance(each.event, PaymentCaptured))
    (message,) = [m for m in Broker(nats_url).events() if (m.headers or {}).get(POSITION_HEADER) == str(position)]
    (sent,) = [span for span in spans if span.name == "send trunkline.events.v1.order.PaymentCaptured"]
    assert message.headers is not None
    assert message.headers["traceparent"] == "00-{:032x}-{:016x}-01".format(*ids(sent))


def test_no_span_has_personal_data_or_a_token_in_it(
    exporter: InMemorySpanExporter, paid: tuple[AtWork, list[ReadableSpan], str]
) -> None:
    trunkline, _, order_id = paid
    link = trunkline.link(trunkline.all(InvoiceIssued, order_id)[0].number)
    assert httpx.post(link, trust_env=False).is_success
    assert httpx.post(link, trust_env=False).status_code == 404
    eventually(
        lambda: [span for span in exporter.get_finished_spans() if span.name == "POST /invoices/{token}"][1:],
        "both requests",
    )
    told = "\n".join(span.to_json() for span in exporter.get_finished_spans())

    buyer = trunkline.all(InvoiceIssued, order_id)[0].buyer
    for text in (link.rpartition("/")[2], buyer.name, buyer.email, buyer.address[0]):
        assert text not in told


def test_a_refusal_is_an_answer_and_not_an_error(exporter: InMemorySpanExporter, store: InMemory) -> None:
    with pytest.raises(Exception, match="account"):
        store.ask(order())

    (span,) = exporter.get_finished_spans()
    assert span.attributes is not None
    assert (span.name, span.status.is_unset) == ("OrderExpansion", True)
    assert "trunkline.refused" in span.attributes


def test_work_without_a_trace_joins_the_trace_of_its_correlation_id(
    exporter: InMemorySpanExporter, store: InMemory
) -> None:
    """Any text can be a correlation id; a UUID is used as the trace id unchanged."""
    store.opened()
    spans = exporter.get_finished_spans()

    assert {ids(span)[0] for span in spans} == {tracing.trace_id("wish-1")}
    wish = uuid4()
    assert tracing.trace_id(str(wish)) == wish.int


def test_without_a_collector_nothing_is_traced(monkeypatch: pytest.MonkeyPatch, store: InMemory) -> None:
    for name in tracing.ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    with tracing.exported():
        store.opened()
        assert tracing.published("subject", str(uuid4()), "wish-1") == {}


def test_traces_go_to_the_collector_of_the_standard_setting(monkeypatch: pytest.MonkeyPatch, store: InMemory) -> None:
    taken: list[ExportTraceServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append(ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        try:
            with tracing.exported():
                store.opened()
        finally:
            server.shutdown()
            thread.join()

    (resource,) = taken[0].resource_spans
    names = {span.name for scope in resource.scope_spans for span in scope.spans}
    assert {"OpenAccount", "account.AccountOpened.v1"} <= names
    assert [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"] == ["trunkline"]
