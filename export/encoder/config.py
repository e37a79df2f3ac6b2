"""`config.pbtxt` of each model around an encoder, and of their ensemble."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence

from tritonclient.grpc import model_config_pb2 as triton

from export.checkpoint.opened import Opened
from export.encoder.recipe import EncoderRecipe
from export.encoder.rows import RowEncoder, TextEncoder
from export.encoder.setting import Setting
from export.encoder.tasks.images import ImageClassification, smallest_image
from export.encoder.tasks.task import Task
from export.encoder.tasks.text import SentenceSimilarity
from export.exported import Exported
from export.triton_config import (
    input_of,
    network_config,
    output_of,
    python_config,
    set_parameters,
    tensor_input,
)
from serving.models.images import MAX_RESIZED_PIXELS, Processor
from serving.models.tokenizer import most_request_tokens
from serving.parameters import MAX_RUN_PADDING, MAX_RUN_TOKENS
from shoal.dialect import INPUT_TOKENS
from shoal.machine import available_cpus
from shoal.names import ENCODER, OUTPUT, PREPROCESSOR, TOKENIZER, part_name
from shoal.tasks import FEATURES

# Of a model whose texts begin with what they are for; see `serving.models.layouts.Prompting`.
PROMPTS, PROMPT_NAME = "prompts", "prompt_name"
# Largest picture that is accepted, in bytes of its file and in pixels.
MAX_IMAGE_BYTES = 16 << 20
MAX_IMAGE_PIXELS = 50_000_000


def tokenizer_config(
    recipe: EncoderRecipe, task: Task, encode: TextEncoder, version: int
) -> triton.ModelConfig:
    """Texts to the features that the network, and the model behind it, read, and to the number of tokens."""
    config = python_config(part_name(recipe.name, TOKENIZER), batch_size_of(recipe, task), version)
    config.input.extend(_wire_inputs(task, encode))
    grouped = [-1] if encode.grouped else []
    for name in encode.features:
        feature = FEATURES[name]
        config.output.append(output_of(name, feature.dtype, [*grouped, *feature.dims]))
    config.output.append(output_of(INPUT_TOKENS, "INT32", [1]))
    set_parameters(
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


def image_config(recipe: EncoderRecipe, task: Task, processor: Processor, version: int) -> triton.ModelConfig:
    """Files of pictures to pixels."""
    config = python_config(part_name(recipe.name, PREPROCESSOR), batch_size_of(recipe, task), version)
    config.input.extend(_wire_inputs(task))
    config.output.append(output_of("pixel_values", "FP32", [3, -1, -1]))
    set_parameters(
        config,
        processor=processor.to_json(),
        max_image_bytes=str(MAX_IMAGE_BYTES),
        max_image_pixels=str(MAX_IMAGE_PIXELS),
        max_resized_pixels=str(MAX_RESIZED_PIXELS),
        max_queue_size=str(recipe.max_queue_size),
    )
    return config


def encoder_config(
    recipe: EncoderRecipe, task: Task, exported: Exported, setting: Setting, version: int
) -> triton.ModelConfig:
    """Features [n, ...] to what the head makes of them."""
    name = part_name(recipe.name, ENCODER)
    config = network_config(name, exported, batch_size_of(recipe, task), version)
    config.instance_group[0].count = setting.instances
    if setting.instances > 1:  # the C++ backend would give all CPUs to each
        set_parameters(config, intra_op_thread_count=str(setting.threads(available_cpus())))
    default = Setting()
    for key in (MAX_RUN_TOKENS, MAX_RUN_PADDING):
        if (value := getattr(setting, key)) != getattr(default, key):
            set_parameters(config, **{key: str(value)})
    return config


def output_config(
    recipe: EncoderRecipe, task: Task, exported: Exported, parameters: Mapping[str, str], version: int
) -> triton.ModelConfig:
    """The network's outputs and the tokenizer's features to answers."""
    config = python_config(part_name(recipe.name, OUTPUT), batch_size_of(recipe, task), version)
    (text,) = (entry for entry in _wire_inputs(task) if entry.name in ("text", "context"))
    config.input.append(text)
    for spec in exported.outputs:
        config.input.append(tensor_input(spec.name, spec.dtype, spec.dims[1:]))
    grouped = [-1] * (len(exported.inputs[0].dims) - 2)
    for name in task.contract.features:
        feature = FEATURES[name]
        config.input.append(input_of(name, feature.dtype, [*grouped, *feature.dims]))
    for name, tensor in task.contract.outputs.items():
        config.output.append(output_of(name, tensor.dtype, tensor.dims))
    set_parameters(config, **parameters)
    return config


def ensemble_config(
    recipe: EncoderRecipe,
    task: Task,
    encode: RowEncoder,
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
    wanted = [*task.contract.outputs]
    if task.layout is not None:  # those who call may want to tell their own users what a request has cost
        wanted.append(INPUT_TOKENS)
    config.output.extend(made[name] for name in wanted)
    for index, step in enumerate(steps):
        read_later = {entry.name for later in steps[index + 1 :] for entry in later.input}
        # What the last step makes is what users get, even where an earlier one has the same name.
        made_later = {entry.name for later in steps[index + 1 :] for entry in later.output}
        added = config.ensemble_scheduling.step.add(model_name=step.name, model_version=-1)
        for entry in step.input:
            added.input_map[entry.name] = entry.name
        for entry in step.output:
            given = entry.name in wanted and entry.name not in made_later
            if given or entry.name in read_later:
                added.output_map[entry.name] = entry.name
    set_parameters(config, **facts)
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


def batch_size_of(recipe: EncoderRecipe, task: Task) -> int:
    """Most rows in one request."""
    return recipe.max_batch_size or task.max_batch_size


def buckets_of(recipe: EncoderRecipe, max_length: int | None) -> list[int]:
    """Lengths in tokens to which the tokenizer pads; none of what has no tokens."""
    if not max_length:
        return []
    return [*(bucket for bucket in recipe.length_buckets if bucket < max_length), max_length]


def _request_tokens(recipe: EncoderRecipe, max_length: int) -> int:
    if recipe.max_request_tokens is None:
        return most_request_tokens(recipe.max_sequences, max_length)
    return max(recipe.max_request_tokens, max_length)  # one sequence always fits


def _wire_inputs(task: Task, encode: RowEncoder | None = None) -> list[triton.ModelInput]:
    """What users send; with prompts, where there are some, also which of them."""
    found = [input_of(name, "STRING", [count]) for name, count in task.contract.inputs.items()]
    if isinstance(encode, TextEncoder) and PROMPTS in encode.options:
        found.append(input_of(PROMPT_NAME, "STRING", [1], optional=True))
    return found
