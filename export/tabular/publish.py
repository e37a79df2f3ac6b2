"""A proven estimator as the models that are published: a reader of rows where one is needed, and the network.

Preprocessing, prediction and the names of labels are one graph on ONNX Runtime. Before it stands a reader of
rows, where the original refuses some values or reads texts: `serving.models.rows`. Users call the ensemble.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np

from export.evidence import Verified
from export.repository import ModelFiles, Release, model_py
from export.tabular import config
from export.tabular.agreement import Served
from export.tabular.columns import NUMBER
from export.tabular.recipe import TabularRecipe
from export.tabular.sample import Sample
from export.tabular.to_onnx import FLOAT
from serving.models.rows import FILENAME


def release(proven: Verified, recipe: TabularRecipe, served: Served, task: str, row: str) -> Release:
    """The models of a version.

    Args:
        row: one that the model takes, by input, as JSON has it.
    """
    name, columns, reader = recipe.name, served.estimator.columns, served.reader
    settings = config.EstimatorSettings(recipe, task, row)
    parts = []
    # Without a reader, bytes that are no text would be taken for a category that nobody knows.
    if reader.checks or reader.texts or any(column.kind != NUMBER for column in columns):
        files: dict[str, Path | str] = {
            "model.py": model_py("rows"),
            FILENAME: reader.to_json(),
        }
        inputs = config.wire_inputs(columns, served.numbers)
        make = partial(config.reader_config, settings, inputs, proven.exported)
        parts.append(ModelFiles(config.reader_name(name), files, make))
    make = partial(config.estimator_config, settings, proven.exported)
    network = ModelFiles(config.network_name(name), {"model.onnx": proven.exported.path}, make)
    parts.append(network)
    steps = [part.config(1) for part in parts]
    make = partial(config.ensemble_config, settings, steps)
    return Release(proven, (*parts, ModelFiles(name, {}, make)), network.name)


def row_of(served: Served, found: Sample) -> str:
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
