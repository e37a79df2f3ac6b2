"""`config.pbtxt` for each model of an ensemble, built from Triton's own protobuf.

No config names an instance kind: Triton places the same file on a CPU or a GPU.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence

from tritonclient.grpc import model_config_pb2 as triton

from export.exported import Exported
from export.opened import Opened
from export.recipe import Recipe
from export.tasks.images import ImageClassification, smallest_image
from export.tasks.task import Task
from export.tasks.text import SentenceSimilarity
from export.tokenization import Encoder, TextEncoder
from serving.models.images import MAX_RESIZED_PIXELS, Processor
from serving.models.tokenizer import most_request_tokens
from shoal.names import ENCODER, OUTPUT, PREPROCESSOR, TOKENIZER, part_name

# ONNX element types as Triton names them.
_DTYPES = {
    "FLOAT": "TYPE_FP32",
    "FLOAT16": "TYPE_FP16",
    "DOUBLE": "TYPE_FP64",
    "INT64": "TYPE_INT64",
    "INT32": "TYPE_INT32",
    "BOOL": "TYPE_BOOL",
    "STRING": "TYPE_STRING",
}


# What the tokenizer and the image processor give, as `serving.models` makes it.
_FEATURES = {
    "input_ids": ("TYPE_INT64", [-1]),
    "attention_mask": ("TYPE_INT64", [-1]),
    "token_type_ids": ("TYPE_INT64", [-1]),
    "pooling_mask": ("TYPE_INT64", [-1]),
    "offsets": ("TYPE_INT32", [-1, 2]),
    "word_offsets": ("TYPE_INT32", [-1, 2]),
    "special_tokens_mask": ("TYPE_BOOL", [-1]),
    "context_mask": ("TYPE_BOOL", [-1]),
    "subword": ("TYPE_BOOL", [-1]),
}
# What users get that the network does not make itself, as `serving.models` makes it.
_ANSWERS = {
    "entities": {
        "label": ("TYPE_STRING", [-1]),
        "score": ("TYPE_FP32", [-1]),
        "word": ("TYPE_STRING", [-1]),
        "start": ("TYPE_INT32", [-1]),
        "end": ("TYPE_INT32", [-1]),
    },
    "spans": {
        "answer": ("TYPE_STRING", [1]),
        "score": ("TYPE_FP32", [1]),
        "start": ("TYPE_INT32", [1]),
        "end": ("TYPE_INT32", [1]),
        "no_answer_score": ("TYPE_FP32", [1]),
    },
}
# Of a model whose texts begin with what they are for; see `serving.models.layouts.Prompting`.
PROMPTS, PROMPT_NAME = "prompts", "prompt_name"
# Largest picture that is accepted, in bytes of its file and in pixels.
MAX_IMAGE_BYTES = 16 << 20
MAX_IMAGE_PIXELS = 50_000_000


def tokenizer_config(recipe: Recipe, task: Task, encode: TextEncoder, version: int) -> triton.ModelConfig:
    """Texts to the features that the network, and the model behind it, read."""
    config = _python(part_name(recipe.name, TOKENIZER), recipe, task, version)
    config.input.extend(_wire_inputs(task, encode))
    grouped = [-1] if encode.grouped else []
    for name in encode.features:
        kind, dims = _FEATURES[name]
        config.output.append(_output(name, kind, grouped + dims))
    _set_parameters(
        config,
        layout=str(task.layout),
        max_length=str(encode.max_length),
        length_buckets=",".join(map(str, buckets_of(recipe, encode.max_length))),
        max_text_bytes=str(recipe.max_text_bytes),
        max_sequences=str(recipe.max_sequences),
        max_request_tokens=str(_request_tokens(recipe, encode.max_length)),
        max_queue_size=str(recipe.max_queue_size),
        pad_id=str(encode.pad_id),
        **encode.options,
    )
    return config


def image_config(recipe: Recipe, task: Task, processor: Processor, version: int) -> triton.ModelConfig:
    """Files of pictures to pixels."""
    config = _python(part_name(recipe.name, PREPROCESSOR), recipe, task, version)
    config.input.extend(_wire_inputs(task))
    config.output.append(_output("pixel_values", "TYPE_FP32", [3, -1, -1]))
    _set_parameters(
        config,
        processor=processor.to_json(),
        max_image_bytes=str(MAX_IMAGE_BYTES),
        max_image_pixels=str(MAX_IMAGE_PIXELS),
        max_resized_pixels=str(MAX_RESIZED_PIXELS),
        max_queue_size=str(recipe.max_queue_size),
    )
    return config


def encoder_config(recipe: Recipe, task: Task, exported: Exported, version: int) -> triton.ModelConfig:
    """Features [n, ...] to what the head makes of them."""
    return network_config(part_name(recipe.name, ENCODER), exported, batch_size_of(recipe, task), version)


def network_config(name: str, exported: Exported, max_batch_size: int, version: int) -> triton.ModelConfig:
    """A graph on ONNX Runtime, with the inputs and outputs that the graph states."""
    config = triton.ModelConfig(name=name, backend="onnxruntime", max_batch_size=max_batch_size)
    for spec in exported.inputs:
        config.input.append(tensor_input(spec.name, spec.dtype, spec.dims[1:]))
    for spec in exported.outputs:
        config.output.append(tensor_output(spec.name, spec.dtype, spec.dims[1:]))
    # One instance with all CPUs (or the GPU): Triton's own default is two that share them. No kind.
    config.instance_group.add(count=1)
    set_batching(config)
    _serve_version(config, version)
    return config


def output_config(
    recipe: Recipe, task: Task, exported: Exported, module: str, parameters: Mapping[str, str], version: int
) -> triton.ModelConfig:
    """The network's outputs and the tokenizer's features to answers."""
    config = _python(part_name(recipe.name, OUTPUT), recipe, task, version)
    (text,) = (entry for entry in _wire_inputs(task) if entry.name in ("text", "context"))
    config.input.append(text)
    for spec in exported.outputs:
        config.input.append(tensor_input(spec.name, spec.dtype, spec.dims[1:]))
    grouped = [-1] * (len(exported.inputs[0].dims) - 2)
    for name in task.features:
        kind, dims = _FEATURES[name]
        config.input.append(_input(name, kind, grouped + dims))
    for name in task.outputs:
        config.output.append(_output(name, *_ANSWERS[module][name]))
    _set_parameters(config, **parameters)
    return config


def ensemble_config(
    recipe: Recipe,
    task: Task,
    encode: Encoder,
    steps: Sequence[triton.ModelConfig],
    facts: Mapping[str, str],
    version: int,
) -> triton.ModelConfig:
    """What a person sends to what a person wants, through the steps; a tensor has one name everywhere.

    Args:
        encode: the first step.
        steps: configs in the order in which requests pass them.
        facts: what clients and health checks should know.
    """
    config = triton.ModelConfig(
        name=recipe.name, platform="ensemble", max_batch_size=batch_size_of(recipe, task)
    )
    config.input.extend(_wire_inputs(task, encode))
    made = {entry.name: entry for step in steps for entry in step.output}
    config.output.extend(made[name] for name in task.outputs)
    for index, step in enumerate(steps):
        read_later = {entry.name for later in steps[index + 1 :] for entry in later.input}
        # What the last step makes is what users get, even where an earlier one has the same name.
        made_later = {entry.name for later in steps[index + 1 :] for entry in later.output}
        added = config.ensemble_scheduling.step.add(model_name=step.name, model_version=-1)
        for entry in step.input:
            added.input_map[entry.name] = entry.name
        for entry in step.output:
            wanted = entry.name in task.outputs and entry.name not in made_later
            if wanted or entry.name in read_later:
                added.output_map[entry.name] = entry.name
    _set_parameters(config, **facts)
    if task.layout is not None:
        # Where the server has a response cache, equal texts get the answer of before. No answer depends on
        # its batch, so nobody can tell; without a cache the line does nothing.
        config.response_cache.enable = True
    return config


def facts_of(opened: Opened, task: Task) -> dict[str, str]:
    """Parameters of the model that users call, for those who call it and for health checks.

    `task`; `prompts`, JSON, of an embedding model whose texts begin with what they are for; `sample`, JSON, a
    row that it takes, where not any text is one.
    """
    facts = {"task": task.name}
    if opened.prompts:
        facts[PROMPTS] = json.dumps(opened.prompts)
    if isinstance(task, ImageClassification):
        picture = base64.b64encode(smallest_image()).decode()
        facts["sample"] = json.dumps({"image": [picture], "encoding": "base64"})
    elif not isinstance(task, SentenceSimilarity):
        facts["sample"] = json.dumps(task.row("Fish swim in shoals.", 0, opened))
    return facts


def batch_size_of(recipe: Recipe, task: Task) -> int:
    """Most rows in one request."""
    return recipe.max_batch_size or task.max_batch_size


def buckets_of(recipe: Recipe, max_length: int | None) -> list[int]:
    """Lengths in tokens to which the tokenizer pads; none of what has no tokens."""
    if not max_length:
        return []
    return [*(bucket for bucket in recipe.length_buckets if bucket < max_length), max_length]


def _request_tokens(recipe: Recipe, max_length: int) -> int:
    if recipe.max_request_tokens is None:
        return most_request_tokens(recipe.max_sequences, max_length)
    return max(recipe.max_request_tokens, max_length)  # one sequence always fits


def _python(name: str, recipe: Recipe, task: Task, version: int) -> triton.ModelConfig:
    config = triton.ModelConfig(name=name, backend="python", max_batch_size=batch_size_of(recipe, task))
    set_batching(config)
    _serve_version(config, version)
    return config


def set_batching(config: triton.ModelConfig) -> None:
    """Requests that are waiting run together; none waits for others to come.

    Nothing is set, neither priorities nor a queue policy: with either of them Triton 2.51 lets a request that
    comes while the model runs wait until another one comes, or for half a second.
    """
    config.dynamic_batching.SetInParent()


def _wire_inputs(task: Task, encode: Encoder | None = None) -> list[triton.ModelInput]:
    """What users send; with prompts, where there are some, also which of them."""
    found = [_input(name, "TYPE_STRING", [count]) for name, count in task.inputs.items()]
    if isinstance(encode, TextEncoder) and PROMPTS in encode.options:
        found.append(_input(PROMPT_NAME, "TYPE_STRING", [1]))
        found[-1].optional = True
    return found


def tensor_input(name: str, dtype: str, dims: Iterable[int]) -> triton.ModelInput:
    """An input of one row, of an ONNX element type such as `FLOAT`."""
    return _input(name, _DTYPES[dtype], dims)


def tensor_output(name: str, dtype: str, dims: Iterable[int]) -> triton.ModelOutput:
    """An output of one row, of an ONNX element type such as `FLOAT`."""
    return _output(name, _DTYPES[dtype], dims)


def _input(name: str, kind: str, dims: Iterable[int]) -> triton.ModelInput:
    """Of one row: Triton adds the batch dimension itself."""
    return triton.ModelInput(name=name, data_type=triton.DataType.Value(kind), dims=dims)


def _output(name: str, kind: str, dims: Iterable[int]) -> triton.ModelOutput:
    return triton.ModelOutput(name=name, data_type=triton.DataType.Value(kind), dims=dims)


def _serve_version(config: triton.ModelConfig, version: int) -> None:
    config.version_policy.specific.versions.append(version)


def _set_parameters(config: triton.ModelConfig, **values: str) -> None:
    for key, value in values.items():
        config.parameters[key].string_value = value
