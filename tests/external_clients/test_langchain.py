"""langchain-openai with its default settings: embeddings come as token ids of OpenAI's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from tests.external_clients.conftest import Caller, Writer

PROMPT = "Name a fish that swims in shoals."
TEXTS = ["hello world", "Fische schwimmen in Schwärmen. 魚 🐟", "<|endoftext|>", " spaces  and\n\nlines "]


@pytest.fixture(scope="module")
def told(call: Caller, cl100k: Path | None) -> Any:
    if cl100k is None:
        pytest.skip(
            "OpenAI's cl100k_base.tiktoken is not there: make test-clients installs llama-index with it"
        )
    return call("langchain", prompt=PROMPT, texts=TEXTS)


def test_default_embeddings_are_those_of_the_texts(told: Any, embedder: SentenceTransformer) -> None:
    expected = embedder.encode(TEXTS)
    np.testing.assert_allclose(told["documents"], expected, atol=1e-4)
    np.testing.assert_allclose(told["asynchronous"], expected, atol=1e-4)
    np.testing.assert_allclose(told["query"], expected[0], atol=1e-4)


def test_chats(told: Any, writer: Writer) -> None:
    expected = writer.chat(PROMPT, 24)
    assert told["invoke"] == told["stream"] == told["ainvoke"] == expected
    assert told["batch"] == [expected] * 3
    assert told["usage"]["output_tokens"] == 24


def test_tools_and_structured_output(told: Any) -> None:
    for calls in (told["calls"], told["streamed_calls"]):
        assert calls and calls[0]["name"] == "weather"
        assert calls[0]["args"] == told["calls"][0]["args"]
    wanted = told["calls"][0]["args"]
    assert wanted["city"] in ("Oslo", "Rome") and wanted["days"] in (1, 2, 3)
    assert told["result"] == f"Rain in {wanted['city']} for {wanted['days']} days." and told["after"]
    for fish in (told["default"], *told["structured"].values()):
        assert set(fish) == {"name", "fins"} and fish["fins"] in (1, 2, 3)
    assert told["default"] == told["structured"]["json_schema"]
