"""The whole way from an estimator to a published version, and the check of what is published.

Preprocessing, prediction and the names of labels are one graph on ONNX Runtime. Before it stands a reader of
rows, where the original refuses some values or reads texts: `serving.models.rows`. Users call the ensemble.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from export.evidence import Verified, verified
from export.exported import Exported
from export.outcome import Outcome, tools_of
from export.raw.evidence import RawEvidence
from export.raw.served import Wire
from export.repository import Part, Provenance, Published, Release, check_kind, staging, write
from export.tabular import config
from export.tabular.agreement import Served
from export.tabular.columns import NUMBER
from export.tabular.evidence import TabularEvidence
from export.tabular.labelled import read_rows
from export.tabular.recipe import TabularRecipe
from export.tabular.sample import ROUNDING, Sample, sample
from export.tabular.source import Estimator, find_estimator
from export.tabular.to_onnx import DOUBLE, FLOAT, to_onnx
from export.tabular.verify import measure, measure_wire
from serving.models.rows import FILENAME, Reader
from shoal.errors import NotProven, RepositoryError
from shoal.hashes import sha256
from shoal.manifest import Manifest
from shoal.progress import Silent

_TOOLS = (
    "skl2onnx",
    "scikit-learn",
    "xgboost-cpu",
    "lightgbm",
    "onnx",
    "onnxruntime",
    "numpy",
)


@dataclass(frozen=True)
class Finished:
    """What is to be published.

    Attributes:
        reader: what stands before the network; None: nothing.
        row: one that the model takes, by input, as JSON has it.
    """

    served: Served
    reader: Reader | None
    row: str


def export(
    recipe: TabularRecipe,
    repository: Path,
    *,
    progress: Silent | None = None,
    on_evidence: Callable[[Sequence[TabularEvidence]], None] = lambda evidence: None,
) -> Outcome:
    """Convert, measure, and publish what is proven; see `export.pipeline.export`."""
    progress = progress or Silent()
    with staging(repository) as work:
        check_kind(repository, recipe.name, recipe.to_dict())
        with progress.step(f"Load {recipe.source}"):
            estimator = find_estimator(recipe.source, trust_pickle=recipe.trust_pickle)
            own = None if recipe.eval_data is None else read_rows(recipe.eval_data, estimator)
        with progress.step("Ask the original of rows that hurt"):
            found = sample(estimator, own)
        with progress.step("Convert to ONNX"):
            numbers = FLOAT if found.rounding <= ROUNDING else DOUBLE
            network = to_onnx(estimator, work / "fp32.onnx", top_k=recipe.top_k, numbers=numbers)
        reader = Reader(found.checks, network.texts)
        served = Served(estimator, network.exported, reader, numbers, network.blur)
        evidence = measure(served, found, progress=progress)
        on_evidence([evidence])
        try:
            (proven,) = verified({evidence.precision: network.exported}, {evidence.precision: evidence})
        except NotProven as error:
            raise NotProven(error.message, hint="; ".join(network.doubts)) from error
        tools = tools_of(_TOOLS)
        provenance = Provenance(recipe.name, recipe.to_dict(), estimator.describe(), tools)
        with progress.step(f"Write versions to {repository}"):
            # Without a reader, bytes that are no text would be taken for a category that nobody knows.
            reads_text = any(column.kind != NUMBER for column in estimator.columns)
            needed = reader if reader.checks or reader.texts or reads_text else None
            finished = Finished(served, needed, _row(served, found))
            published = write([_release(proven, recipe, finished)], repository, work, provenance)
    return Outcome((evidence,), tuple(published), _task(estimator))


def verify_published(
    found: Sequence[Manifest], repository: Path, *, eval_data: Path | None, progress: Silent
) -> Outcome:
    """Measure published versions again; see `export.router.verify_published`."""
    evidence = []
    for manifest in found:
        served = _published(manifest, repository)
        own = None if eval_data is None else read_rows(eval_data, served.estimator)
        evidence.append(measure(served, sample(served.estimator, own), progress=progress))
    versions = [Published(m.network, m.version, m.precision, new=False) for m in found]
    return Outcome(tuple(evidence), tuple(versions), _task(served.estimator))


def verify_wire(manifest: Manifest, repository: Path, address: str, progress: Silent) -> RawEvidence:
    """The answers of a running server to rows; see `export.router.verify_wire`."""
    served = _published(manifest, repository)
    found = sample(served.estimator)
    batch = TabularRecipe.from_dict(manifest.recipe).max_batch_size
    with Wire(address) as wire, progress.step(f"Ask {manifest.model} over the wire"):
        return measure_wire(served, found, wire, manifest.model, batch)


def _published(manifest: Manifest, repository: Path) -> Served:
    """A version of the repository, with the estimator that it was made from."""
    recipe = TabularRecipe.from_dict(manifest.recipe)
    _check_source(manifest)
    estimator = find_estimator(recipe.source, trust_pickle=recipe.trust_pickle)
    graph = Exported.read(repository / manifest.network / str(manifest.version) / "model.onnx")
    numbers = DOUBLE if DOUBLE in {spec.dtype for spec in graph.inputs} else FLOAT
    reader = _published_reader(manifest, repository)
    return Served(estimator, graph, reader, numbers, float(manifest.evidence["blur"]))


def _published_reader(manifest: Manifest, repository: Path) -> Reader:
    name = next((name for name in manifest.files if Path(name).name == FILENAME), None)
    if name is None:
        return Reader((), ())
    return Reader.from_json((repository / name).read_text(encoding="utf-8"))


def _check_source(manifest: Manifest) -> None:
    """Before it is loaded: a pickle that was trusted once is not trusted with other content."""
    path = Path(str(manifest.source["id"])).expanduser()
    recorded: Mapping[str, str] = manifest.source["sha256"]
    if path.name in recorded and not (path.is_file() and sha256(path) == recorded[path.name]):
        raise RepositoryError(
            f"{path} is not what {manifest.network}/{manifest.version} was made from",
            hint="restore the file, or export again",
        )


def _row(served: Served, found: Sample) -> str:
    """A row that the model takes, for those who ask whether it answers: one without a gap where there is."""
    estimator = served.estimator
    whole = np.ones(len(found.rows), dtype=bool)
    for column in estimator.columns:
        values = found.rows.values[column.name]
        if column.kind == NUMBER:
            whole &= np.isfinite(values)
        else:
            whole &= np.array([bool(value) and not value.startswith("@") for value in values])
    # JSON has no NaN: where every row has a gap, 1 stands in it.
    place = int(whole.argmax())
    kind = np.float32 if served.numbers == FLOAT else np.float64
    row: dict[str, list[float | str]] = {}
    for column in estimator.columns:
        value = found.rows.values[column.name][place]
        if column.kind == NUMBER:
            value = float(str(kind(value))) if np.isfinite(value) else 1.0
        row.setdefault(column.input, []).append(value or "" if column.kind != NUMBER else value)
    return json.dumps(row)


def _release(proven: Verified, recipe: TabularRecipe, finished: Finished) -> Release:
    name, task = recipe.name, _task(finished.served.estimator)
    columns = finished.served.estimator.columns
    settings = config.Settings(
        name,
        recipe.max_batch_size,
        task,
        finished.row,
        recipe.max_text_bytes,
        recipe.max_request_terms,
        recipe.max_queue_size,
    )
    parts = []
    if finished.reader is not None:
        files: dict[str, Path | str] = {
            "model.py": "from serving.models.rows import TritonPythonModel  # noqa: F401\n",
            FILENAME: finished.reader.to_json(),
        }
        inputs = config.wire_inputs(columns, finished.served.numbers)
        make = partial(config.reader_config, settings, inputs, proven.exported)
        parts.append(Part(config.reader_name(name), files, make))
    make = partial(config.estimator_config, settings, proven.exported)
    network = Part(config.network_name(name), {"model.onnx": proven.exported.path}, make)
    parts.append(network)
    steps = [part.config(1) for part in parts]
    make = partial(config.ensemble_config, settings, steps)
    return Release(proven, (*parts, Part(name, {}, make)), network.name)


def _task(estimator: Estimator) -> str:
    """As Hugging Face names it."""
    return "tabular-classification" if estimator.classes else "tabular-regression"
