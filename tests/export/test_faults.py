"""Whatever call a process is killed at, or fails at: what was served is served, and the next goes on."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from export import run
from export.repository import Provenance, Release, write
from serving.check import check
from shoal import repository as store
from shoal.change import JOURNAL
from shoal.manifest import served_manifests
from shoal.placing import staging
from shoal.repository import LOCK, STAGING
from tests.faults import KILL, fails_at

MOST_CALLS = 200


@dataclasses.dataclass(frozen=True)
class Made:
    """What one export would write, to be written again and again."""

    release: Release
    provenance: Provenance
    graph: bytes

    def publish(self, repository: Path) -> None:
        """As the pipeline does."""
        with staging(repository) as work:
            graph = work / "fp32.onnx"
            graph.write_bytes(self.graph)
            parts = [
                dataclasses.replace(part, files={n: self._file(v, graph) for n, v in part.files.items()})
                for part in self.release.parts
            ]
            write([dataclasses.replace(self.release, parts=parts)], repository, work, self.provenance)

    @staticmethod
    def _file(value: Path | str, graph: Path) -> Path | str:
        return graph if isinstance(value, Path) else value


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Made]:
    """Three exports of one name: of three columns, of three with other weights, of four columns."""
    folder = tmp_path_factory.mktemp("faults")
    chance = np.random.default_rng(0)
    found: list[Made] = []

    def keep(releases: list[Release], repository: Path, work: Path, provenance: Provenance) -> list[Any]:
        (release,) = releases
        graphs = [value for part in release.parts for value in part.files.values() if isinstance(value, Path)]
        found.append(Made(release, provenance, graphs[0].read_bytes()))
        return write(releases, repository, work, provenance)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "write", keep)
        for place, columns in enumerate((3, 3, 4)):
            rows = chance.normal(size=(60, columns))
            path = folder / f"model-{place}.pkl"
            joblib.dump(LogisticRegression().fit(rows, rows.sum(axis=1) > 0), path)
            values = {"source": str(path), "trust_pickle": True, "name": "tiny"}
            run.export(run.recipe_of(values), folder / "model_repository")
    return found


def filled(folder: Path, made: list[Made], *numbers: int) -> Path:
    """A repository in which these exports were published in turn."""
    repository = folder / "model_repository"
    repository.mkdir(parents=True)
    for number in numbers:
        made[number].publish(repository)
    return repository


def content(repository: Path) -> dict[str, bytes]:
    """All files beside the lock: in the repository, and beside it."""
    root = repository.parent
    return {
        str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != LOCK
    }


def untimed(files: dict[str, bytes]) -> dict[str, bytes]:
    """Without what two exports of the same have different."""
    found = dict(files)
    for name, value in files.items():
        if name.endswith("manifest.json"):
            found[name] = json.dumps(json.loads(value) | {"created": "", "machine": {}}).encode()
    return found


def rubbish(repository: Path) -> list[Path]:
    """What has no place in a repository, or beside it."""
    root = repository.parent
    return [
        path
        for path in root.rglob("*")
        if path.name.startswith(STAGING) or path.name.endswith(".tmp") or path.name == JOURNAL
    ]


Action = Callable[[Path], Any]


def actions(made: list[Made]) -> dict[str, tuple[tuple[int, ...], Action, tuple[int | None, ...]]]:
    """Name -> what is published before, what is done, and which versions may be served afterwards."""
    return {
        "a first export": ((), made[0].publish, (None, 1)),
        "an export with other columns": ((0,), made[2].publish, (1, 2)),
        "an export of the same bytes": ((0, 1), made[0].publish, (2, 1)),
        "promote": ((0, 2), lambda repository: store.promote(repository, "tiny", 1), (2, 1)),
        "rollback": ((0, 2), lambda repository: store.rollback(repository, "tiny"), (2, 1)),
        "prune": ((2, 0, 1), lambda repository: store.prune(repository, "tiny", 1), (3,)),
    }


NAMES = (
    "a first export",
    "an export with other columns",
    "an export of the same bytes",
    "promote",
    "rollback",
    "prune",
)


def served(repository: Path) -> int | None:
    """The version that is served, after all that a start looks at."""
    if not list(repository.glob("*/config.pbtxt")):
        return None
    check(repository)
    found = [manifest.version for manifest in served_manifests(repository)]
    assert len(found) <= 1
    return found[0] if found else None


@pytest.mark.parametrize("name", NAMES)
def test_killed_at_any_call_what_is_served_is_whole(made: list[Made], tmp_path: Path, name: str) -> None:
    before, action, allowed = actions(made)[name]
    start = filled(tmp_path / "start", made, *before)
    if name == "prune":  # of three versions the oldest is neither served nor was it served before
        assert served(start) == 3
    shutil.copytree(start.parent, tmp_path / "done")
    action(tmp_path / "done" / start.name)
    wanted = untimed(content(tmp_path / "done" / start.name))
    seen = set()
    for number in range(1, MOST_CALLS):
        repository = Path(shutil.copytree(start.parent, tmp_path / str(number))) / start.name
        came = fails_at(number, KILL, repository.parent, lambda: action(repository))  # noqa: B023
        if came == "done":
            break
        assert came == "killed", came
        seen.add(served(repository))
        if name == "rollback" and served(repository) == allowed[-1]:
            continue  # rolled back; once more would go back further
        action(repository)
        assert untimed(content(repository)) == wanted, number
        assert served(repository) == allowed[-1]
        assert rubbish(repository) == []
        shutil.rmtree(tmp_path / str(number))
    else:
        pytest.fail("it never ended")
    assert number > 4
    assert seen == set(allowed)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        pytest.param("a first export", "EACCES", marks=pytest.mark.slow),
        ("an export with other columns", "ENOSPC+"),
        pytest.param("an export of the same bytes", "ENOSPC", marks=pytest.mark.slow),
        ("promote", "EACCES"),
        ("promote", "ENOSPC+"),
        ("prune", "EACCES"),
    ],
)
def test_a_call_that_fails_changes_nothing(made: list[Made], tmp_path: Path, name: str, how: str) -> None:
    before, action, allowed = actions(made)[name]
    start = filled(tmp_path / "start", made, *before)
    failed = 0
    for number in range(1, MOST_CALLS):
        repository = Path(shutil.copytree(start.parent, tmp_path / str(number))) / start.name
        was = content(repository)
        came = fails_at(number, how, repository.parent, lambda: action(repository))  # noqa: B023
        if came == "done":
            break
        if came == "passed over":  # such as the removal of what is left over, which the next does
            assert served(repository) == allowed[-1], number
        else:
            failed += 1
            assert came.startswith("RepositoryError: ") and "\n" not in came, (number, came)
            assert "is full" in came or "cannot be" in came, (number, came)
            assert content(repository) == was, (number, came)
            assert served(repository) == allowed[0]
        shutil.rmtree(tmp_path / str(number))
    else:
        pytest.fail("it never ended")
    assert failed > 2
