"""Real parts for every test: the default model exported once, one real Triton that serves it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from clients import GrpcClient, HttpClient
from export.encoder import choosing
from export.encoder import raw as encoder
from export.encoder.recipe import EncoderRecipe
from export.outcome import Outcome
from export.raw import cases
from export.run import export
from serving.embedded import Server, running
from tests.decoders import (  # noqa: F401 - fixtures
    decoder_client,
    decoder_export,
    decoder_repository,
    decoder_server,
    tiny_repository,
)
from tests.once import made_once

ROOT = Path(__file__).parent.parent

# Hypothesis tries the same examples wherever `CI` is set, and others elsewhere, so what hangs there is not
# seen here. `make fuzz` is what looks for new ones.
settings.register_profile("same", settings.get_profile("default"), derandomize=True, database=None)
settings.load_profile("same" if "SHOAL_FUZZ_EXAMPLES" not in os.environ else "default")


EXPENSIVE = {"decoder_repository": "decoder", "exported": "encoder", "writers": "text2text"}
"""Fixtures that take minutes, each with the group of tests that shares it, and so its servers."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under pytest-xdist a file stays whole, and one worker runs all that share an expensive fixture."""
    groups: dict[Path, str] = {}
    for item in items:
        for fixture, group in EXPENSIVE.items():
            if fixture in getattr(item, "fixturenames", ()):
                groups.setdefault(item.path, group)
    for item in items:
        item.add_marker(pytest.mark.xdist_group(groups.get(item.path, str(item.path.relative_to(ROOT)))))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Servers of the tests are not mixed up with those of the user."""
    os.environ["SHOAL_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["SHOAL_CACHE"]


@pytest.fixture(scope="session", autouse=True)
def _few_raw_inputs() -> Iterator[None]:
    """Exports of the tests compare every eighth raw input, but for those of `every_raw_input`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "cases_of", lambda task, limits: cases.cases_of(task, limits)[::8])
        yield


@pytest.fixture(scope="session", autouse=True)
def _nothing_to_choose() -> Iterator[None]:
    """Exports of the tests choose nothing, as on a machine of one CPU: figures differ from run to run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "available_cpus", lambda: 1)
        yield


@pytest.fixture(scope="module")
def every_raw_input(_few_raw_inputs: None) -> Iterator[None]:
    """Exports of the module compare all raw inputs, as those of users do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "cases_of", cases.cases_of)
        yield


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The default recipe, exported into an empty repository."""
    return made_once(tmp_path_factory, "encoder", lambda repository: export(EncoderRecipe(), repository))


@pytest.fixture(scope="session")
def repository(exported: tuple[Path, Outcome]) -> Path:
    """The repository of `exported`; tests must not change it."""
    return exported[0]


@pytest.fixture
def own_repository(repository: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(repository, tmp_path / "model_repository"))


@pytest.fixture(scope="session")
def server(repository: Path, _own_cache: None) -> Iterator[Server]:
    """One Triton for all tests that do not harm it."""
    with running(repository) as started:
        yield started


@pytest.fixture(scope="session", params=["grpc", "http"])
def client(request: pytest.FixtureRequest, server: Server) -> Iterator[GrpcClient | HttpClient]:
    """The same vocabulary over both protocols."""
    kind: Callable[[str], GrpcClient | HttpClient] = {"grpc": GrpcClient, "http": HttpClient}[request.param]
    with kind(getattr(server, request.param)) as made:
        yield made
