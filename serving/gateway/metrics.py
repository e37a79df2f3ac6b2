"""What Prometheus reads of the gateway, on a port of its own.

Names and buckets are those of OpenTelemetry's semantic conventions for generative AI
(https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/), as Prometheus writes them; what the
conventions have no name for begins with `shoal_gateway_`. A request is counted once, when it has ended, so
that a part of a stream costs nothing. Labels have as many values as there are endpoints, served models, keys
and codes of errors: never what a caller has written.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from serving.gateway.record import LEFT, Record
from shoal.errors import ServerError

PROVIDER = "shoal"
# By the status and the code that the caller was told.
REFUSALS = {
    (503, "overloaded"): "overloaded",
    (429, "rate_limit_exceeded"): "rate_limit",
    (504, "timeout"): "deadline",
}
_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_EACH_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS = tuple(4.0**power for power in range(14))
_GEN_AI = ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"]


class Metrics:
    """Counts requests.

    Attributes:
        registry: what is read from the port.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._duration = self._histogram(
            "gen_ai_server_request_duration_seconds",
            "Time of a request to a model; error_type is empty where none failed",
            _SECONDS,
            "error_type",
        )
        self._first = self._histogram(
            "gen_ai_server_time_to_first_token_seconds", "Until the first token of a stream", _FIRST_TOKEN
        )
        self._each = self._histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Between the tokens of one answer after its first, on average over a stream",
            _EACH_TOKEN,
        )
        self._usage = self._histogram(
            "gen_ai_client_token_usage", "Tokens of a request", _TOKENS, "gen_ai_token_type"
        )
        self._requests = self._counter(
            "shoal_gateway_requests",
            "Requests that have ended; 499: the caller left",
            "endpoint",
            "model",
            "status",
            "key",
        )
        self._tokens = self._counter(
            "shoal_gateway_tokens", "Tokens: input, cached (of the input), output", "model", "key", "type"
        )
        self._refused = self._counter(
            "shoal_gateway_refused", "Requests without an answer", "reason", "model", "key"
        )
        self._left = self._counter(
            "shoal_gateway_callers_left", "Callers who did not wait for the answer", "endpoint", "model"
        )
        self._retries = self._counter(
            "shoal_gateway_retries", "Requests that are further tries, as SDKs tell", "endpoint", "key"
        )
        self._running = Gauge(
            "shoal_gateway_running_requests", "Requests that run now", ["endpoint"], registry=self.registry
        )
        self._audit_lost = self._counter(
            "shoal_gateway_audit_lost", "Lines that are not in the audit log", "reason"
        )
        self._of = cache(_labelled)
        for reason in ("full", "unwritable"):
            self._audit_lost.labels(reason)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, text, [*_GEN_AI, *labels], buckets=buckets, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def listen(self, host: str, port: int) -> None:
        """Answer Prometheus in a thread of its own, until the process ends.

        Raises:
            ServerError: the port cannot be had.
        """
        try:
            start_http_server(port, host, self.registry)
        except OSError as error:
            raise ServerError(
                f"port {port} of {host} for metrics cannot be had: {error.strerror or error}",
                hint="another --metrics-port",
            ) from error

    def begin(self, record: Record) -> None:
        """A request runs."""
        self._of(self._running, record.endpoint).inc()

    def end(self, record: Record) -> None:
        """It has ended."""
        self._of(self._running, record.endpoint).dec()
        endpoint, model, key = record.endpoint, record.model, record.key
        self._of(self._requests, endpoint, model, record.status, key).inc()
        if reason := REFUSALS.get((record.status, record.error)):
            self._of(self._refused, reason, model, key).inc()
        if record.error == LEFT:
            self._of(self._left, endpoint, model).inc()
        if record.retries:
            self._of(self._retries, endpoint, key).inc()
        if not model:
            return
        about = (record.operation, PROVIDER, model)
        self._of(self._duration, *about, record.error).observe(record.seconds)
        for kind, tokens in (("input", record.input_tokens), ("output", record.output_tokens)):
            if tokens:
                self._of(self._usage, *about, kind).observe(tokens)
                self._of(self._tokens, model, key, kind).inc(tokens)
        if record.cached_tokens:
            self._of(self._tokens, model, key, "cached").inc(record.cached_tokens)
        if record.stream and record.first is not None:
            self._of(self._first, *about).observe(record.first)
        if (each := record.seconds_per_token) is not None:
            self._of(self._each, *about).observe(each)

    def no_such_path(self, status: int) -> None:
        """A path, or a method, that there is not: clients with a wrong URL are seen by it."""
        self._of(self._requests, "", "", status, "").inc()

    def audit_lost(self, reason: str) -> None:
        """A line of the audit log is lost, since its queue is `full`, or its file `unwritable`."""
        self._audit_lost.labels(reason).inc()


def _labelled(metric: Any, *labels: object) -> Any:
    """The value of a metric with these labels. It is kept: to find it costs more than to count."""
    return metric.labels(*labels)
