"""A proven encoder-decoder as one model of a repository: its tokenizer, both graphs and the search."""

from __future__ import annotations

from pathlib import Path

from tritonclient.grpc import model_config_pb2 as triton

from export.config import set_batching
from export.repository import Part
from export.text2text.recipe import Text2TextRecipe
from export.text2text.to_onnx import Graphs
from serving.models import text2text
from serving.models.text2text import TOKENIZER, Settings

MODEL_PY = "from serving.models.text2text import TritonPythonModel  # noqa: F401\n"


def part_of(graphs: Graphs, recipe: Text2TextRecipe, settings: Settings) -> Part:
    """Graphs, and the `tokenizer.json` that lies beside them, as a version of the model."""
    files: dict[str, Path | str] = {part.name: part for part in graphs.files}
    files |= {TOKENIZER: graphs.path.parent / TOKENIZER, "model.py": MODEL_PY}
    return Part(recipe.name, files, lambda version: config_of(recipe, settings, version=version))


def config_of(recipe: Text2TextRecipe, settings: Settings, *, version: int) -> triton.ModelConfig:
    """Text [n, 1] to text [n, 1]; the requests that wait run together, none waits for others to come."""
    config = triton.ModelConfig(name=recipe.name, backend="python", max_batch_size=recipe.max_batch_size)
    string, integer = triton.DataType.TYPE_STRING, triton.DataType.TYPE_INT32
    config.input.append(triton.ModelInput(name=text2text.TEXT, data_type=string, dims=[1]))
    config.input.append(triton.ModelInput(name=text2text.LIMIT, data_type=integer, dims=[1], optional=True))
    config.output.append(triton.ModelOutput(name=text2text.GENERATED, data_type=string, dims=[1]))
    config.output.append(triton.ModelOutput(name=text2text.COUNT, data_type=integer, dims=[1]))
    # One instance with all CPUs. The cache is kept in their memory, whatever else the machine has.
    config.instance_group.add(count=1, kind=triton.ModelInstanceGroup.KIND_CPU)
    set_batching(config)
    config.version_policy.specific.versions.append(version)
    values = {
        "task": recipe.TASK,
        "search": settings.search.to_json(),
        "max_length": str(settings.max_length),
        "max_text_bytes": str(settings.max_text_bytes),
        "max_num_batched_tokens": str(settings.max_num_batched_tokens),
        "max_queue_size": str(settings.max_queue_size),
    }
    if settings.truncation_side != "right":
        values["truncation_side"] = settings.truncation_side
    for key, value in values.items():
        config.parameters[key].string_value = value
    return config
