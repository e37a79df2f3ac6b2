"""A tiny random decoder, and the default one on a real Triton."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clients import GrpcClient, HttpClient
from export.generation import pipeline, verify
from export.generation.recipe import GenerationRecipe
from export.outcome import Outcome
from serving.embedded import Server, running


@pytest.fixture(scope="session")
def decoder_export(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The default decoder in all precisions of a CPU, exported into an empty repository; calibrated and
    measured on less than users' are, which takes minutes."""
    repository = tmp_path_factory.mktemp("decoder") / "model_repository"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "WINDOWS", 4)
        patch.setattr(verify, "SPEED_ROUNDS", 1)
        patch.setattr(pipeline, "CALIBRATION_WRITTEN", 8)
        patch.setattr(pipeline, "CALIBRATION_WINDOWS", 8)
        return repository, pipeline.export(GenerationRecipe(), repository)


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
    with kind(getattr(decoder_server, request.param), timeout=60.0) as made:
        yield made
