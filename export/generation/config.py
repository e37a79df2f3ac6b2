"""`config.pbtxt` of a decoder: the vLLM backend's inputs and outputs, and this model's parameters."""

from __future__ import annotations

import json

from tritonclient.grpc import model_config_pb2 as triton

from export.generation.checkpoint import DecoderSettings
from export.generation.recipe import GenerationRecipe

# Source: the README of triton-inference-server/vllm_backend and its `_auto_complete_inputs_and_outputs`.
# `num_cached_tokens` and the input that asks for it are ours: what the prefix cache saved.
_STRING, _BOOL = triton.DataType.TYPE_STRING, triton.DataType.TYPE_BOOL
INPUTS = (
    ("text_input", _STRING, False),
    ("stream", _BOOL, True),
    ("sampling_parameters", _STRING, True),
    ("exclude_input_in_output", _BOOL, True),
    ("return_finish_reason", _BOOL, True),
    ("return_cumulative_logprob", _BOOL, True),
    ("return_logprobs", _BOOL, True),
    ("return_num_input_tokens", _BOOL, True),
    ("return_num_output_tokens", _BOOL, True),
    ("return_num_cached_tokens", _BOOL, True),
)
OUTPUTS = (
    ("text_output", _STRING, -1),
    ("finish_reason", _STRING, -1),
    ("cumulative_logprob", triton.DataType.TYPE_FP32, -1),
    ("logprobs", _STRING, -1),
    ("num_input_tokens", triton.DataType.TYPE_UINT32, 1),
    ("num_output_tokens", triton.DataType.TYPE_UINT32, -1),
    ("num_cached_tokens", triton.DataType.TYPE_UINT32, 1),
)
DEFAULT_CONTEXT = 2048


def context_of(recipe: GenerationRecipe, settings: DecoderSettings) -> int:
    """Tokens of a prompt and its answer together."""
    return min(recipe.max_length or DEFAULT_CONTEXT, settings.context)


def generation_config(
    recipe: GenerationRecipe, settings: DecoderSettings, *, version: int
) -> triton.ModelConfig:
    """Text [1] to text, in as many responses as it takes."""
    config = triton.ModelConfig(name=recipe.name, backend="python", max_batch_size=0)
    for name, kind, optional in INPUTS:
        config.input.append(triton.ModelInput(name=name, data_type=kind, dims=[1], optional=optional))
    for name, kind, size in OUTPUTS:
        config.output.append(triton.ModelOutput(name=name, data_type=kind, dims=[size]))
    config.model_transaction_policy.decoupled = True
    # One instance: it batches by itself, over one cache.
    group = config.instance_group.add(count=1)
    if recipe.gpu:
        group.kind = triton.ModelInstanceGroup.KIND_GPU
        group.gpus.append(0)
    config.version_policy.specific.versions.append(version)
    values = {
        "max_num_seqs": str(recipe.max_num_seqs),
        "max_model_len": str(context_of(recipe, settings)),
        "max_queue_size": str(recipe.max_queue_size),
        "prefix_cache_tokens": str(recipe.prefix_cache_tokens),
        "end_token_ids": ",".join(map(str, settings.ends)),
        "begin_token": settings.begin,
        "chat_template": settings.chat_template,
        "special_tokens": json.dumps(dict(settings.special_tokens)) if settings.chat_template else "",
        "default_sampling": json.dumps(dict(settings.sampling)) if settings.sampling else "",
    }
    for key, value in values.items():
        if value:
            config.parameters[key].string_value = value
    return config
