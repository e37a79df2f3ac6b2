"""huggingface_hub's InferenceClient, against the URL of a path each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer, util

from tests.external_clients.conftest import Caller, Writer

PROMPT = "Name a fish that swims in shoals."
TEXTS = ["Fish swim in shoals.", "Herrings are never alone.", "Birds fly."]


@pytest.fixture(scope="module")
def told(call: Caller) -> Any:
    return call("huggingface_hub", prompt=PROMPT, texts=TEXTS)


def test_vectors_and_how_alike_they_are(told: Any, embedder: SentenceTransformer) -> None:
    expected = embedder.encode(TEXTS)
    np.testing.assert_allclose(told["vectors"], expected, atol=1e-4)
    np.testing.assert_allclose(np.ravel(told["vector"]), expected[0], atol=1e-4)
    cosines = util.cos_sim(expected[:1], expected[1:])[0].tolist()
    np.testing.assert_allclose(told["similarity"], cosines, atol=1e-4)


def test_labels(told: Any, classifier: Any) -> None:
    (expected,) = classifier([TEXTS[0]])
    assert [label for label, _ in told["labels"]] == [one["label"] for one in expected]
    np.testing.assert_allclose(
        [score for _, score in told["labels"]], [one["score"] for one in expected], atol=1e-4
    )


def test_chats(told: Any, writer: Writer) -> None:
    assert told["chat"] == told["stream"] == writer.chat(PROMPT, 24)
