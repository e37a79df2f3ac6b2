"""A tiny random decoder, and the default one on a real Triton."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from clients import GrpcClient, HttpClient
from export import run
from export.exported import Exported
from export.generation import build, publish, verify
from export.generation.checkpoint import find_decoder
from export.generation.family import decoder_of
from export.generation.recipe import GenerationRecipe
from export.generation.to_onnx import to_onnx
from export.outcome import Outcome
from export.raw.served import version_folder
from serving.embedded import Server, running
from shoal.machine import cpu_flags
from tests import tiny
from tests.once import made_once

TINY_CONTEXT = 16384  # tokens: an answer that fills it takes longer than any stop may


# OpenVINO's answers are the same alone and in company on CPUs with these instructions, and refused on others.
EXACT = any("vnni" in flag or flag.startswith("amx") for flag in cpu_flags())
ENGINE: Literal["openvino", "onnxruntime"] = "openvino" if EXACT else "onnxruntime"
needs_vnni = pytest.mark.skipif(not EXACT, reason="OpenVINO's products need VNNI to be the same in company")


@pytest.fixture(scope="session")
def tiny_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random decoder `tiny` that is as small as one can be, ready to be served; nothing of it is proven."""
    root = tmp_path_factory.mktemp("tiny")
    folder = tiny.make_decoder(
        root / "checkpoint", "LlamaForCausalLM", max_position_embeddings=TINY_CONTEXT, num_hidden_layers=1
    )
    recipe = GenerationRecipe(
        source=str(folder),
        name="tiny",
        precisions=("fp32",),
        max_length=TINY_CONTEXT,
        max_num_seqs=16,
        max_queue_size=24,
    )
    graph: Exported = to_onnx(folder, root / "model.onnx")
    decoder = decoder_of(recipe, find_decoder(recipe.source), root)
    part = publish.part_of(graph, decoder)
    model = root / "model_repository" / "tiny"
    version = version_folder(part.files, root / "version")
    shutil.copytree(version, model / "1")  # no links: the server reads nothing that it was not given
    (model / "config.pbtxt").write_text(str(part.config(1)))
    return model.parent


@pytest.fixture(scope="session")
def decoder_export(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The default decoder in all precisions of a CPU, exported into an empty repository; calibrated and
    measured on less than users' are, which takes minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "WINDOWS", 4)
        patch.setattr(verify, "SPEED_ROUNDS", 1)
        patch.setattr(build, "CALIBRATION_WRITTEN", 8)
        patch.setattr(build, "CALIBRATION_WINDOWS", 8)
        # Which library runs int8 must not depend on what else the machine does.
        recipe = GenerationRecipe(engine=ENGINE)
        return made_once(tmp_path_factory, "decoder", lambda repository: run.export(recipe, repository))


@pytest.fixture(scope="session")
def decoder_repository(decoder_export: tuple[Path, Outcome]) -> Path:
    """The repository of `decoder_export`; tests must not change it."""
    return decoder_export[0]


@pytest.fixture(scope="session")
def decoder_server(decoder_repository: Path, _own_cache: None) -> Iterator[Server]:
    """One Triton that serves the decoder, for all tests that do not harm it."""
    with running(decoder_repository) as started:
        yield started


@pytest.fixture(scope="session", params=["grpc", "http"])
def decoder_client(
    request: pytest.FixtureRequest, decoder_server: Server
) -> Iterator[GrpcClient | HttpClient]:
    """The same vocabulary over both protocols."""
    kind = {"grpc": GrpcClient, "http": HttpClient}[request.param]
    with kind(getattr(decoder_server, request.param), timeout=300.0) as made:
        yield made
