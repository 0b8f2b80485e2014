"""Traces, by OpenTelemetry: one for all that follows from one wish, in whatever process and however much later.

Nothing is stored for them. The id of a trace is the correlation id that every event of the log has, and the id of the
span of an event follows from the event's own; so whoever meets an event knows what to hang a span of his on. No span
has personal data, a token, or the text of an error in it. Without an exporter there is no tracer, and nothing is done.
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
"""The standard's own settings: where the collector is that takes traces by OTLP over HTTP."""
Attributes = Mapping[str, str | int]

_propagator = TraceContextTextMapPropagator()
_wanted: ContextVar[tuple[int | None, int | None]] = ContextVar("wanted", default=(None, None))
_tracer: Tracer | None = None


class _Ids(RandomIdGenerator):
    """The ids that are wanted, where some are."""

    def generate_trace_id(self) -> int:
        return _wanted.get()[0] or super().generate_trace_id()

    def generate_span_id(self) -> int:
        return _wanted.get()[1] or super().generate_span_id()


@contextmanager
def exported() -> Iterator[None]:
    """Traces go to the collector that a setting of `ENDPOINTS` names, while the context lasts; none without one."""
    if not any(os.environ.get(name) for name in ENDPOINTS):
        yield
        return
    with exporting(BatchSpanProcessor(OTLPSpanExporter())):
        yield


@contextmanager
def exporting(processor: SpanProcessor) -> Iterator[None]:
    """Spans go to a processor while the context lasts."""
    global _tracer  # noqa: PLW0603 - one a process, as the API's own; which could be set only once
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
    """A correlation id for a new wish: that of the trace that it came in, where it came in one."""
    current = trace.get_current_span().get_span_context()
    return str(UUID(int=current.trace_id) if current.is_valid else uuid4())


def trace_id(correlation_id: str) -> int:
    """The trace of all that follows from one wish."""
    try:
        found = UUID(correlation_id).int
    except ValueError:
        found = 0
    return found or int.from_bytes(hashlib.sha256(correlation_id.encode()).digest()[:16])


def span_id(event_id: UUID) -> int:
    """The span of an event."""
    return event_id.int % 2**64


@contextmanager
def command(name: str, correlation_id: str, attributes: Attributes) -> Iterator[None]:
    """The span of a wish that is dealt with. A refusal is an answer, and no error."""
    if _tracer is None:
        yield
        return
    current = trace.get_current_span().get_span_context()
    ours = trace_id(correlation_id)
    if current.trace_id == ours:
        with _span(_tracer, name, None, SpanKind.INTERNAL, attributes):
            yield
    else:  # who sent it has a trace of his own
        links = [Link(current)] if current.is_valid else []
        with _wanting(ours, None), _span(_tracer, name, Context(), SpanKind.INTERNAL, attributes, links):
            yield


def appended(events: Sequence[Recorded], since_ns: int) -> None:
    """A span for each event that was appended, as long as it took to append it."""
    if _tracer is None:
        return
    current = trace.get_current_span().get_span_context()
    for recorded in events:
        ours = trace_id(recorded.cause.correlation_id)
        parent = None if current.trace_id == ours else Context()
        with _wanting(ours, span_id(recorded.event_id)):
            _tracer.start_span(
                recorded.event.TOPIC,
                parent,
                start_time=since_ns,
                attributes={"trunkline.position": recorded.position, "trunkline.event_id": str(recorded.event_id)},
            ).end()


def published(subject: str, event_id: str, correlation_id: str) -> dict[str, str]:
    """The span of an event that is published, as headers for its message; none where nothing is traced."""
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
    """The span of a message that is dealt with: it goes on with the trace that the headers name."""
    if _tracer is None:
        yield
        return
    with _span(_tracer, name, _propagator.extract(headers, Context()), SpanKind.CONSUMER, {}):
        yield


@contextmanager
def requested(headers: Mapping[str, str], name: str) -> Iterator[Span]:
    """The span of a request from outside. The trace is a new one, with a link to the caller's.

    For it becomes the correlation id of what is recorded, and a stranger is not to choose that.
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
    """The span of a call to somebody else's server."""
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
    with inside, _wanting(None, None):  # what was wanted was for this one
        try:
            yield span
        except Refusal as refusal:
            span.set_attribute("trunkline.refused", refusal.code)
            raise
        except BaseException as error:
            span.set_status(StatusCode.ERROR, type(error).__name__)
            raise


@contextmanager
def _wanting(trace_id: int | None, span_id: int | None) -> Iterator[None]:
    token = _wanted.set((trace_id, span_id))
    try:
        yield
    finally:
        _wanted.reset(token)


def _remote(trace_id: int, span_id: int) -> Context:
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return trace.set_span_in_context(NonRecordingSpan(context), Context())
