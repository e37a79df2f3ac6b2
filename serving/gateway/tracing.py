"""A span for each request, sent to an OpenTelemetry collector by OTLP over HTTP.

The span goes on with the trace of the caller (`traceparent`, W3C Trace Context), and Triton's spans go on
with it. Attributes are those of the conventions for HTTP servers and for generative AI
(https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/). No span holds text of a request or an
answer. This module is imported only where traces are wanted.
"""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serving.gateway.record import Record

SERVICE = "shoal-gateway"
PROVIDER = "shoal"


class Tracing:
    """Makes spans. They are sent by a thread of OpenTelemetry's SDK, which drops them if nobody takes them.

    Args:
        url: of the collector, such as `http://otel:4318/v1/traces`. How many requests are traced is up to the
            caller's trace, and else to the SDK's variables, such as `OTEL_TRACES_SAMPLER`.
    """

    def __init__(self, url: str) -> None:
        self._provider = TracerProvider(resource=Resource.create({SERVICE_NAME: SERVICE}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
        self._tracer = self._provider.get_tracer("serving.gateway")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, record: Record, headers: Mapping[str, str]) -> None:
        """A request runs; `record.traceparent` is what Triton is told."""
        span = self._tracer.start_span(
            f"{record.method} {record.endpoint}",
            context=self._propagator.extract(headers),
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": record.method,
                "http.route": record.endpoint,
                "shoal.request.id": record.id,
            },
        )
        record.span = span
        # Triton traces every request that comes with a parent, whatever the parent says of sampling.
        if span.is_recording():
            told: dict[str, str] = {}
            self._propagator.inject(told, set_span_in_context(span))
            record.traceparent = told["traceparent"]

    def end(self, record: Record) -> None:
        """It has ended."""
        span = record.span
        if span.is_recording():
            span.set_attributes(_attributes(record))
            if record.model:
                span.update_name(f"{record.operation} {record.model}")
            if record.status >= 500:  # by the conventions a status of 4xx is no failure of a server
                span.set_status(Status(StatusCode.ERROR))
        span.end()

    def close(self) -> None:
        """Send what is left; this may take seconds."""
        self._provider.shutdown()


def _attributes(record: Record) -> dict[str, str | int | float | list[str]]:
    found: dict[str, str | int | float | list[str]] = {"http.response.status_code": record.status}
    if record.error:
        found["error.type"] = record.error
    if record.key:
        found["shoal.key.name"] = record.key
    if not record.model:
        return found
    found |= {
        "gen_ai.operation.name": record.operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": record.model,
        "shoal.model.version": record.version,
        "gen_ai.usage.input_tokens": record.input_tokens,
        "gen_ai.usage.output_tokens": record.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
    }
    if record.finish_reasons:
        found["gen_ai.response.finish_reasons"] = record.finish_reasons
    if record.stream and record.first is not None:
        found["gen_ai.response.time_to_first_chunk"] = record.first
    return found
