"""What a running server needs is not removed, and a name stands for one kind of model."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from export.encoder.recipe import EncoderRecipe
from export.generation.recipe import GenerationRecipe
from export.repository import check_kind
from export.tabular.recipe import TabularRecipe
from export.text2text.recipe import Text2TextRecipe
from serving.check import check
from shoal import repository as store
from shoal.errors import RepositoryError, UsageError
from shoal.leases import Leases
from shoal.manifest import manifests
from shoal.names import PARTS
from shoal.paths import write_atomic
from shoal.repository import locked
from tests.conftest import ROOT
from tests.versions import add


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Five versions of one network, the last is served."""
    made = tmp_path / "model_repository"
    for version in range(1, 6):
        add(made, "m_encoder", version)
    return made


def left(repository: Path, network: str = "m_encoder") -> list[int]:
    return [m.version for m in manifests(repository) if m.network == network]


@contextmanager
def holder(repository: Path, *versions: int) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds versions."""
    code = (
        "import sys; from pathlib import Path; from shoal.leases import Leases;"
        f"leases = Leases(Path(sys.argv[1])); leases.hold({{('m_encoder', n) for n in {versions!r}}});"
        "print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(repository)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_prune_keeps_what_is_served_and_what_was_before(repository: Path) -> None:
    store.promote(repository, "m", 1)
    done = store.prune(repository, "m", 1)
    assert [str(folder) for folder in done.removed] == ["m_encoder/2", "m_encoder/3", "m_encoder/4"]
    assert done.kept == {1: "is served"}
    assert store.rollback(repository, "m").version == 5
    assert store.prune(repository, "m", 1).removed == (Path("m_encoder/1"),)


def test_prune_keeps_what_a_running_server_holds(repository: Path) -> None:
    with holder(repository, 2, 3) as first, holder(repository, 2):
        done = store.prune(repository, "m", 1)
        assert done.removed == (Path("m_encoder/1"),)
        in_use = "is in use by a running server"
        assert done.kept == {2: in_use, 3: in_use, 4: "was served last"}
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert store.prune(repository, "m", 1).removed == (Path("m_encoder/3"),)  # the other holds 2
    assert store.prune(repository, "m", 1).removed == (Path("m_encoder/2"),)
    assert left(repository) == [4, 5]


def test_the_command_tells_what_it_keeps(repository: Path) -> None:
    with holder(repository, 2):
        done = subprocess.run(
            [sys.executable, "-m", "shoal", "prune", "m", "--keep", "1", "-r", str(repository)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    assert "removed m_encoder/1" in done.stderr
    assert "kept: version 2 is in use by a running server" in done.stderr


def test_new_leases_are_taken_before_old_ones_are_let_go(repository: Path) -> None:
    with Leases(repository) as leases:
        leases.hold({("m_encoder", 1), ("m_encoder", 2)})
        with pytest.raises(RepositoryError, match="m_encoder/9 cannot be held: No such file"):
            leases.hold({("m_encoder", 3), ("m_encoder", 9)})
        assert leases.held == {("m_encoder", 1), ("m_encoder", 2)}
        leases.hold({("m_encoder", 2), ("m_encoder", 3)})
        assert store.prune(repository, "m", 1).removed == (Path("m_encoder/1"),)
    assert left(repository) == [2, 3, 4, 5]
    assert len(store.prune(repository, "m", 1).removed) == 2


def test_a_lease_outlives_new_evidence(repository: Path) -> None:
    """An export of the same bytes puts another manifest in the place of the old."""
    path = repository / "m_encoder" / "1" / "manifest.json"
    with Leases(repository) as leases:
        leases.hold({("m_encoder", 1)})
        write_atomic(path, path.read_text())
        assert Path("m_encoder/1") not in store.prune(repository, "m", 1).removed


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to mount")
def test_leases_and_locks_work_through_a_bind_mount(repository: Path, tmp_path: Path) -> None:
    """As a container sees it: another path, and read-only where it serves."""
    inside = tmp_path / "models"
    inside.mkdir()
    mounted = subprocess.run(["mount", "--bind", repository, inside], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    try:
        with locked(repository), pytest.raises(RepositoryError, match="another command is writing"):
            store.promote(inside, "m", 1)
        with locked(inside) as prefix, pytest.raises(RepositoryError, match="another command is writing"):
            store.promote(repository, "m", 1)
        assert prefix.parent == inside  # no rename leads out of a mount
        (inside / ".shoal-staging-left").mkdir()
        with locked(repository) as prefix:
            assert prefix.parent == tmp_path
        assert not (inside / ".shoal-staging-left").exists()
        subprocess.run(["mount", "-o", "remount,bind,ro", inside], check=True)
        with holder(inside, 2):
            assert store.prune(repository, "m", 1).removed == tuple(Path(f"m_encoder/{n}") for n in (1, 3))
        with pytest.raises(RepositoryError, match="cannot be written: Read-only file system"):
            store.promote(inside, "m", 4)
    finally:
        subprocess.run(["umount", inside], check=True)


def test_versions_of_two_networks_of_one_name_are_told_apart(repository: Path) -> None:
    """As an older release left them: an encoder, and then a decoder under its name."""
    for version in (1, 2, 3):
        add(repository, "m", version, task="text-generation")
    assert len(store.versions_of(repository, "m")) == 8
    assert store.promote(repository, "m", 1).network == "m"
    done = store.prune(repository, "m", 1)
    assert left(repository, "m") == [1, 3]
    assert left(repository) == [4, 5]
    assert len(done.removed) == 4
    check(repository)
    with pytest.raises(RepositoryError, match="holds m already, which is an encoder, and this is a decoder"):
        check_kind(repository, "m", {"task": "text-generation"})


@pytest.mark.parametrize("part", PARTS)
def test_no_kind_of_model_has_the_name_of_a_part(part: str) -> None:
    for kind in (EncoderRecipe, GenerationRecipe, Text2TextRecipe, TabularRecipe):
        with pytest.raises(UsageError, match=f"'m_{part}' cannot end in _{part}, .*choose another --name"):
            kind.from_dict({"source": "example:forest", "name": f"m_{part}"})


def test_parts_are_named_where_the_names_are_kept() -> None:
    """What exports call a part is one of those that no model may be called."""
    found = set()
    for path in (ROOT / "export").rglob("*.py"):
        for line in path.read_text().splitlines():
            assert not [part for part in PARTS if f"}}_{part}" in line], line
            found |= {part for part in PARTS if f", {part.upper()})" in line and "part_name(" in line}
    assert found | {"labels"} == set(PARTS)


def test_kinds_without_a_manifest(repository: Path) -> None:
    """A clone holds configs, but neither manifests nor weights."""
    shutil.copytree(ROOT / "model_repository" / "minilm", repository / "minilm")
    check_kind(repository, "minilm", EncoderRecipe().to_dict())
    with pytest.raises(
        RepositoryError, match="minilm already, which is an encoder, and this is an estimator"
    ):
        check_kind(repository, "minilm", {"task": "tabular"})
    (repository / "own").mkdir()
    (repository / "own" / "config.pbtxt").write_text('name: "own"\nbackend: "python"\n')
    with pytest.raises(RepositoryError, match="own already, which is not Shoal's"):
        check_kind(repository, "own", EncoderRecipe().to_dict())
