"""A long history, and a damaged one, are in nobody's way: what is not served is not read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from export import run
from serving.check import check
from shoal import hashes
from shoal import repository as store
from shoal.errors import RepositoryError
from shoal.hashes import Hashes, sha256
from shoal.manifest import Manifest, manifests
from shoal.paths import cache_dir
from tests.conftest import ROOT
from tests.versions import add

NETWORK = "m_encoder"
COUNT = """
import sys
from pathlib import Path
from serving.check import check
root, opened = sys.argv[1], []
def seen(event, arguments):
    if event == "open" and str(arguments[0]).startswith(root):
        opened.append(Path(str(arguments[0])))
sys.addaudithook(seen)
check(Path(root))
files = [path for path in opened if not path.is_dir()]
print(len(files), len([path for path in files if path.suffix == ".onnx"]))
"""


@pytest.fixture(autouse=True)
def _own_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Three versions; the last is served."""
    made = tmp_path / "model_repository"
    for version in (1, 2, 3):
        add(made, NETWORK, version)
    return made


def settled(repository: Path) -> None:
    """Let all files be of some time ago, for the clock of the hashes."""
    later = time.time_ns() + 2 * hashes.SETTLED_NS
    patch = pytest.MonkeyPatch()
    patch.setattr(hashes.time, "time_ns", lambda: later)
    check(repository)
    patch.undo()


def files_opened(repository: Path) -> tuple[int, int]:
    """How many files a check opens in a process of its own, and how many graphs are among them."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT, str(repository)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    every, graphs = done.stdout.split()
    return int(every), int(graphs)


def test_a_start_reads_no_more_for_fifty_versions_than_for_one(tmp_path: Path) -> None:
    short, long = tmp_path / "short", tmp_path / "long"
    add(short, NETWORK, 50)
    for version in range(1, 51):
        add(long, NETWORK, version)
    counted = files_opened(short)
    assert counted[1] == 1
    assert files_opened(long) == counted
    shutil.rmtree(cache_dir(), ignore_errors=True)
    settled(long)
    assert files_opened(long) == (counted[0] - 1, 0)  # of the graph the hash is known


def test_a_hash_is_kept_as_long_as_the_file_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"first")
    read: list[Path] = []
    monkeypatch.setattr(hashes, "sha256", lambda path: read.append(path) or sha256(path))

    def asked() -> tuple[str, int]:
        """The hash by a new process, and how often the file was read for it."""
        read.clear()
        known = Hashes()
        found = known.sha256(path)
        known.save()
        return found, len(read)

    first = sha256(path)
    assert asked() == (first, 1)
    assert asked() == (first, 1)  # it was written just now: not kept
    later = time.time_ns() + 2 * hashes.SETTLED_NS
    monkeypatch.setattr(hashes.time, "time_ns", lambda: later)
    assert [asked(), asked()] == [(first, 1), (first, 0)]
    kept = path.stat()
    path.write_bytes(b"other")  # of the same size, with its times set back
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert asked() == (sha256(path), 1)
    changed = tmp_path / "changed"
    changed.write_bytes(b"third")
    changed.replace(path)
    assert asked() == (sha256(path), 1)


@pytest.mark.parametrize("damage", ["{", "[]", '{"a": 1}', '{"a": "zz"}', "\udcff", "folder"])
def test_a_cache_that_is_damaged_counts_as_empty(repository: Path, damage: str) -> None:
    place = cache_dir() / hashes.FILENAME
    if damage == "folder":
        place.mkdir(parents=True)
    else:
        place.parent.mkdir(parents=True)
        place.write_bytes(damage.encode(errors="surrogateescape"))
    settled(repository)
    if damage != "folder":
        assert set(json.loads(place.read_text()).values()) == {
            sha256(repository / NETWORK / "3" / "model.onnx")
        }
    (repository / NETWORK / "3" / "model.onnx").write_bytes(b"m_encoder x")
    with pytest.raises(RepositoryError, match="is not the file that was measured"):
        check(repository)


def test_the_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "MOST", 2)
    monkeypatch.setattr(hashes, "SETTLED_NS", -(10**12))
    known = Hashes()
    for number in range(4):
        (tmp_path / str(number)).write_bytes(bytes([number]))
        known.sha256(tmp_path / str(number))
    known.save()
    kept = json.loads((cache_dir() / hashes.FILENAME).read_text())
    assert list(kept.values()) == [sha256(tmp_path / name) for name in ("2", "3")]


def _without(key: str) -> Callable[[dict[str, object]], object]:
    return lambda entry: {name: value for name, value in entry.items() if name != key}


@pytest.mark.parametrize(
    "damaged",
    [
        lambda entry: "{",
        lambda entry: [],
        lambda entry: entry | {"schema": 1},
        lambda entry: entry | {"source": "here"},
        lambda entry: entry | {"evidence": None},
        lambda entry: entry | {"files": {"/etc/passwd": ""}},
        lambda entry: entry | {"files": {"m_encoder/x/model.onnx": ""}},
        lambda entry: entry | {"created": 5},
        _without("configs"),
    ],
)
def test_a_damaged_manifest_of_the_history_blocks_nothing(
    repository: Path, damaged: Callable[[dict[str, object]], object]
) -> None:
    path = repository / NETWORK / "2" / "manifest.json"
    made = damaged(json.loads(path.read_text()))
    path.write_text(made if isinstance(made, str) else json.dumps(made))
    check(repository)
    assert [manifest.version for manifest in manifests(repository)] == [1, 3]
    told = shoal("versions", "m", "--json", "-r", repository)
    rows = json.loads(told.stdout)["versions"]
    assert [(row["version"], row["served"], row["damaged"]) for row in rows] == [
        (1, False, False),
        (2, False, True),
        (3, True, False),
    ]
    assert str(path) in told.stderr and told.stderr.startswith("warning: ")
    with pytest.raises(RepositoryError, match="export the model again"):
        store.promote(repository, "m", 2)
    assert store.promote(repository, "m", 1).version == 1
    assert store.rollback(repository, "m").version == 3
    done = store.prune(repository, "m", 1)
    assert done.kept[2] == "cannot be read" and path.exists()
    with pytest.raises(RepositoryError, match="export the model again"):
        run.verify("m", repository)


def test_a_damaged_manifest_that_is_served_is_told_and_another_is_promoted(repository: Path) -> None:
    (repository / NETWORK / "3" / "manifest.json").write_text("{")
    with pytest.raises(RepositoryError, match="3/manifest.json is not a readable manifest"):
        check(repository)
    out = shoal("versions", "-r", repository).stdout
    assert "served damaged" in out
    store.promote(repository, "m", 1)
    check(repository)


def shoal(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shoal", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )


def test_files_that_a_manifest_names_are_checked_by_themselves(repository: Path) -> None:
    """The hash of a file that cannot be read is an error with its name."""
    manifest = Manifest.load(repository / NETWORK / "3" / "manifest.json")
    path = repository / NETWORK / "3" / "model.onnx"
    path.unlink()
    with pytest.raises(RepositoryError, match="model.onnx is missing"):
        manifest.check_files(repository)
    path.symlink_to(repository / NETWORK / "2" / "model.onnx")
    with pytest.raises(RepositoryError, match="is not the file that was measured"):
        manifest.check_files(repository)


def test_a_config_that_is_not_utf_8_blocks_no_promotion(repository: Path) -> None:
    config = repository / NETWORK / "config.pbtxt"
    model = next(manifests(repository)).model
    called = repository / model / "config.pbtxt"
    for path in {config, called}:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\xa2\xff" * 100)
    assert store.served_version(repository, NETWORK) is None
    assert store.promote(repository, model, 1).version == 1
    assert store.served_version(repository, NETWORK) == 1
