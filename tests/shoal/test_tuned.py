"""Another setting of a version is a version: seen, served, and taken back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clients import GrpcClient
from serving.embedded import running
from shoal import model_config, tuned
from shoal import repository as store
from shoal.cli.versions import versions
from shoal.errors import RepositoryError
from shoal.manifest import Manifest, served_manifests

MEASURED = {"slo": "p99=80ms", "rate": 120.0, "better": 1.2, "noise": 1.02, "says": "queue delay, us 500"}


def _published(repository: Path) -> Manifest:
    served = next(served_manifests(repository, "minilm"))
    network = model_config.parse(served.configs["minilm_encoder"])
    network.dynamic_batching.max_queue_delay_microseconds = 500
    configs = {**served.configs, "minilm_encoder": model_config.to_text(network)}
    return tuned.publish(repository, served, configs, MEASURED, beside=served.version)


def test_what_was_promoted_meanwhile_stays(own_repository: Path) -> None:
    served = next(served_manifests(own_repository, "minilm"))
    other = next(v for v in (1, 2) if v != served.version)
    store.promote(own_repository, "minilm", other)
    with pytest.raises(RepositoryError, match=f"version {other} of minilm is served by now"):
        tuned.publish(own_repository, served, served.configs, MEASURED, beside=served.version)
    assert store.served_version(own_repository, "minilm_encoder") == other


def test_a_setting_is_served_as_a_version_and_taken_back(
    own_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = _published(own_repository)
    assert made.version == 3 and made.evidence["tuned"] == MEASURED
    network = own_repository / "minilm_encoder"
    assert (network / "3" / "model.onnx").stat().st_ino == (network / "2" / "model.onnx").stat().st_ino
    assert store.served_version(own_repository, "minilm_encoder") == 3
    again = Manifest.load(network / "3" / "manifest.json")
    assert again == made
    again.check_files(own_repository)
    versions("minilm", own_repository, as_json=True)
    rows = json.loads(capsys.readouterr().out)["versions"]
    assert [(row["version"], row["served"], row["tuned"]) for row in rows] == [
        (1, False, None),
        (2, False, None),
        (3, True, MEASURED),
    ]
    versions("minilm", own_repository, as_json=False)
    assert "minilm 3: queue delay, us 500: 120.0 requests/s within p99=80ms" in capsys.readouterr().out
    with running(own_repository) as server, GrpcClient(server.grpc) as client:
        config = client.config("minilm_encoder")
        assert int(config["dynamic_batching"]["max_queue_delay_microseconds"]) == 500
        assert client.metadata("minilm_encoder")["versions"] == ["3"]
        assert client.embed(["Fish swim."]).shape == (1, 384)
    assert store.rollback(own_repository, "minilm").version == 2
    assert "max_queue_delay" not in (network / "config.pbtxt").read_text()


def test_a_damaged_version_is_not_published_again(own_repository: Path) -> None:
    with (own_repository / "minilm_encoder" / "2" / "model.onnx").open("ab") as file:
        file.write(b"x")
    before = (own_repository / "minilm_encoder" / "config.pbtxt").read_text()
    with pytest.raises(RepositoryError, match="is not the file that was measured"):
        _published(own_repository)
    assert not (own_repository / "minilm_encoder" / "3").exists()
    assert (own_repository / "minilm_encoder" / "config.pbtxt").read_text() == before


def test_what_cannot_be_written_changes_nothing(
    own_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tuned, "write_together", full)
    before = sorted(path for path in own_repository.rglob("*") if path.name != ".shoal.lock")
    with pytest.raises(RepositoryError, match="is full"):
        _published(own_repository)
    assert sorted(path for path in own_repository.rglob("*") if path.name != ".shoal.lock") == before
    assert store.served_version(own_repository, "minilm_encoder") == 2
