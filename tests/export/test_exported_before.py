"""A repository that an older version of this project exported is served, verified, compared and promoted.

`tests/data/exported-2026-11-25.tar.xz` was made by the code of commit 1a6624c: tiny random checkpoints of
each family, what was exported of them, and what a server of that code answered.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from clients import GrpcClient
from export import run
from export.encoder import verify as encoders
from export.generation import verify as decoders
from export.text2text import verify as encoder_decoders
from serving.embedded import Server, running
from shoal import model_config
from shoal.cli.compare import compare
from shoal.dialect import (
    INPUT_TOKENS,
    MESSAGES,
    PROMPT_LOGPROBS,
    PROMPT_TOKENS,
    RETURN,
    STOP_REASON,
    TEXT_INPUT,
)
from shoal.manifest import manifests
from shoal.repository import promote, served_version
from tests.conftest import ROOT

MODELS = ["mood", "tales", "german", "shop"]


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that it was exported in; its manifests name checkpoints by relative paths."""
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(ROOT / "tests" / "data" / "exported-2026-11-25.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for module in (encoders, decoders, encoder_decoders):
            patch.setattr(module, "SPEED_ROUNDS", 1)
        patch.setattr(decoders, "WINDOWS", 2)
        yield folder


@pytest.fixture(scope="module")
def server(before: Path) -> Iterator[Server]:
    with running(before / "model_repository") as started:
        yield started


@pytest.fixture(scope="module")
def answers(before: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((before / "answers.json").read_text())
    return found


@pytest.mark.parametrize("model", ["mood", "german", "shop"])
def test_it_answers_as_it_did(server: Server, answers: dict[str, Any], model: str) -> None:
    given = []
    for name, rows in answers[model]["inputs"].items():
        texts = isinstance(rows[0][0], str)
        array = np.array([[row[0].encode()] for row in rows], object) if texts else np.array(rows, np.float32)
        tensor = triton_grpc.InferInput(name, list(array.shape), "BYTES" if texts else "FP32")
        tensor.set_data_from_numpy(array)
        given.append(tensor)
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        result = client.infer(model, given)
    for name, expected in answers[model]["outputs"].items():
        got = result.as_numpy(name)
        if got.dtype == object:
            assert [[word.decode() for word in row] for row in got] == expected
        else:  # int8 of another CPU rounds otherwise
            np.testing.assert_allclose(got, expected, atol=0.02)


def test_clients_do_without_outputs_that_came_later(server: Server, answers: dict[str, Any]) -> None:
    """This version says nothing about the number of its tokens."""
    with GrpcClient(server.grpc) as client:
        for model in ("mood", "german"):
            assert "num_input_tokens" not in [output["name"] for output in client.metadata(model)["outputs"]]
        sent = {model: [text for (text,) in answers[model]["inputs"]["text"]] for model in ("mood", "german")}
        labels = client.classify(sent["mood"], model="mood")
        texts = client.text_to_text(sent["german"], model="german")
    assert [[entry.label for entry in row] for row in labels] == answers["mood"]["outputs"]["label"]
    assert [[entry.text] for entry in texts] == answers["german"]["outputs"]["generated_text"]


def test_it_writes_what_it_wrote(server: Server, answers: dict[str, Any]) -> None:
    with GrpcClient(server.grpc, timeout=300) as client:
        prompt = answers["tales"]["inputs"]["text_input"]
        got = client.complete(prompt, model="tales", max_tokens=12, temperature=0, ignore_eos=True)
    assert got.text == answers["tales"]["outputs"]["text_output"]


@pytest.mark.parametrize("model", MODELS)
def test_it_is_verified(before: Path, server: Server, model: str) -> None:
    repository = before / "model_repository"
    outcome = run.verify(model, repository)
    recorded = list(manifests(repository, model))
    assert [entry.failures for entry in outcome.evidence] == [[] for _ in recorded]
    assert [entry.precision for entry in outcome.evidence] == [manifest.precision for manifest in recorded]
    # No figure of a manifest is called otherwise, and none is missing, by now. How a network runs, and what
    # runs a decoder, is noted since then.
    assert [set(manifest.evidence) for manifest in recorded] == [
        set(entry.to_dict()) - {"serving", "engine"} for entry in outcome.evidence
    ]
    manifest, over_the_wire = run.verify_wire(model, repository, server.grpc)
    assert (manifest.model, over_the_wire.failures) == (model, [])


def test_versions_are_compared_and_promoted(before: Path, tmp_path: Path) -> None:
    repository = Path(shutil.copytree(before / "model_repository", tmp_path / "model_repository"))
    exact, small = manifests(repository, "mood")
    found = compare(repository, exact, small)
    assert found["answers"]["score"]["max_abs_diff"] < 0.05
    assert "raw agreement" in found["evidence"] or exact.evidence["raw"]["agreement"] == 1
    assert served_version(repository, "mood_encoder") == 2
    promote(repository, "mood", 1)
    assert served_version(repository, "mood_encoder") == 1
    with running(repository) as server, GrpcClient(server.grpc) as client:
        assert client.metadata("mood_encoder")["versions"] == ["1"]


@pytest.mark.parametrize("model", MODELS)
def test_exported_again_it_is_the_same_version(before: Path, tmp_path: Path, model: str) -> None:
    """The same bytes keep their number: no file of a repository has changed. Only fp32, since what quantizes
    computes, and computes otherwise on another CPU."""
    repository = Path(shutil.copytree(before / "model_repository", tmp_path / "model_repository"))
    recorded = next(manifests(repository, model))
    exact = {} if model == "shop" else {"precisions": ["fp32"]}
    outcome = run.export(run.recipe_of(recorded.recipe | exact), repository)
    again = next(manifests(repository, model))
    same_tools = all(recorded.tools[tool] == again.tools[tool] for tool in ("onnx", "onnxruntime"))
    if same_tools:
        assert [(made.version, made.new) for made in outcome.published] == [(1, False)]
        assert recorded.files == again.files
    assert recorded.configs == {name: _as_before(config) for name, config in again.configs.items()}


def _as_before(text: str) -> str:
    """A config without what was added since: the number of tokens of encoders and encoder-decoders, which
    decoders had before; conversations, token ids and what is told of the prompt of decoders."""
    config = model_config.parse(text)
    if config.model_transaction_policy.decoupled:
        later = (MESSAGES, PROMPT_TOKENS, PROMPT_LOGPROBS, STOP_REASON)
        for entries in (config.input, config.output):
            before = [entry for entry in entries if entry.name.removeprefix(RETURN) not in later]
            del entries[:]
            entries.extend(before)
        for entry in config.input:
            entry.optional = entry.optional and entry.name != TEXT_INPUT
        return model_config.to_text(config)
    outputs = [entry for entry in config.output if entry.name != INPUT_TOKENS]
    del config.output[:]
    config.output.extend(outputs)
    for step in config.ensemble_scheduling.step:
        step.output_map.pop(INPUT_TOKENS, None)
    return model_config.to_text(config)
