"""Estimators over tables as a family: how they are opened, built, measured and published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.evidence import Verified
from export.exported import Exported
from export.family import Family
from export.raw.evidence import RawEvidence
from export.raw.served import Caller
from export.repository import Published, Release
from export.tabular.agreement import Served
from export.tabular.columns import Rows
from export.tabular.estimator import Estimator
from export.tabular.evidence import PRECISION, TabularEvidence
from export.tabular.find import find_estimator
from export.tabular.labelled import read_rows
from export.tabular.publish import release, row_of
from export.tabular.recipe import TabularRecipe
from export.tabular.sample import ROUNDING, Sample, sample
from export.tabular.to_onnx import DOUBLE, FLOAT, to_onnx
from export.tabular.verify import measure, measure_wire
from serving.models.rows import FILENAME, Reader
from shoal.errors import RepositoryError
from shoal.hashes import sha256
from shoal.manifest import Manifest
from shoal.progress import Silent


@dataclass
class EstimatorSubject:
    """An estimator, opened; see `export.family.Subject`.

    Attributes:
        own: rows of the user.
        served: what is measured, once it is built or read from a repository.
    """

    recipe: TabularRecipe
    estimator: Estimator
    own: Rows | None
    doubts: tuple[str, ...] = ()
    _served: Served | None = None
    _sample: Sample | None = None

    @property
    def task(self) -> str:
        """See `Subject`."""
        return "tabular-classification" if self.estimator.classes else "tabular-regression"

    @property
    def served(self) -> Served:
        """What is measured: the reader of rows and the network."""
        assert self._served is not None  # noqa: S101 - it was built, or read from a repository
        return self._served

    def describe(self) -> dict[str, Any]:
        """See `Subject`."""
        return self.estimator.describe()

    def unmeasured(self, repository: Path, work: Path) -> Published | None:
        """See `Subject`."""
        return None

    def build(self, work: Path, progress: Silent) -> dict[str, Exported]:
        """See `Subject`."""
        found = self._rows(progress)
        with progress.step("Convert to ONNX"):
            numbers = FLOAT if found.rounding <= ROUNDING else DOUBLE
            network = to_onnx(self.estimator, work / "fp32.onnx", top_k=self.recipe.top_k, numbers=numbers)
        reader = Reader(found.checks, network.texts)
        self.doubts = network.doubts
        self._served = Served(self.estimator, network.exported, reader, numbers, network.blur)
        return {PRECISION: network.exported}

    def measure(
        self, graphs: Mapping[str, Exported], published: Mapping[str, Manifest], progress: Silent
    ) -> dict[str, TabularEvidence]:
        """See `Subject`; its rows are raw inputs already."""
        return {PRECISION: measure(self.served, self._rows(progress), progress=progress)}

    def ask_original(self, work: Path | None, progress: Silent) -> EstimatorSubject:
        """See `Subject`; the sample holds its answers already."""
        self._rows(progress)
        return self

    def compared(self, caller: Caller, model: str, precision: str) -> RawEvidence:
        """See `export.family.Answers`."""
        rows = self._rows(Silent())
        return measure_wire(self.served, rows, caller, model, self.recipe.max_batch_size)

    def published(self, manifest: Manifest, repository: Path) -> Exported:
        """See `Subject`."""
        graph = Exported.read(repository / manifest.network / str(manifest.version) / "model.onnx")
        numbers = DOUBLE if DOUBLE in {spec.dtype for spec in graph.inputs} else FLOAT
        reader, blur = _published_reader(manifest, repository), float(manifest.evidence["blur"])
        self._served = Served(self.estimator, graph, reader, numbers, blur)
        return graph

    def statistics(self, proven: Sequence[Verified], progress: Silent) -> dict[str, dict[str, Any] | None]:
        """See `Subject`."""
        return {}

    def release(self, proven: Verified) -> Release:
        """See `Subject`."""
        row = row_of(self.served, self._rows(Silent()))
        return release(proven, self.recipe, self.served, self.task, row)

    def _rows(self, progress: Silent) -> Sample:
        if self._sample is None:
            with progress.step("Ask the original of rows that hurt"):
                self._sample = sample(self.estimator, self.own)
        return self._sample


def find(
    recipe: TabularRecipe, progress: Silent, *, eval_data: Path | None, versions: Sequence[Manifest] = ()
) -> Callable[[Path], EstimatorSubject]:
    """See `export.family.Find`."""
    for manifest in versions:
        _check_source(manifest)

    def load(folder: Path) -> EstimatorSubject:
        with progress.step(f"Load {recipe.source}"):
            estimator = find_estimator(recipe.source, trust_pickle=recipe.trust_pickle)
            own = None if eval_data is None else read_rows(eval_data, estimator)
        return EstimatorSubject(recipe, estimator, own)

    return load


def _published_reader(manifest: Manifest, repository: Path) -> Reader:
    name = next((name for name in manifest.files if Path(name).name == FILENAME), None)
    if name is None:
        return Reader((), ())
    return Reader.from_json((repository / name).read_text(encoding="utf-8"))


def _check_source(manifest: Manifest) -> None:
    """Compare a file with its manifest before it is loaded: a pickle is not trusted with other content."""
    path = Path(str(manifest.source["id"])).expanduser()
    recorded: Mapping[str, str] = manifest.source["sha256"]
    if path.name in recorded and not (path.is_file() and sha256(path) == recorded[path.name]):
        raise RepositoryError(
            f"{path} is not what {manifest.network}/{manifest.version} was made from",
            hint="restore the file, or export again",
        )


FAMILY = Family(
    ("skl2onnx", "scikit-learn", "xgboost-cpu", "lightgbm", "onnx", "onnxruntime", "numpy"),
    find,
)
