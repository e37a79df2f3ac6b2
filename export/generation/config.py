"""`config.pbtxt` of a decoder: the vLLM backend's inputs and outputs, and this model's parameters."""

from __future__ import annotations

import json

from tritonclient.grpc import model_config_pb2 as triton

from export.generation.checkpoint import DecoderSettings
from export.generation.recipe import GenerationRecipe
from export.triton_config import input_of, output_of, serve_version, set_parameters
from shoal import dialect

_STRING, _BOOL = "STRING", "BOOL"
# A request has one of the first three.
INPUTS = (
    (dialect.TEXT_INPUT, _STRING, True),
    (dialect.MESSAGES, _STRING, True),
    (dialect.PROMPT_TOKENS, "INT32", True),
    (dialect.STREAM, _BOOL, True),
    (dialect.SAMPLING, _STRING, True),
    (dialect.EXCLUDE_INPUT, _BOOL, True),
    *((f"{dialect.RETURN}{name}", _BOOL, True) for name in dialect.ON_DEMAND),
)
OUTPUTS = (
    (dialect.TEXT_OUTPUT, _STRING, -1),
    (dialect.FINISH_REASON, _STRING, -1),
    (dialect.CUMULATIVE_LOGPROB, "FP32", -1),
    (dialect.LOGPROBS, _STRING, -1),
    (dialect.INPUT_TOKENS, "UINT32", 1),
    (dialect.OUTPUT_TOKENS, "UINT32", -1),
    (dialect.CACHED_TOKENS, "UINT32", 1),
    (dialect.PROMPT_LOGPROBS, _STRING, -1),
    (dialect.STOP_REASON, _STRING, 1),
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
        size = -1 if name == dialect.PROMPT_TOKENS else 1
        config.input.append(input_of(name, kind, [size], optional=optional))
    for name, kind, size in OUTPUTS:
        config.output.append(output_of(name, kind, [size]))
    config.model_transaction_policy.decoupled = True
    # One instance: it batches by itself, over one cache.
    group = config.instance_group.add(count=1)
    if recipe.gpu:
        group.kind = triton.ModelInstanceGroup.KIND_GPU
        group.gpus.append(0)
    serve_version(config, version)
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
    set_parameters(config, **{key: value for key, value in values.items() if value})
    return config
