"""Versions are pushed to a real S3 server and a real registry, and pulled into other repositories."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import joblib
import msgspec
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from deploy.stores.address import Address
from deploy.stores.bundle import Bundle, File, bundle_of, check_manifest
from deploy.stores.store import Nothing, StoreError, Taken
from deploy.stores.transfer import pull, push
from export import run
from serving.check import check
from shoal import placing
from shoal.errors import RepositoryError, ShoalError, UsageError
from shoal.manifest import Manifest, history
from shoal.repository import served_version
from tests.reliability.world import free_ports
from tests.stores import Place, s3, wait

REGISTRY = shutil.which("docker-registry")


@pytest.fixture(scope="module", name="s3")
def _s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with s3(tmp_path_factory.mktemp("weed")) as place:
        yield place


@pytest.fixture(scope="module")
def oci(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    if REGISTRY is None:
        pytest.skip("there is no docker-registry: apt-get install docker-registry")
    folder = tmp_path_factory.mktemp("registry")
    (port,) = free_ports(1)
    config = folder / "config.yml"
    config.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\nlog: {{level: error}}\n"
    )
    process = subprocess.Popen(
        [REGISTRY, "serve", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def put(digest: str, content: bytes) -> None:
        blob = folder / "data/docker/registry/v2/blobs/sha256" / digest[:2] / digest / "data"
        assert blob.exists()
        blob.write_bytes(content)

    try:
        wait(f"http://127.0.0.1:{port}/v2/")
        yield Place(f"oci://127.0.0.1:{port}/some/where", put)
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(params=["s3", "oci"])
def place(request: pytest.FixtureRequest) -> Place:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def _export(folder: Path, repository: Path, name: str, seed: int) -> None:
    source = folder / f"{name}-{seed}.pkl"
    table = np.random.default_rng(seed).normal(size=(60, 4))
    joblib.dump(Ridge().fit(table, table @ np.arange(4) * seed), source)
    run.export(run.recipe_of({"source": str(source), "name": name, "trust_pickle": True}), repository)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of `prices`; the second is served."""
    folder = tmp_path_factory.mktemp("stores")
    for seed in (1, 2):
        _export(folder, folder / "repository", "prices", seed)
    return folder / "repository"


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".shoal.lock"
    }


def test_what_is_pushed_is_what_is_pulled(place: Place, source: Path, tmp_path: Path) -> None:
    address = Address.parse(f"{place.url}/prices")
    first, second = (push(source, "prices", version, address) for version in (1, 2))
    assert first.sent_files == first.files and first.address == f"{address}:1"
    assert second.sent_files < second.files  # what both have was there
    again = push(source, "prices", None, address)
    assert (again.version, again.sent_files, again.digest) == (2, 0, second.digest)

    repository = tmp_path / "repository"
    pulled = pull(address, repository)
    assert (pulled.version, pulled.served, pulled.sent_files) == (2, True, pulled.files)
    check(repository, frozenset({"onnxruntime", "python"}), {"prices_estimator": {2}, "prices_rows": {1}})
    older = pull(Address.parse(f"{address}:1"), repository)
    assert (older.version, older.served) == (1, False) and older.sent_files < older.files
    assert served_version(repository, "prices_estimator") == 2
    now, then = _tree(repository), _tree(source)
    assert {p: b for p, b in now.items() if "served.json" not in p} == {
        p: b for p, b in then.items() if "served.json" not in p
    }
    assert pull(Address.parse(f"{address}:1"), repository, serve=True).sent_files == 0
    assert served_version(repository, "prices_estimator") == 1
    assert all(isinstance(entry, Manifest) for entry in history(repository))


def test_a_tag_names_one_version_for_ever(place: Place, source: Path, tmp_path: Path) -> None:
    address = Address.parse(f"{place.url}/taken:stable")
    assert push(source, "prices", 1, address).digest
    with pytest.raises(Taken, match="holds another version under stable"):
        push(source, "prices", 2, address)
    assert pull(address, tmp_path / "repository").version == 1


def test_of_two_that_push_at_once_one_wins(s3: Place, source: Path) -> None:
    for number in range(5):
        address = Address.parse(f"{s3.url}/race:{number}")
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(push, source, "prices", version, address) for version in (1, 2)]
        assert sorted(type(one.exception()).__name__ for one in asked) == ["NoneType", "Taken"]


def test_another_version_of_the_number_is_in_the_way(place: Place, source: Path, tmp_path: Path) -> None:
    address = Address.parse(f"{place.url}/way")
    push(source, "prices", 1, address)
    other = tmp_path / "repository"
    _export(tmp_path, other, "prices", 9)
    before = _tree(other)
    with pytest.raises(RepositoryError, match="holds another prices_estimator/1/"):
        pull(address, other)
    assert _tree(other) == before


def test_what_was_changed_in_the_store_does_not_arrive(place: Place, source: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    _export(tmp_path, own, "prices", 7)
    address = Address.parse(f"{place.url}/changed")
    push(own, "prices", 1, address)
    graph = own / "prices_estimator" / "1" / "model.onnx"
    digest = next(
        Manifest.load(graph.with_name("manifest.json")).files[p] for p in ["prices_estimator/1/model.onnx"]
    )
    for content in (graph.read_bytes()[:-1] + b"x", b"short", graph.read_bytes() + b"more"):
        place.put_blob(digest, content)
        repository = tmp_path / f"repository-{len(content)}"
        with pytest.raises(ShoalError, match=r"is not what was pushed|another size|SHA-256"):
            pull(address, repository)
        assert not _tree(repository)


def test_a_file_that_is_missing_is_brought_back(place: Place, source: Path, tmp_path: Path) -> None:
    """As in a clone of the project, where weights are not committed."""
    address = Address.parse(f"{place.url}/prices-again")
    push(source, "prices", 2, address)
    repository = tmp_path / "repository"
    shutil.copytree(source, repository)
    (repository / "prices_estimator" / "2" / "model.onnx").unlink()
    assert pull(address, repository).sent_files == 1
    assert _tree(repository) == _tree(source)


def test_a_pull_that_fails_at_its_end_changes_nothing(
    s3: Place, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk as the config of a part is written; a file and a whole version were in place by then."""
    address = Address.parse(f"{s3.url}/late")
    push(source, "prices", 1, address)
    repository = tmp_path / "repository"
    shutil.copytree(source, repository)
    (repository / "prices_estimator" / "1" / "model.onnx").unlink()
    shutil.rmtree(repository / "prices_rows" / "1")
    before = _tree(repository)

    def full(*_: object) -> None:
        assert (repository / "prices_estimator" / "1" / "model.onnx").exists()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(placing, "write_together", full)
    with pytest.raises(RepositoryError, match="nothing was changed"):
        pull(address, repository)
    assert _tree(repository) == before
    monkeypatch.undo()
    assert pull(address, repository).sent_files == 3
    assert _tree(repository) == _tree(source)


def test_where_nothing_is(place: Place, source: Path, tmp_path: Path) -> None:
    for given in (f"{place.url}/nothing", f"{place.url}/nothing:7"):
        with pytest.raises(Nothing, match="holds no") as told:
            pull(Address.parse(given), tmp_path / "repository")
        assert told.value.exit_code == 3  # by which a script tells it from a store that does not answer
    with pytest.raises(RepositoryError, match="prices has no version 9"):
        push(source, "prices", 9, Address.parse(f"{place.url}/nothing"))


@pytest.mark.parametrize("url", ["oci://127.0.0.1:9/a/b", "s3://models/b"])
def test_a_store_that_is_not_there(
    url: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for call in (
        lambda: pull(Address.parse(url), tmp_path / "repository"),
        lambda: push(source, "prices", 1, Address.parse(url)),
    ):
        with pytest.raises(StoreError, match="127.0.0.1") as told:
            call()
        assert told.value.exit_code == 1
        assert "\n" not in str(told.value) and "secret" not in str(told.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "minilm",
        "http://a/b",
        "s3://b",
        "oci://host/",
        "s3://b/UPPER",
        "s3://b/a:",
        "s3://b/../a",
        "s3://b/a b",
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(UsageError, match="is no place for a version"):
        Address.parse(url)


@pytest.mark.parametrize(
    "path",
    [
        "../x/1/model.onnx",
        "/x/1/model.onnx",
        "x/1/../../model.onnx",
        "x/1/model.so",
        "x/1/model.pkl",
        "x/1/triton_python_backend_stub",
        "x/1/other.py",
        "x/one/model.onnx",
        "x/config.pbtxt",
        "x/1/.hidden.json",
        "x\\1\\model.onnx",
        "x/1/a\n.json",
    ],
)
def test_a_bundle_names_nothing_but_files_of_versions(path: str) -> None:
    good = {"prices_estimator/1/manifest.json": File(1, "0" * 64)}
    made = Bundle("prices", 1, "prices_estimator", {**good, path: File(1, "0" * 64)}, [])
    with pytest.raises(RepositoryError, match="may be pulled"):
        Bundle.decode(made.encode(), "here")


@pytest.mark.parametrize(
    "paths",
    [
        ["minilm_encoder/99/model.onnx"],  # of another model
        ["prices_estimator/2/model.onnx"],  # another version, which nobody has looked at
        ["prices_estimator/2/manifest.json"],
        ["prices_rows/1/model.py", "prices_rows/1/manifest.json"],
        ["prices_rows/1/model.py", "prices_rows/2/model.py"],
    ],
)
def test_a_bundle_brings_one_version_of_its_own_model(paths: list[str]) -> None:
    files = dict.fromkeys(["prices_estimator/1/manifest.json", *paths], File(1, "0" * 64))
    with pytest.raises(RepositoryError, match=r"is no part of prices|has several (versions|manifests)"):
        Bundle.decode(Bundle("prices", 1, "prices_estimator", files, []).encode(), "here")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"model":"a","version":1,"network":"a","files":{},"folders":[]}',
        b"[" * 9999,
    ],
)
def test_what_is_no_bundle(text: bytes) -> None:
    with pytest.raises(RepositoryError, match="does not hold a version of Shoal's"):
        Bundle.decode(text, "here")


def test_code_is_neither_pushed_nor_pulled(source: Path, tmp_path: Path, s3: Place) -> None:
    own = tmp_path / "own"
    shutil.copytree(source, own)
    script = own / "prices_rows" / "1" / "model.py"
    right = script.read_bytes()
    script.write_bytes(right + b"import os\n")
    found = next(m for m in history(own) if isinstance(m, Manifest) and m.version == 1)
    files = found.files | {"prices_rows/1/model.py": _sha(script)}
    place = own / found.network / "1" / "manifest.json"
    place.write_bytes(msgspec.json.encode(msgspec.structs.replace(found, files=files)))
    with pytest.raises(RepositoryError, match="has code of its own"):
        push(own, "prices", 1, Address.parse(f"{s3.url}/code"))


def _sha(path: Path) -> str:
    from shoal.hashes import sha256

    return sha256(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('name: "prices_rows"', 'name: "other"'),
        ('backend: "python"', 'backend: "sh"'),
        (
            'backend: "python"',
            'backend: "python" parameters { key: "EXECUTION_ENV_PATH" value { string_value: "x" } }',
        ),
        ('backend: "onnxruntime"', 'backend: "onnxruntime" runtime: "../../evil.so"'),
        ('backend: "onnxruntime"', 'backend: "onnxruntime" default_model_filename: "../../evil.onnx"'),
        (
            'backend: "onnxruntime"',
            'backend: "onnxruntime" cc_model_filenames { key: "9" value: "/tmp/evil" }',
        ),
        (
            'backend: "onnxruntime"',
            'backend: "onnxruntime" model_operations { op_library_filename: "evil.so" }',
        ),
        (
            'backend: "onnxruntime"',
            'backend: "onnxruntime" model_repository_agents { agents { name: "evil" } }',
        ),
        ('backend: "onnxruntime"', 'backend: "python"'),
        ("versions: 1", "versions: 2"),
        ('backend: "python"', "{{{{"),
        ('backend: "python"', 'backend: "python" instance_group { count: 2147483647 }'),
    ],
)
def test_configs_that_start_something_else_are_refused(source: Path, old: str, new: str) -> None:
    manifest = next(m for m in history(source) if isinstance(m, Manifest) and m.version == 1)
    bundle = bundle_of(source, manifest)
    check_manifest(manifest, bundle)
    configs = {name: text.replace(old, new) for name, text in manifest.configs.items()}
    assert configs != manifest.configs
    with pytest.raises(RepositoryError, match="is refused"):
        check_manifest(msgspec.structs.replace(manifest, configs=configs), bundle)
