"""OpenTelemetry traces: one for everything that follows from one command, in any process and however much later.

Nothing is stored for them. The trace id is the correlation id of the events in the log, and the span id of an event is
derived from its id, so any process that reads an event knows the parent of its spans. No span holds personal data, a
token, or the text of an error. Without an exporter there is no tracer, and nothing is done.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final
from uuid import UUID, uuid4

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode, TraceFlags, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from domain.messages import Refusal
from infra.recorded import Recorded

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""The standard environment variables for the collector of traces (OTLP over HTTP)."""
Attributes = Mapping[str, str | int]

_propagator = TraceContextTextMapPropagator()
_chosen: ContextVar[tuple[int | None, int | None]] = ContextVar("chosen", default=(None, None))
_tracer: Tracer | None = None


class _Ids(RandomIdGenerator):
    """Generates the chosen ids, if any."""

    def generate_trace_id(self) -> int:
        return _chosen.get()[0] or super().generate_trace_id()

    def generate_span_id(self) -> int:
        return _chosen.get()[1] or super().generate_span_id()


@contextmanager
def exported() -> Iterator[None]:
    """Export traces to the collector that a variable of `ENDPOINTS` names, if any, while the context lasts."""
    if not any(os.environ.get(name) for name in ENDPOINTS):
        yield
        return
    with exporting(BatchSpanProcessor(OTLPSpanExporter())):
        yield


@contextmanager
def exporting(processor: SpanProcessor) -> Iterator[None]:
    """Send spans to a processor while the context lasts."""
    global _tracer  # noqa: PLW0603 - one per process, as that of the API, which can be set only once
    resource = Resource.create({SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", "trunkline")})
    provider = TracerProvider(resource=resource, id_generator=_Ids(), shutdown_on_exit=False)
    provider.add_span_processor(processor)
    _tracer = provider.get_tracer("trunkline")
    try:
        yield
    finally:
        _tracer = None
        provider.shutdown()


def new_correlation_id() -> str:
    """Return a correlation id for a new command: that of the present trace, if there is one."""
    current = trace.get_current_span().get_span_context()
    return str(UUID(int=current.trace_id) if current.is_valid else uuid4())


def trace_id(correlation_id: str) -> int:
    """Return the trace id of a correlation id."""
    try:
        found = UUID(correlation_id).int
    except ValueError:
        found = 0
    return found or int.from_bytes(hashlib.sha256(correlation_id.encode()).digest()[:16])


def span_id(event_id: UUID) -> int:
    """Return the span id of an event."""
    return event_id.int % 2**64


@contextmanager
def command(name: str, correlation_id: str, attributes: Attributes) -> Iterator[None]:
    """Open the span of a command. A refusal is an answer, not an error."""
    if _tracer is None:
        yield
        return
    current = trace.get_current_span().get_span_context()
    ours = trace_id(correlation_id)
    if current.trace_id == ours:
        with _span(_tracer, name, None, SpanKind.INTERNAL, attributes):
            yield
    else:  # the sender has a trace of its own
        links = [Link(current)] if current.is_valid else []
        with _choosing(ours, None), _span(_tracer, name, Context(), SpanKind.INTERNAL, attributes, links):
            yield


def appended(events: Sequence[Recorded], since_ns: int) -> None:
    """Record a span for each appended event, for the time that the append took."""
    if _tracer is None:
        return
    current = trace.get_current_span().get_span_context()
    for recorded in events:
        ours = trace_id(recorded.cause.correlation_id)
        parent = None if current.trace_id == ours else Context()
        with _choosing(ours, span_id(recorded.event_id)):
            _tracer.start_span(
                recorded.event.TOPIC,
                parent,
                start_time=since_ns,
                attributes={"trunkline.position": recorded.position, "trunkline.event_id": str(recorded.event_id)},
            ).end()


def published(subject: str, event_id: str, correlation_id: str) -> dict[str, str]:
    """Record the span of a published event. Returns the headers for its message, none without a tracer."""
    if _tracer is None:
        return {}
    carrier: dict[str, str] = {}
    parent = _remote(trace_id(correlation_id), span_id(UUID(event_id)))
    attributes: Attributes = {"messaging.system": "nats", "messaging.message.id": event_id}
    with _span(_tracer, f"send {subject}", parent, SpanKind.PRODUCER, attributes):
        _propagator.inject(carrier)
    return carrier


@contextmanager
def received(headers: Mapping[str, str], name: str) -> Iterator[None]:
    """Open the span of a received message, in the trace that its headers name."""
    if _tracer is None:
        yield
        return
    with _span(_tracer, name, _propagator.extract(headers, Context()), SpanKind.CONSUMER, {}):
        yield


@contextmanager
def requested(headers: Mapping[str, str], name: str) -> Iterator[Span]:
    """Open the span of a request from outside, in a new trace with a link to that of the caller.

    The trace id becomes the correlation id of recorded events, which a stranger must not choose.
    """
    if _tracer is None:
        yield trace.INVALID_SPAN
        return
    callers = trace.get_current_span(_propagator.extract(headers, Context())).get_span_context()
    links = [Link(callers)] if callers.is_valid else []
    with _span(_tracer, name, Context(), SpanKind.SERVER, {}, links) as span:
        yield span


@contextmanager
def calling(name: str, attributes: Attributes) -> Iterator[None]:
    """Open the span of a call to another server."""
    if _tracer is None:
        yield
        return
    with _span(_tracer, name, None, SpanKind.CLIENT, attributes):
        yield


@contextmanager
def _span(
    tracer: Tracer,
    name: str,
    parent: Context | None,
    kind: SpanKind,
    attributes: Attributes,
    links: Sequence[Link] = (),
) -> Iterator[Span]:
    span = tracer.start_span(name, parent, kind, attributes, links)
    inside = trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False)
    with inside, _choosing(None, None):  # the chosen ids were for this span
        try:
            yield span
        except Refusal as refusal:
            span.set_attribute("trunkline.refused", refusal.code)
            raise
        except BaseException as error:
            span.set_status(StatusCode.ERROR, type(error).__name__)
            raise


@contextmanager
def _choosing(trace_id: int | None, span_id: int | None) -> Iterator[None]:
    token = _chosen.set((trace_id, span_id))
    try:
        yield
    finally:
        _chosen.reset(token)


def _remote(trace_id: int, span_id: int) -> Context:
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return trace.set_span_in_context(NonRecordingSpan(context), Context())
