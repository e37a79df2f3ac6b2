"""One trace from the caller through the gateway into Triton, as a collector of OTLP over HTTP gets it.

The gateway's spans come in Protocol Buffers, and are read by its own classes; those of Triton come as JSON.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from serving.gateway.settings import GatewaySettings
from shoal.errors import UsageError
from tests.serving.gateway.running import gateway
from tests.serving.supervisor.supervised import supervising

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GATEWAY = {"chat smollm2", "embeddings minilm", "POST /v1/embeddings"}
OTHER = "1af7651916cd43dd8448eb211c80319d"


@dataclass
class Collector:
    """What came, as OTLP's JSON has it."""

    url: str
    requests: list[dict[str, Any]]

    def spans(self, trace: str) -> list[dict[str, Any]]:
        """Those of a trace, `attributes` as a dictionary and the service's name with them."""
        found = []
        for request in list(self.requests):
            for resource in request["resourceSpans"]:
                service = attributes_of(resource["resource"])["service.name"]
                for scope in resource["scopeSpans"]:
                    found += [
                        {**span, "service": service, "attributes": attributes_of(span)}
                        for span in scope["spans"]
                        if span["traceId"].lower() == trace
                    ]
        return found

    def wait_for(self, trace: str, names: set[str]) -> list[dict[str, Any]]:
        """Spans, once those of these names are there, and the parents of all."""
        deadline = time.monotonic() + 90
        while True:
            found = self.spans(trace)
            known = {PARENT, *(span["spanId"] for span in found)}
            if names <= {span["name"] for span in found} and all(
                span["parentSpanId"] in known for span in found
            ):
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.1)


def above(span: dict[str, Any], spans: list[dict[str, Any]]) -> list[str]:
    """The ids of a span's parent, of that one's, and so on: Triton has a span around that of a model."""
    parents = {each["spanId"]: each["parentSpanId"] for each in spans}
    found = [span["parentSpanId"]]
    while found[-1] in parents:
        found.append(parents[found[-1]])
    return found


def attributes_of(held: dict[str, Any]) -> dict[str, Any]:
    return {each["key"]: next(iter(each["value"].values())) for each in held.get("attributes", [])}


def _of_protobuf(content: bytes) -> dict[str, Any]:
    """Protocol Buffers' JSON has ids in base64, that of OTLP in hexadecimal."""
    made: dict[str, Any] = MessageToDict(ExportTraceServiceRequest.FromString(content))
    for resource in made["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                for name in {"traceId", "spanId", "parentSpanId"} & span.keys():
                    span[name] = base64.b64decode(span[name]).hex()
    return made


@contextmanager
def collecting() -> Iterator[Collector]:
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            binary = self.headers["Content-Type"] == "application/x-protobuf"
            requests.append(_of_protobuf(content) if binary else json.loads(content))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    try:
        yield Collector(f"http://127.0.0.1:{listener.server_port}/v1/traces", requests)
    finally:
        listener.shutdown()
        listener.server_close()


def test_a_trace_goes_through_the_gateway_into_triton(
    both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    with collecting() as collector, supervising(both, tmp_path, f"--traces={collector.url}") as triton:
        service: Any = SimpleNamespace(grpc=triton.grpc, health=f"http://{triton.watch}/health")
        audit = tmp_path / "audit.jsonl"
        flags = (f"--traces={collector.url}", f"--audit={audit}")
        with gateway(service, *flags, log=tmp_path / "log") as made:
            chat = {"model": "smollm2", "messages": [{"role": "user", "content": "Name a secret fish."}]}
            asked = {**chat, "max_tokens": 5, "ignore_eos": True}
            of_caller = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine-1"}
            status, answer, _ = made.post("/v1/chat/completions", asked, **of_caller)
            assert status == 200
            embed = {"model": "minilm", "input": "a fish"}
            assert made.post("/v1/embeddings", embed, **of_caller)[0] == 200
            assert made.post("/v1/embeddings", {"model": "none"}, **of_caller)[0] == 400
            # A caller who does not want its trace recorded.
            unsampled = {"traceparent": f"00-{OTHER}-{PARENT}-00"}
            assert made.post("/v1/embeddings", embed, **unsampled)[0] == 200
            spans = collector.wait_for(TRACE, {*GATEWAY, "smollm2", "minilm"})
        assert collector.spans(OTHER) == []

    ours = {span["name"]: span for span in spans if span["service"] == "shoal-gateway"}
    assert set(ours) == GATEWAY
    assert {span["parentSpanId"] for span in ours.values()} == {PARENT}
    assert {span["kind"] for span in ours.values()} == {"SPAN_KIND_SERVER"}
    told = ours["chat smollm2"]["attributes"]
    usage = answer["usage"]
    assert told["gen_ai.operation.name"] == "chat" and told["gen_ai.request.model"] == "smollm2"
    assert int(told["gen_ai.usage.input_tokens"]) == usage["prompt_tokens"]
    assert int(told["gen_ai.usage.output_tokens"]) == 5
    assert told["gen_ai.response.finish_reasons"] == {"values": [{"stringValue": "length"}]}
    assert (told["http.route"], told["http.request.method"]) == ("/v1/chat/completions", "POST")
    assert int(told["http.response.status_code"]) == 200 and "error.type" not in told
    failed = ours["POST /v1/embeddings"]["attributes"]
    assert int(failed["http.response.status_code"]) == 400 and failed["error.type"]
    assert "secret" not in json.dumps(spans) and answer["choices"][0]["message"]["content"] not in str(ours)

    tritons = {span["name"]: span for span in spans if span["service"] == "shoal"}
    assert ours["chat smollm2"]["spanId"] in above(tritons["smollm2"], spans)
    assert ours["embeddings minilm"]["spanId"] in above(tritons["minilm"], spans)
    # The id is the same at the caller, in the audit log, in the gateway's span and in what Triton got.
    first = json.loads(audit.read_text().splitlines()[0])
    assert answer["id"] == "chatcmpl-mine-1" and first["request_id"] == "mine-1"
    assert told["shoal.request.id"] == "mine-1"
    assert tritons["smollm2"]["attributes"]["triton.request_id"] == "mine-1"


def test_without_traces_nothing_of_it_is_imported() -> None:
    code = "import serving.gateway.run, sys; print([n for n in sys.modules if n.startswith('opentelemetry')])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"traces": "otel:4318"}, "--traces otel:4318 is no URL"),
        ({"audit_text": True}, "--audit-text needs --audit FILE"),
        ({"metrics_host": "0.0.0.0"}, "--metrics-host needs --metrics-port"),
    ],
)
def test_flags_that_would_do_nothing(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        GatewaySettings(**given)
