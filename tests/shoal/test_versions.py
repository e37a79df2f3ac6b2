"""What is served can be changed and changed back, and what is not needed any more goes."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clients import GrpcClient
from serving.check import check
from serving.embedded import running
from shoal import repository as store
from shoal import rollouts
from shoal.cli.compare import compare
from shoal.errors import RepositoryError
from shoal.hashes import sha256
from shoal.manifest import Manifest, manifests
from shoal.repository import HISTORY, STAGING, locked


def served(repository: Path) -> int | None:
    return store.served_version(repository, "minilm_encoder")


def add_version(repository: Path, number: int) -> None:
    """One more version of the network: the fp32 one once more, with a remark in it."""
    old, new = (repository / "minilm_encoder" / str(n) for n in (1, number))
    shutil.copytree(old, new)
    with (new / "model.onnx").open("ab") as file:
        file.write(b"\x32\x01x")  # the protobuf field doc_string: "x"
    entry = json.loads((new / "manifest.json").read_text())
    files = {name.replace("_encoder/1/", f"_encoder/{number}/"): h for name, h in entry["files"].items()}
    files[f"minilm_encoder/{number}/model.onnx"] = sha256(new / "model.onnx")
    configs = {
        name: text.replace("versions: 1\n", f"versions: {number}\n") if name == "minilm_encoder" else text
        for name, text in entry["configs"].items()
    }
    entry |= {"version": number, "files": files, "configs": configs}
    (new / "manifest.json").write_text(json.dumps(entry))


def test_promote_and_roll_back(own_repository: Path) -> None:
    assert served(own_repository) == 2
    assert store.promote(own_repository, "minilm", 1).precision == "fp32"
    assert served(own_repository) == 1
    add_version(own_repository, 3)
    store.promote(own_repository, "minilm", 3)
    with running(own_repository) as server, GrpcClient(server.grpc) as client:
        assert client.metadata("minilm_encoder")["versions"] == ["3"]
    assert [store.rollback(own_repository, "minilm").version for _ in range(2)] == [1, 2]
    with pytest.raises(RepositoryError, match="no version of minilm was served before 2"):
        store.rollback(own_repository, "minilm")
    assert served(own_repository) == 2


def test_without_a_history_the_config_tells_what_was_served(own_repository: Path) -> None:
    (own_repository / "minilm_encoder" / HISTORY).unlink()
    store.promote(own_repository, "minilm", 1)
    assert store.rollback(own_repository, "minilm").version == 2


def test_what_cannot_be_served_changes_nothing(own_repository: Path) -> None:
    with pytest.raises(RepositoryError, match=r"minilm has no version 9 \(it has 1, 2\)"):
        store.promote(own_repository, "minilm", 9)
    with pytest.raises(RepositoryError, match="holds no version of nope"):
        store.promote(own_repository, "nope", 1)
    (own_repository / "minilm_encoder" / "1" / "model.onnx").write_bytes(b"other")
    with pytest.raises(RepositoryError, match="is not the file that was measured"):
        store.promote(own_repository, "minilm", 1)
    (own_repository / "minilm_encoder" / HISTORY).write_text("[1, ")
    with pytest.raises(RepositoryError, match=r"served.json cannot be read.*remove it"):
        store.rollback(own_repository, "minilm")
    assert served(own_repository) == 2


def test_two_do_not_write_at_once(own_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MOMENT_SECONDS", 0.2)
    with locked(own_repository):
        for change in (
            lambda: store.promote(own_repository, "minilm", 1),
            lambda: store.rollback(own_repository, "minilm"),
            lambda: store.prune(own_repository, "minilm", 1),
        ):
            with pytest.raises(RepositoryError, match="another command is writing"):
                change()


def test_a_promotion_waits_for_another_to_end(own_repository: Path) -> None:
    with ThreadPoolExecutor() as pool:
        with locked(own_repository):
            waiting = pool.submit(store.promote, own_repository, "minilm", 1)
            time.sleep(0.3)
        assert waiting.result(timeout=10).version == 1


def test_waiting_ends_where_another_version_is_asked_for(
    own_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was served for a moment, or never was: `promote --wait` says what happened."""

    def state(text: str) -> dict[str, object]:
        return {"desired": {"minilm": {"config": text}}, "served": {}, "refused": []}

    said = iter([[state("old")], [state("mine")], [state("mine")], [state("theirs")]])
    monkeypatch.setattr(rollouts, "states", lambda _: next(said))
    with pytest.raises(RepositoryError, match="another version was asked for meanwhile"):
        rollouts.wait_until_served(own_repository, {"minilm": "mine"}, 60)


def test_a_refusal_from_before_is_no_answer(own_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has been restored since, and the supervisor is about to try it."""
    written = (own_repository / "minilm" / "config.pbtxt").stat().st_mtime

    def state(asked: float, served: bool) -> dict[str, object]:
        target = {"minilm": {"config": "mine"}}
        refusal = {"target": target, "reason": "SHA-256 differs", "asked": asked}
        return {"desired": target, "served": target if served else {}, "refused": [] if served else [refusal]}

    said = iter([[state(written - 9, served=False)], [state(written, served=True)]])
    monkeypatch.setattr(rollouts, "states", lambda _: next(said))
    rollouts.wait_until_served(own_repository, {"minilm": "mine"}, 60)
    monkeypatch.setattr(rollouts, "states", lambda _: [state(written, served=False)])
    with pytest.raises(RepositoryError, match="SHA-256 differs") as refused:
        rollouts.wait_until_served(own_repository, {"minilm": "mine"}, 60)
    assert refused.value.hint == "no version of it is served"


def test_a_version_that_is_gone_is_named(own_repository: Path) -> None:
    shutil.rmtree(own_repository / "minilm_encoder" / "2")
    with pytest.raises(RepositoryError, match=r"minilm_encoder/2 is missing, which minilm_encoder's config"):
        check(own_repository)


def test_prune_keeps_the_newest_and_what_is_served(own_repository: Path) -> None:
    for number in (3, 4, 5):
        add_version(own_repository, number)
    done = store.prune(own_repository, "minilm", 2)
    assert [str(folder) for folder in done.removed] == ["minilm_encoder/1", "minilm_encoder/3"]
    assert done.kept == {2: "is served"}
    assert [m.version for m in manifests(own_repository)] == [2, 4, 5]
    assert (own_repository / "minilm_tokenizer" / "1").is_dir()  # the others need it
    assert store.prune(own_repository, "minilm", 2).removed == ()
    assert not list(own_repository.parent.glob(f"{STAGING}*-minilm*"))
    for manifest in manifests(own_repository):
        manifest.check_files(own_repository)


def test_a_tokenizer_that_only_pruned_versions_used_goes_too(own_repository: Path, repository: Path) -> None:
    add_version(own_repository, 3)
    tokenizers = own_repository / "minilm_tokenizer"
    shutil.copytree(tokenizers / "1", tokenizers / "2")
    for number in (2, 3):
        path = own_repository / "minilm_encoder" / str(number) / "manifest.json"
        path.write_text(path.read_text().replace("minilm_tokenizer/1/", "minilm_tokenizer/2/"))
    config = tokenizers / "config.pbtxt"
    assert store.prune(own_repository, "minilm", 2).removed == (Path("minilm_encoder/1"),)  # 1 is served
    shutil.copytree(repository / "minilm_encoder" / "1", own_repository / "minilm_encoder" / "1")
    config.write_text(config.read_text().replace("versions: 1\n", "versions: 2\n"))
    assert [str(folder) for folder in store.prune(own_repository, "minilm", 2).removed] == [
        "minilm_encoder/1",
        "minilm_tokenizer/1",
    ]


def test_differences(repository: Path) -> None:
    first, second = manifests(repository)
    found = compare(repository, first, second)
    assert found["files"] == {"minilm_encoder/model.onnx": [_size(repository, m) for m in (first, second)]}
    assert found["evidence"]["max_abs_diff"][0] < found["evidence"]["max_abs_diff"][1]
    assert found["recipe"] == found["tools"] == {}
    assert 0.9 < found["answers"]["embedding"]["min_cosine"] < 1
    nothing = compare(repository, first, first)
    assert nothing["files"] == nothing["evidence"] == {}
    assert nothing["answers"]["embedding"]["max_abs_diff"] == 0


def _size(repository: Path, manifest: Manifest) -> int:
    return (repository / manifest.network / str(manifest.version) / "model.onnx").stat().st_size
