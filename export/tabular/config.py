"""`config.pbtxt` of the models that serve an estimator: the reader of rows, the network, the ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tritonclient.grpc import model_config_pb2 as triton

from export.exported import Exported
from export.tabular.columns import CATEGORY, DOCUMENT, Column
from export.tabular.recipe import TabularRecipe
from export.triton_config import network_config, python_config, set_parameters, tensor_input, tensor_output
from serving.models.admission import PARAMETER
from serving.models.rows import LIMITS
from shoal.names import ESTIMATOR, ROWS, part_name

# How the ensemble calls what the reader hands on under the name that it has on the wire.
_CHECKED = "checked:"


@dataclass(frozen=True)
class EstimatorSettings:
    """What all configs of an estimator share.

    Attributes:
        row: one that the model takes, JSON.
    """

    recipe: TabularRecipe
    task: str
    row: str


def network_name(name: str) -> str:
    """What the graph is called in the repository."""
    return part_name(name, ESTIMATOR)


def reader_name(name: str) -> str:
    """What stands before it."""
    return part_name(name, ROWS)


def wire_inputs(columns: Sequence[Column], numbers: str) -> dict[str, tuple[str, int]]:
    """Type and width of each input that users send, in the columns' order."""
    made: dict[str, tuple[str, int]] = {}
    for column in columns:
        text = column.kind in (CATEGORY, DOCUMENT)
        kind = "STRING" if text else numbers
        made[column.input] = (kind, made.get(column.input, (kind, 0))[1] + 1)
    return made


def reader_config(
    settings: EstimatorSettings, inputs: dict[str, tuple[str, int]], exported: Exported, version: int
) -> triton.ModelConfig:
    """Columns as users send them to what the network reads."""
    config = python_config(reader_name(settings.recipe.name), settings.recipe.max_batch_size, version)
    config.input.extend(tensor_input(name, kind, [width]) for name, (kind, width) in inputs.items())
    config.output.extend(tensor_output(spec.name, spec.dtype, spec.dims[1:]) for spec in exported.inputs)
    _tell(config, settings)
    set_parameters(config, **{name: str(getattr(settings.recipe, name)) for name in (*LIMITS, PARAMETER)})
    return config


def estimator_config(settings: EstimatorSettings, exported: Exported, version: int) -> triton.ModelConfig:
    """The graph."""
    recipe = settings.recipe
    config = network_config(network_name(recipe.name), exported, recipe.max_batch_size, version)
    _tell(config, settings)
    return config


def ensemble_config(
    settings: EstimatorSettings, steps: Sequence[triton.ModelConfig], version: int
) -> triton.ModelConfig:
    """What users call: the inputs of the first step, the outputs of the last."""
    config = triton.ModelConfig(
        name=settings.recipe.name, platform="ensemble", max_batch_size=settings.recipe.max_batch_size
    )
    config.input.extend(steps[0].input)
    config.output.extend(steps[-1].output)
    made: dict[str, str] = {entry.name: entry.name for entry in steps[0].input}
    for step in steps:
        added = config.ensemble_scheduling.step.add(model_name=step.name, model_version=-1)
        for entry in step.input:
            added.input_map[entry.name] = made[entry.name]
        for entry in step.output:
            made[entry.name] = entry.name if step is steps[-1] else f"{_CHECKED}{entry.name}"
            added.output_map[entry.name] = made[entry.name]
    _tell(config, settings)
    return config


def _tell(config: triton.ModelConfig, settings: EstimatorSettings) -> None:
    """What clients and health checks should know."""
    set_parameters(config, task=settings.task, sample=settings.row)
