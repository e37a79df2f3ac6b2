"""llama-index's classes for servers like OpenAI's, and for text-embeddings-inference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer

from tests.external_clients.conftest import Caller, Writer

PROMPT, START = "Name a fish that swims in shoals.", "The capital of France is"
TEXTS = ["hello world", "Fish swim in shoals.", "Birds fly.", "Triton serves models.", "a b c"]


@pytest.fixture(scope="module")
def told(call: Caller) -> Any:
    return call("llama_index", prompt=PROMPT, start=START, texts=TEXTS)


def test_texts(told: Any, writer: Writer) -> None:
    assert told["chat"] == told["stream"] == writer.chat(PROMPT, 24)
    assert told["complete"] == writer.complete(START, 8)
    assert set(told["structured"]) == {"name", "fins"} and told["structured"]["fins"] in (1, 2, 3)


def test_vectors(told: Any, embedder: SentenceTransformer) -> None:
    expected = embedder.encode(TEXTS)
    for name in ("documents", "tei"):
        np.testing.assert_allclose(told[name], expected, atol=1e-4)
    np.testing.assert_allclose(told["query"], expected[0], atol=1e-4)


def test_ranks(told: Any, ranker: CrossEncoder) -> None:
    scores = ranker.predict([(PROMPT, text) for text in TEXTS])
    order = np.argsort(-scores, kind="stable").tolist()[:3]
    assert [place for place, _ in told["ranked"]] == order
    np.testing.assert_allclose([score for _, score in told["ranked"]], scores[order], atol=1e-4)
