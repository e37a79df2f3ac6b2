"""Requests of different lengths that meet in one batch are answered as the original answers each alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import pipeline

from clients import GrpcClient
from export.encoder.recipe import EncoderRecipe
from export.run import export
from shoal import corpus
from tests import tiny
from tests.serving.supervisor.supervised import Supervised, supervising

# Its padding is token 1, and it reads the last token that is none; the other has positions for 100 tokens.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "last": ("Qwen3ForSequenceClassification", {"head_dim": 16, "num_labels": 3, "pad_token_id": 1}),
    "short": ("DistilBertForSequenceClassification", {"num_labels": 3, "max_position_embeddings": 100}),
}
TEXTS = [
    text[: 20 + 17 * number] for number, text in enumerate(t for t in corpus.passages() if len(t) > 700)
][:32]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lengths")
    for name, (architecture, config) in MODELS.items():
        make = tiny.make_decoder if name == "last" else tiny.make
        make(root / name, architecture, **config)
        path = root / name / "tokenizer_config.json"
        most = 128 if name == "last" else 100
        path.write_text(re.sub(r'"model_max_length": \d+', f'"model_max_length": {most}', path.read_text()))
    return root


@pytest.fixture(scope="module")
def both(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    repository = checkpoints / "model_repository"
    for name in MODELS:
        export(EncoderRecipe(source=str(checkpoints / name), name=name, precisions=("fp32",)), repository)
    with supervising(repository, tmp_path_factory.mktemp("supervised")) as made:
        yield made


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_the_original(both: Supervised, checkpoints: Path, name: str) -> None:
    library = pipeline("text-classification", model=str(checkpoints / name), device="cpu", top_k=None)
    with GrpcClient(both.grpc, timeout=300) as client:
        with ThreadPoolExecutor(len(TEXTS)) as pool:
            for _ in range(3):
                found = list(pool.map(lambda text: client.classify([text], model=name)[0], TEXTS))
        beside = client.classify(TEXTS, model=name)
    for text, *answers in zip(TEXTS, found, beside, strict=True):
        expected = {entry["label"]: entry["score"] for entry in library([text], truncation=True)[0]}
        for answer in answers:
            assert {entry.label: entry.score for entry in answer} == pytest.approx(expected, abs=1e-4)
