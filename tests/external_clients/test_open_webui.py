"""What Open WebUI sends, as its source has it, and what it reads of the answers.

Open WebUI itself is a web application with a database, and is not installed here. Source:
`routers/openai.py`, `retrieval/utils.py` and `retrieval/models/external.py` of version 0.12.4.
"""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import numpy as np
from sentence_transformers import CrossEncoder, SentenceTransformer

from tests.external_clients.conftest import Writer
from tests.serving.gateway.running import Running

TEXTS = ["Fish swim in shoals.", "Birds fly.", "Snakes eat mice."]
PROMPT = "Name a fish that swims in shoals."
# What it can tell of its user, where it is told to.
HEADERS = {
    "Authorization": "Bearer none",
    "Content-Type": "application/json",
    "X-OpenWebUI-User-Name": "Ann%20Other",
    "X-OpenWebUI-User-Id": "5",
    "X-OpenWebUI-User-Email": "ann@example.org",
    "X-OpenWebUI-User-Role": "user",
    "X-OpenWebUI-Chat-Id": "7",
}


def post(running: Running, path: str, body: dict[str, Any]) -> Any:
    status, told, _ = running.post(path, body, **HEADERS)
    assert status == 200, told
    return told


def test_models(running: Running) -> None:
    status, told, _ = running.get("/v1/models", Authorization="Bearer none")
    assert status == 200 and {model["id"] for model in told["data"]} == {
        "minilm",
        "smollm2",
        "ranker",
        "mood",
    }
    # It shows `name` where the field is there, and joins it with a tag: null would break that.
    assert all(isinstance(model["name"], str) for model in told["data"])


def test_a_chat(running: Running, writer: Writer) -> None:
    body = {
        "stream": True,
        "model": "smollm2",
        "messages": [{"role": "user", "content": PROMPT}],
        "stream_options": {"include_usage": True},
        "max_tokens": 24,
        "temperature": 0,
    }
    request = urllib.request.Request(f"{running.url}/v1/chat/completions", json.dumps(body).encode(), HEADERS)
    with urllib.request.urlopen(request, timeout=60) as response:
        # It passes the stream on, if it says that it is one.
        assert "text/event-stream" in response.headers["content-type"]
        lines = [line for line in response.read().decode().split("\n") if line]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    text = "".join(c["delta"].get("content") or "" for event in events for c in event["choices"])
    assert text == writer.chat(PROMPT, 24)
    assert [event["usage"]["completion_tokens"] for event in events if event.get("usage")] == [24]


def test_what_it_asks_for_beside_a_chat(running: Running) -> None:
    """Titles, tags and the like: whole answers, with a limit on tokens in either name."""
    for limit in ("max_tokens", "max_completion_tokens"):
        messages = [{"role": "user", "content": "### Task:\nGenerate a title."}]
        body = {"model": "smollm2", "messages": messages, "stream": False, limit: 8}
        told = post(running, "/v1/chat/completions", body)
        assert told["choices"][0]["message"]["content"] and told["usage"]["completion_tokens"] == 8


def test_a_chat_that_goes_on_with_an_answer(running: Running) -> None:
    """Its button `Continue` sends the answer that there is as the last message."""
    messages = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "The herring"}]
    body = {"model": "smollm2", "messages": messages, "stream": False, "max_tokens": 8}
    for more in ({}, {"continue_final_message": True, "add_generation_prompt": False}):
        told = post(running, "/v1/chat/completions", body | more)
        assert told["choices"][0]["message"]["content"]


def test_vectors(running: Running, embedder: SentenceTransformer) -> None:
    told = post(running, "/v1/embeddings", {"input": TEXTS, "model": "minilm"})
    vectors = [entry["embedding"] for entry in told["data"]]
    np.testing.assert_allclose(vectors, embedder.encode(TEXTS), atol=1e-4)


def test_ranks(running: Running, ranker: CrossEncoder) -> None:
    body = {"model": "ranker", "query": PROMPT, "documents": TEXTS, "top_n": len(TEXTS)}
    told = post(running, "/v1/rerank", body)
    scores = [one["relevance_score"] for one in sorted(told["results"], key=lambda one: one["index"])]
    np.testing.assert_allclose(scores, ranker.predict([(PROMPT, text) for text in TEXTS]), atol=1e-4)
