"""The whole way from an estimator to a published version, and the check of what is published.

Preprocessing, prediction and the names of labels are one graph, so that what serves is ONNX Runtime alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from platform import python_version

from tritonclient.grpc import model_config_pb2 as triton

from export.config import network_config
from export.evidence import Verified, verified
from export.exported import Exported
from export.outcome import Outcome, disk_errors_named
from export.repository import Part, Provenance, Published, Release, staging, write
from export.tabular.columns import Rows, as_feed
from export.tabular.recipe import TabularRecipe
from export.tabular.sample import rows_for
from export.tabular.source import Estimator, find_estimator
from export.tabular.to_onnx import to_onnx
from export.tabular.verify import TabularEvidence, measure
from shoal.errors import RepositoryError
from shoal.manifest import Manifest, sha256
from shoal.progress import Silent

_TOOLS = (
    "skl2onnx",
    "onnxmltools",
    "scikit-learn",
    "xgboost-cpu",
    "lightgbm",
    "onnx",
    "onnxruntime",
    "numpy",
)


def export(
    recipe: TabularRecipe,
    repository: Path,
    *,
    progress: Silent | None = None,
    on_evidence: Callable[[Sequence[TabularEvidence]], None] = lambda evidence: None,
) -> Outcome:
    """Convert, measure, and publish what is proven; see `export.pipeline.export`."""
    progress = progress or Silent()
    with staging(repository) as work, disk_errors_named(repository):
        with progress.step(f"Load {recipe.source}"):
            estimator = find_estimator(recipe.source, trust_pickle=recipe.trust_pickle)
        with progress.step("Convert to ONNX"):
            exported = to_onnx(estimator, work / "fp32.onnx", top_k=recipe.top_k)
        rows = rows_for(estimator, exported, recipe.eval_data)
        evidence = measure(estimator, exported, rows, progress=progress)
        on_evidence([evidence])
        (proven,) = verified({evidence.precision: exported}, {evidence.precision: evidence})
        tools = {"python": python_version()} | {name: metadata.version(name) for name in _TOOLS}
        provenance = Provenance(recipe.name, recipe.to_dict(), estimator.describe(), tools)
        with progress.step(f"Write versions to {repository}"):
            sample = _sample(estimator, rows)
            published = write([_release(proven, recipe, estimator, sample)], repository, work, provenance)
    return Outcome((evidence,), tuple(published), _task(estimator))


def verify_published(
    found: Sequence[Manifest], repository: Path, *, eval_data: Path | None, progress: Silent
) -> Outcome:
    """Measure published versions again; see `export.router.verify_published`."""
    evidence = []
    for manifest in found:
        recipe = TabularRecipe.from_dict(manifest.recipe)
        _check_source(manifest)
        estimator = find_estimator(recipe.source, trust_pickle=recipe.trust_pickle)
        graph = Exported.read(repository / manifest.network / str(manifest.version) / "model.onnx")
        evidence.append(measure(estimator, graph, rows_for(estimator, graph, eval_data), progress=progress))
    versions = [Published(m.network, m.version, m.precision, new=False) for m in found]
    return Outcome(tuple(evidence), tuple(versions), _task(estimator))


def _check_source(manifest: Manifest) -> None:
    """Before it is loaded: a pickle that was trusted once is not trusted with other content."""
    path = Path(str(manifest.source["id"])).expanduser()
    recorded: Mapping[str, str] = manifest.source["sha256"]
    if path.name in recorded and not (path.is_file() and sha256(path) == recorded[path.name]):
        raise RepositoryError(
            f"{path} is not what {manifest.network}/{manifest.version} was made from",
            hint="restore the file, or export again",
        )


def _sample(estimator: Estimator, rows: Rows) -> str:
    """A row that the model takes, for those who ask whether it answers: not any text is a known category."""
    feed = as_feed(estimator, rows.take(slice(1)))
    if not any(array.dtype == object for array in feed.values()):
        return ""
    values = {name: array.reshape(-1).tolist() for name, array in feed.items()}
    # JSON has no NaN.
    known = {
        name: [1.0 if isinstance(value, float) and math.isnan(value) else value for value in row]
        for name, row in values.items()
    }
    return json.dumps(known)


def _release(proven: Verified, recipe: TabularRecipe, estimator: Estimator, sample: str) -> Release:
    make = partial(_config, recipe, proven.exported, _task(estimator), sample)
    part = Part(recipe.name, {"model.onnx": proven.exported.path}, make)
    return Release(proven, (part,), recipe.name)


def _config(
    recipe: TabularRecipe, exported: Exported, task: str, sample: str, version: int
) -> triton.ModelConfig:
    config = network_config(recipe.name, exported, recipe.max_batch_size, version)
    config.parameters["task"].string_value = task
    if sample:
        config.parameters["sample"].string_value = sample
    return config


def _task(estimator: Estimator) -> str:
    """As Hugging Face names it."""
    return "tabular-classification" if estimator.classes else "tabular-regression"
