"""A proven encoder-decoder as one model of a repository: its tokenizer, both graphs and the search."""

from __future__ import annotations

from pathlib import Path

from tritonclient.grpc import model_config_pb2 as triton

from export.repository import ModelFiles, model_py
from export.text2text.recipe import Text2TextRecipe
from export.text2text.to_onnx import Graphs
from export.triton_config import input_of, output_of, python_config, set_parameters
from serving.models.text2text import TOKENIZER, Text2TextSettings
from shoal import dialect


def part_of(graphs: Graphs, recipe: Text2TextRecipe, settings: Text2TextSettings) -> ModelFiles:
    """Graphs, and the `tokenizer.json` that lies beside them, as a version of the model."""
    files: dict[str, Path | str] = {part.name: part for part in graphs.files}
    files |= {TOKENIZER: graphs.path.parent / TOKENIZER, "model.py": model_py("text2text")}
    return ModelFiles(recipe.name, files, lambda version: config_of(recipe, settings, version=version))


def config_of(recipe: Text2TextRecipe, settings: Text2TextSettings, *, version: int) -> triton.ModelConfig:
    """Text [n, 1] to text [n, 1]; the requests that wait run together, none waits for others to come."""
    config = python_config(recipe.name, recipe.max_batch_size, version)
    config.input.append(input_of(dialect.TEXT, "STRING", [1]))
    config.input.append(input_of(dialect.MAX_NEW_TOKENS, "INT32", [1], optional=True))
    config.output.append(output_of(dialect.GENERATED_TEXT, "STRING", [1]))
    config.output.append(output_of(dialect.OUTPUT_TOKENS, "INT32", [1]))
    config.output.append(output_of(dialect.INPUT_TOKENS, "INT32", [1]))
    # One instance with all CPUs. The cache is kept in their memory, whatever else the machine has.
    config.instance_group.add(count=1, kind=triton.ModelInstanceGroup.KIND_CPU)
    set_parameters(
        config,
        task=recipe.TASK,
        search=settings.search.to_json(),
        max_length=str(settings.max_length),
        max_text_bytes=str(settings.max_text_bytes),
        max_num_batched_tokens=str(settings.max_num_batched_tokens),
        max_queue_size=str(settings.max_queue_size),
    )
    if settings.truncation_side != "right":
        set_parameters(config, truncation_side=settings.truncation_side)
    return config
