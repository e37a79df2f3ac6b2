"""Every architecture that Shoal knows, as a tiny random model: a few in CI, all by `make test-export`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from clients import GrpcClient
from export.encoder.tasks.images import sample_image
from export.generation.verify import GenerationEvidence
from serving.embedded import running
from shoal import corpus
from tests.conftest import ROOT
from tests.export import matrix
from tests.export.matrix import CASES, Case, Outcome

DOCUMENT = ROOT / "docs" / "models.md"
TEXTS = corpus.texts(4, seed=5)
IMAGES = [sample_image(index) for index in range(3)]


@pytest.fixture(scope="module")
def outcomes() -> dict[Case, Outcome]:
    """What came of the cases of the full form, filled as they run."""
    return {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the checkpoints of those that are served, and their one repository."""
    return tmp_path_factory.mktemp("matrix")


def _try(case: Case, folder: Path, repository: Path, *precisions: str) -> Outcome:
    outcome = matrix.try_case(case, folder, repository, precisions)
    print(case.id, {precision: outcome.reason(precision) for precision in precisions})
    reason = outcome.reason("fp32")
    if case.refused:
        assert case.refused in reason
        return outcome
    assert not reason
    evidence = outcome.evidence["fp32"]
    if isinstance(evidence, GenerationEvidence):
        assert abs(evidence.perplexity_rise) <= 0.001  # better than the original would be as wrong
    return outcome


@pytest.mark.parametrize("case", [case for case in CASES if case.small], ids=lambda case: case.id)
def test_small(case: Case, tmp_path: Path) -> None:
    # A decoder's INT8 has tests of its own, and its builder takes its time.
    precisions = ("fp32",) if case.task == matrix.GENERATION else ("int8", "fp32")
    outcome = _try(case, tmp_path, tmp_path / "repository", *precisions)
    assert set(outcome.evidence) == set(precisions)  # it is built, whatever is then said of it


def test_the_document_lists_what_is_tried() -> None:
    listed = matrix.documented(DOCUMENT.read_text(encoding="utf-8"))
    assert listed == {(case.name, case.model, case.task): not case.refused for case in CASES}, (
        "docs/models.md is of another table: make test-export"
    )


@pytest.mark.matrix
@pytest.mark.usefixtures("every_raw_input")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_full(case: Case, outcomes: dict[Case, Outcome], folder: Path, tmp_path: Path) -> None:
    own, repository = (folder / case.id, folder / "repository") if case.wire else (tmp_path, tmp_path / "r")
    own.mkdir(exist_ok=True)
    outcomes[case] = _try(case, own, repository, "int8", "fp32")  # the last is served


@pytest.fixture(scope="module")
def called(outcomes: dict[Case, Outcome], folder: Path) -> Iterator[GrpcClient]:
    """A client of a Triton that serves those of the matrix that are to be called."""
    if not any(case.wire for case in outcomes):
        pytest.skip("none that is to be called was exported")
    with running(folder / "repository") as server, GrpcClient(server.grpc, timeout=300) as client:
        yield client


@pytest.mark.matrix
@pytest.mark.parametrize("case", [case for case in CASES if case.wire], ids=lambda case: case.id)
def test_over_the_wire(
    case: Case, called: GrpcClient, outcomes: dict[Case, Outcome], folder: Path, served: list[Case]
) -> None:
    if case not in outcomes:
        pytest.skip("it was not exported")
    checkpoint = folder / case.id / "checkpoint"
    if case.task == matrix.GENERATION:
        _compare_answers(called, case.served_as, checkpoint)
    else:
        _compare_labels(called, case, checkpoint)
    served.append(case)


@pytest.fixture(scope="module")
def served() -> list[Case]:
    """Names of the models that answered as the original does, filled as they are called."""
    return []


def _compare_labels(client: GrpcClient, case: Case, checkpoint: Path) -> None:
    if case.task == "image-classification":
        ask = pipeline(case.task, model=str(checkpoint), device="cpu", top_k=5, use_fast=False)
        wanted = ask([Image.open(io.BytesIO(content)) for content in IMAGES])
        got = client.classify_images(IMAGES, model=case.served_as)
    else:
        wanted = pipeline(case.task, model=str(checkpoint), device="cpu", top_k=None)(TEXTS)
        got = client.classify(TEXTS, model=case.served_as)
    for ours, theirs in zip(got, wanted, strict=True):
        assert [entry.label for entry in ours] == [entry["label"] for entry in theirs]
        np.testing.assert_allclose([e.score for e in ours], [e["score"] for e in theirs], atol=1e-3)


def _compare_answers(client: GrpcClient, model: str, checkpoint: Path) -> None:
    original = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for text in TEXTS:
        prompt = tokenizer(text[:80], return_tensors="pt").input_ids
        made = original.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=12
        )
        wanted = tokenizer.decode(made[0, prompt.shape[1] :], skip_special_tokens=True)
        assert client.complete(text[:80], model=model, max_tokens=12, temperature=0).text == wanted


@pytest.mark.matrix
def test_the_document_is_written(outcomes: dict[Case, Outcome], served: list[Case]) -> None:
    """Last, when all others have run."""
    if set(outcomes) != set(CASES) or len(served) != sum(case.wire for case in CASES):
        pytest.skip("only a part of the matrix came through")
    text = matrix.document({case: outcomes[case] for case in CASES}, served)
    DOCUMENT.write_text(text, encoding="utf-8")
