"""Metrics and the audit log of a real gateway: what they say of a request is what its caller was told.

The metrics are read by Prometheus' own parser of its text format.
"""

from __future__ import annotations

import json
import stat
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai as sdk
import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from serving.gateway.app import ENDPOINTS
from serving.gateway.keys import KeyStore, Limits
from serving.gateway.metrics import Metrics
from serving.gateway.record import Record
from serving.ports import free_port
from serving.service import Service
from tests import observed
from tests.serving.gateway.running import Running, gateway

CHAT: Any = [{"role": "user", "content": "Name three fish."}]
Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def values_of(port: int) -> Values:
    """Sample and labels -> value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def total(values: Values, name: str, **labels: str) -> float:
    """The sum of the samples that have these labels."""
    return sum(
        value for (known, held), value in values.items() if known == name and labels.items() <= set(held)
    )


@dataclass(frozen=True)
class Seen:
    """A gateway with keys, metrics and an audit log."""

    running: Running
    store: KeyStore
    metrics: int
    audit: Path

    def client(self, secret: str) -> OpenAI:
        return OpenAI(base_url=f"{self.running.url}/v1", api_key=secret, max_retries=0)

    def line(self, number: str) -> dict[str, Any]:
        """The line of a request, once it is there."""
        return wait_for(
            lambda: next(
                (
                    line
                    for line in map(json.loads, self.audit.read_text().splitlines())
                    if line["request_id"] == number
                ),
                None,
            )
        )


def wait_for(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 20
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def seen(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("seen")
    store, port = KeyStore(folder / "keys.json"), free_port("metrics", 0)
    store.add("first")
    flags = (f"--keys={store.path}", f"--metrics-port={port}", f"--audit={folder / 'audit.jsonl'}")
    with gateway(service, *flags, log=folder / "log") as made:
        yield Seen(made, store, port, folder / "audit.jsonl")
    assert "Traceback" not in (folder / "log").read_text()


@pytest.fixture(scope="module")
def alice(seen: Seen) -> str:
    """Her secret."""
    _, secret = seen.store.add("alice")
    time.sleep(1)
    return secret


def test_a_stream_is_counted_as_its_usage_says(seen: Seen, alice: str) -> None:
    before = values_of(seen.metrics)
    with (
        seen.client(alice) as client,
        client.chat.completions.create(
            model="smollm2",
            messages=CHAT,
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        ) as stream,
    ):
        number = stream.response.headers["x-request-id"]
        chunks = list(stream)
    usage = chunks[-1].usage
    assert usage is not None and usage.completion_tokens == 12
    line = seen.line(number)
    assert (line["key"], line["endpoint"], line["model"]) == ("alice", "/v1/chat/completions", "smollm2")
    assert (line["status"], line["error"], line["finish_reasons"]) == (200, None, ["length"])
    assert line["input_tokens"] == usage.prompt_tokens and line["output_tokens"] == 12
    assert usage.prompt_tokens_details is not None
    assert line["cached_tokens"] == usage.prompt_tokens_details.cached_tokens
    assert 0 < line["first_token_seconds"] <= line["seconds"]
    assert line["version"] and line["bytes_in"] > 0 and line["bytes_out"] > 0
    assert "Name three fish" not in seen.audit.read_text()

    after = values_of(seen.metrics)
    about = {"gen_ai_operation_name": "chat", "gen_ai_request_model": "smollm2"}

    def grown(name: str, **labels: str) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    assert grown("gen_ai_server_time_to_first_token_seconds_count", **about) == 1
    first = grown("gen_ai_server_time_to_first_token_seconds_sum", **about)
    assert first == pytest.approx(line["first_token_seconds"], abs=1e-5)
    assert grown("gen_ai_server_request_duration_seconds_count", error_type="", **about) == 1
    each = grown("gen_ai_server_time_per_output_token_seconds_sum", **about)
    assert 0 < 11 * each <= line["seconds"] - first
    for kind, tokens in (("input", usage.prompt_tokens), ("output", 12)):
        assert grown("gen_ai_client_token_usage_sum", gen_ai_token_type=kind, **about) == tokens
        assert grown("shoal_gateway_tokens_total", type=kind, model="smollm2", key="alice") == tokens
    requests = {"endpoint": "/v1/chat/completions", "model": "smollm2", "status": "200", "key": "alice"}
    assert grown("shoal_gateway_requests_total", **requests) == 1
    assert total(after, "shoal_gateway_running_requests", endpoint="/v1/chat/completions") == 0


def test_prompts_count_once_and_embeddings_have_no_answer(seen: Seen, alice: str) -> None:
    with seen.client(alice) as client:
        chat = client.chat.completions.with_raw_response.create(
            model="smollm2", messages=CHAT, max_tokens=4, n=3, seed=1
        )
        many = client.embeddings.with_raw_response.create(
            model="minilm", input=["a fish", "two big fish"] * 40
        )
    usage, line = chat.parse().usage, seen.line(chat.headers["x-request-id"])
    assert usage is not None and len(line["finish_reasons"]) == 3
    assert (line["input_tokens"], line["output_tokens"]) == (usage.prompt_tokens, usage.completion_tokens)
    assert line["first_token_seconds"] is None  # it came whole
    line = seen.line(many.headers["x-request-id"])
    assert (line["input_tokens"], line["output_tokens"]) == (many.parse().usage.prompt_tokens, 0)
    assert (line["model"], line["finish_reasons"]) == ("minilm", [])


def test_refusals_leavers_and_retries(seen: Seen) -> None:
    _, secret = seen.store.add("slow", limits=Limits(requests_per_minute=3))
    time.sleep(1)
    key = {"Authorization": f"Bearer {secret}"}
    text = {"model": "minilm", "input": "a fish"}
    asked = {"model": "smollm2", "messages": CHAT, "max_tokens": 400, "ignore_eos": True}

    assert seen.running.post("/v1/embeddings", text, **key, **{"x-stainless-retry-count": "2"})[0] == 200
    status, body, told = seen.running.post(
        "/v1/chat/completions", asked, **key, **{"x-stainless-timeout": "0.2"}
    )
    assert (status, body["error"]["code"]) == (504, "timeout")
    assert seen.line(told["x-request-id"])["error"] == "timeout"
    with seen.client(secret) as client:
        stream = client.chat.completions.create(
            model="smollm2", messages=CHAT, max_tokens=400, stream=True, extra_body={"ignore_eos": True}
        )
        number = stream.response.headers["x-request-id"]
        next(stream)
        stream.close()
        left = seen.line(number)
        with pytest.raises(sdk.RateLimitError):
            client.embeddings.create(model="minilm", input="a fish")
    assert (left["status"], left["error"], left["finish_reasons"]) == (499, "left", [])
    assert 0 < left["output_tokens"] < 400

    values = values_of(seen.metrics)
    assert total(values, "shoal_gateway_refused_total", reason="deadline", model="smollm2", key="slow") == 1
    assert total(values, "shoal_gateway_refused_total", reason="rate_limit", key="slow") == 1
    assert total(values, "shoal_gateway_requests_total", status="429", key="slow") == 1
    assert total(values, "shoal_gateway_callers_left_total", endpoint="/v1/chat/completions") == 1
    assert total(values, "shoal_gateway_retries_total", endpoint="/v1/embeddings", key="slow") == 1
    failed = {"gen_ai_request_model": "smollm2", "error_type": "timeout"}
    assert total(values, "gen_ai_server_request_duration_seconds_count", **failed) == 1


def test_callers_make_no_labels(seen: Seen, alice: str) -> None:
    key = {"Authorization": f"Bearer {alice}"}
    odd = "odd-value"
    assert seen.running.post("/v1/embeddings", {"model": odd, "input": "x"}, **key)[0] == 404
    assert seen.running.post(f"/v1/tasks/{odd}", {"model": odd}, **key)[0] == 400
    assert seen.running.get(f"/v1/models/{odd}", **key)[0] == 404
    assert seen.running.get(f"/{odd}", **key)[0] == 404
    assert seen.running.get("/v1/models", Authorization=f"Bearer {odd}")[0] == 401
    assert seen.running.post("/v1/embeddings", b"{", **key, **{"x-stainless-retry-count": odd})[0] == 400
    values = values_of(seen.metrics)
    known: dict[str, set[str]] = {
        "endpoint": {"", *(endpoint.path for endpoint in ENDPOINTS)},
        "model": {"", "minilm", "smollm2"},
        "gen_ai_request_model": {"minilm", "smollm2"},
        "key": {"", "first", "alice", "slow"},
    }
    for name, labels in values:
        assert odd not in str(labels)
        assert all(value in known.get(label, {value}) for label, value in labels), (name, labels)
    assert total(values, "shoal_gateway_requests_total", endpoint="", status="404") == 1
    assert total(values, "shoal_gateway_requests_total", endpoint="/v1/tasks/{task}", status="400") == 1
    page = seen.audit.read_text()
    assert alice not in page and stat.S_IMODE(seen.audit.stat().st_mode) == 0o600


def test_metrics_are_not_on_the_public_port(seen: Seen, alice: str) -> None:
    for headers in ({}, {"Authorization": f"Bearer {alice}"}):
        status, body, _ = seen.running.get("/metrics", **headers)
        assert status == 404 and body["error"]["code"] == "not_found"


def test_a_full_disk_fails_no_request_and_texts_are_redacted(service: Service, tmp_path: Path) -> None:
    port = free_port("metrics", 0)
    flags = ("--audit=/dev/full", f"--metrics-port={port}")
    body = {"model": "smollm2", "prompt": "Write to jane@example.org", "max_tokens": 3, "seed": 1}
    with gateway(service, *flags, log=tmp_path / "full") as made:
        for _ in range(3):
            assert made.post("/v1/completions", body)[0] == 200
        wait_for(lambda: total(values_of(port), "shoal_gateway_audit_lost_total", reason="unwritable") >= 3)
    assert (tmp_path / "full").read_text().count("are lost: No space left on device") == 1
    with gateway(service, "--audit=-", "--audit-text", log=tmp_path / "log") as made:
        _, answer, headers = made.post("/v1/completions", body)
        assert made.post("/v1/embeddings", {"model": "minilm", "input": "a fish"})[0] == 200
    written = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line[0] == "{"]
    asked = next(line for line in written if line["request_id"] == headers["x-request-id"])
    assert asked["request"]["prompt"] == "Write to [e-mail]"
    assert asked["answer"] == [answer["choices"][0]["text"]]
    assert [line["answer"] for line in written if line["endpoint"] == "/v1/embeddings"] == [None]


def test_the_gateway_says_what_dashboards_and_alerts_ask_for() -> None:
    metrics = Metrics()
    made = {"endpoint": "/v1/chat/completions", "key": "alice", "model": "m", "task": "text-generation"}
    counts = {"input_tokens": 9, "cached_tokens": 3, "output_tokens": 4, "choices": 1, "stream": True}
    for status, error in ((200, ""), (503, "overloaded"), (499, "left"), (500, "internal")):
        record = Record(**made, **counts, status=status, error=error, first=0.5, last=1.0, retries=1)  # type: ignore[arg-type]
        metrics.begin(record)
        metrics.end(record)
    metrics.audit_lost("full")
    said = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    assert said >= observed.names(observed.GATEWAY)
    assert (
        metrics.registry.get_sample_value(
            "shoal_gateway_refused_total", {"reason": "overloaded", "model": "m", "key": "alice"}
        )
        == 1
    )
