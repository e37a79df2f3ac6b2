"""Encoder-decoders on a real Triton, over the wire, against what transformers' `generate` makes of texts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from clients import AsyncGrpcClient, BadInput, GrpcClient, HttpClient
from clients.vocabulary import text_array
from export import run
from serving.embedded import Server, running
from shoal import corpus, tensors
from shoal.manifest import manifests
from tests.export.text2text.originals import LESSONS, MODELS, TAUGHT, TEXTS, TOKENS, original
from tests.serving.generation.metrics import page_of

Client = GrpcClient | HttpClient


@pytest.fixture(scope="module")
def served(repository: Path) -> Iterator[Server]:
    with running(repository) as server:
        yield server


@pytest.fixture(scope="module", params=["grpc", "http"])
def caller(request: pytest.FixtureRequest, served: Server) -> Iterator[Client]:
    kind = {"grpc": GrpcClient, "http": HttpClient}[request.param]
    with kind(getattr(served, request.param)) as client:
        yield client


@pytest.mark.parametrize("model", MODELS)
def test_answers_are_those_of_generate(caller: Client, writers: Path, model: str) -> None:
    expected = original(writers / model, TEXTS)
    assert caller.text_to_text(TEXTS, model=model) == expected
    assert caller.text_to_text(TEXTS, model=model, batch_size=3) == expected
    assert len({entry.text for entry in expected}) > 3
    assert len({entry.output_tokens for entry in expected}) > 1


@pytest.mark.parametrize("model", TAUGHT)
def test_int8_is_served_with_the_answers_of_the_original(
    caller: Client, writers: Path, repository: Path, model: str
) -> None:
    versions = {manifest.precision: manifest for manifest in manifests(repository, model)}
    assert {name: manifest.version for name, manifest in versions.items()} == {"fp32": 1, "int8": 2}
    assert caller.metadata(model)["versions"] == ["2"]
    expected = original(writers / model, TEXTS, ends=[2])
    assert [entry.text for entry in expected] == [LESSONS[text] for text in TEXTS]
    assert caller.text_to_text(TEXTS, model=model) == expected
    assert caller.text_to_text(TEXTS, model=model, batch_size=1) == expected


def test_shorter_answers(caller: Client, writers: Path) -> None:
    for model in ("t5-greedy", "bart-beams"):  # beams plan for the length: shorter is not the beginning
        got = caller.text_to_text(TEXTS, model=model, max_new_tokens=5)
        assert got == original(writers / model, TEXTS, max_new_tokens=5)
    for tokens in (0, TOKENS + 1):
        with pytest.raises(BadInput, match=f"max_new_tokens is {tokens}, it must be from 1 to 20"):
            caller.text_to_text(TEXTS, model="t5-greedy", max_new_tokens=tokens)


def test_long_text_is_truncated(caller: Client, writers: Path) -> None:
    long = " ".join(corpus.passages()[:40])[:30_000]
    assert caller.text_to_text([long], model="bart-beams") == original(writers / "bart-beams", [long])


@pytest.mark.parametrize("model", MODELS)
def test_tokens_are_counted_as_transformers_counts_them(caller: Client, writers: Path, model: str) -> None:
    texts = [*TEXTS, " ".join(corpus.passages()[:40])[:30_000]]
    got = caller.infer(model, text_array(texts))
    read = AutoTokenizer.from_pretrained(writers / model)(texts, truncation=True)["input_ids"]
    assert got["num_input_tokens"].tolist() == [[len(ids)] for ids in read]
    assert got["num_input_tokens"].dtype == np.int32


def test_requests_at_once_are_answered_as_alone(served: Server, writers: Path) -> None:
    texts = corpus.texts(40, seed=5)
    with GrpcClient(served.grpc) as client:
        alone = [client.text_to_text([text], model="t5-beams")[0] for text in texts]
        before = batches(served)
        with ThreadPoolExecutor(20) as pool:
            together = list(pool.map(lambda text: client.text_to_text([text], model="t5-beams")[0], texts))
        assert together == alone
        assert 0 < batches(served) - before < len(texts)  # they did share generations


def batches(server: Server) -> int:
    """How often the model was run."""
    (line,) = (
        line
        for line in page_of(server).splitlines()
        if line.startswith('shoal_queue_batches_total{model="t5-beams"')
    )
    return int(float(line.split()[-1]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "text 1 is empty"),
        (b" \n", "text 1 is empty"),
        (b"caf\xe9", "text 1 is not UTF-8: byte 3 is 0xe9"),
        (b"x" * 40_000, "text 1 has 40000 bytes, at most 32768 are accepted"),
    ],
)
def test_bad_text(caller: Client, text: bytes, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        caller.infer("t5-greedy", {"text": np.array([[b"fine"], [text]], object)})


def test_a_bad_request_leaves_those_beside_it_alone(served: Server) -> None:
    async def ask() -> list[Any]:
        async with AsyncGrpcClient(served.grpc) as client:
            calls = [client.text_to_text([text], model="t5-beams") for text in ["", *TEXTS, ""]]
            return await asyncio.gather(*calls, return_exceptions=True)

    first, *good, last = asyncio.run(ask())
    assert isinstance(first, BadInput)
    assert isinstance(last, BadInput)
    with GrpcClient(served.grpc) as client:
        assert [answers[0] for answers in good] == client.text_to_text(TEXTS, model="t5-beams")


@pytest.mark.parametrize("name", TAUGHT)
def test_raw_inputs_over_the_wire(served: Server, repository: Path, name: str) -> None:
    manifest, answers = run.verify_wire(name, repository, served.grpc)
    assert answers.failures == [] and answers.tokens == 1.0
    assert (answers.inputs, answers.agreement) == tuple(
        manifest.evidence["raw"][figure] for figure in ("inputs", "agreement")
    )


def test_what_is_optional_need_not_be_typed(served: Server) -> None:
    with GrpcClient(served.grpc) as client:
        config, metadata = client.config("t5-greedy"), client.metadata("t5-greedy")
        assert list(tensors.arrays_of(config, metadata, ["Fish swim."], [])) == ["text"]
        assert list(tensors.sample_arrays(config, metadata)) == ["text"]
        limited = tensors.arrays_of(config, metadata, ["Fish swim."], ["max_new_tokens=1"])
        assert client.infer("t5-greedy", limited)["num_output_tokens"].tolist() == [[1]]


def test_the_tokenizer_of_these_tests_is_that_of_transformers(writers: Path) -> None:
    raw = Tokenizer.from_file(str(writers / "t5" / "tokenizer.json"))
    assert (
        raw.encode("Fish swim.").ids == AutoTokenizer.from_pretrained(writers / "t5")("Fish swim.").input_ids
    )
