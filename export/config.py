"""`config.pbtxt` for each model of an ensemble, built from Triton's own protobuf.

No config names an instance kind: Triton places the same file on a CPU or a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from export.exported import Exported, TensorSpec
from export.recipe import Recipe

TEXT = "text"
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


def tokenizer_config(
    recipe: Recipe, exported: Exported, *, version: int, max_length: int, pad_id: int
) -> triton.ModelConfig:
    """Text [n, 1] to the inputs of the network."""
    config = triton.ModelConfig(
        name=f"{recipe.name}_tokenizer", backend="python", max_batch_size=recipe.max_batch_size
    )
    config.input.append(_text_input())
    config.output.extend(_output(spec) for spec in exported.inputs)
    config.dynamic_batching.SetInParent()
    _serve_version(config, version)
    buckets = [bucket for bucket in recipe.length_buckets if bucket < max_length] + [max_length]
    _set_parameters(
        config,
        max_length=str(max_length),
        length_buckets=",".join(map(str, buckets)),
        max_text_bytes=str(recipe.max_text_bytes),
        pad_id=str(pad_id),
    )
    return config


def encoder_config(recipe: Recipe, exported: Exported, *, version: int) -> triton.ModelConfig:
    """Token ids [n, tokens] to embeddings [n, width]."""
    config = triton.ModelConfig(
        name=f"{recipe.name}_encoder", backend="onnxruntime", max_batch_size=recipe.max_batch_size
    )
    config.input.extend(_input(spec) for spec in exported.inputs)
    config.output.extend(_output(spec) for spec in exported.outputs)
    # One instance with all CPUs (or the GPU): Triton's own default is two that share them. No kind.
    config.instance_group.add(count=1)
    # Requests that are waiting run together; none waits for others to come.
    config.dynamic_batching.SetInParent()
    _serve_version(config, version)
    return config


def ensemble_config(recipe: Recipe, exported: Exported) -> triton.ModelConfig:
    """Text [n, 1] to embeddings [n, width], through both."""
    config = triton.ModelConfig(name=recipe.name, platform="ensemble", max_batch_size=recipe.max_batch_size)
    config.input.append(_text_input())
    config.output.extend(_output(spec) for spec in exported.outputs)
    tokenize = config.ensemble_scheduling.step.add(model_name=f"{recipe.name}_tokenizer", model_version=-1)
    tokenize.input_map[TEXT] = TEXT
    encode = config.ensemble_scheduling.step.add(model_name=f"{recipe.name}_encoder", model_version=-1)
    for spec in exported.inputs:
        tokenize.output_map[spec.name] = spec.name
        encode.input_map[spec.name] = spec.name
    for spec in exported.outputs:
        encode.output_map[spec.name] = spec.name
    return config


def to_text(config: triton.ModelConfig) -> str:
    """As `config.pbtxt`, fields in the protobuf's order, maps sorted by key."""
    return text_format.MessageToString(config, use_index_order=True)


def _text_input() -> triton.ModelInput:
    return triton.ModelInput(name=TEXT, data_type=triton.DataType.TYPE_STRING, dims=[1])


def _input(spec: TensorSpec) -> triton.ModelInput:
    return triton.ModelInput(name=spec.name, data_type=_data_type(spec), dims=_row(spec))


def _output(spec: TensorSpec) -> triton.ModelOutput:
    return triton.ModelOutput(name=spec.name, data_type=_data_type(spec), dims=_row(spec))


def _data_type(spec: TensorSpec) -> int:
    return int(triton.DataType.Value(_DTYPES[spec.dtype]))


def _row(spec: TensorSpec) -> Iterable[int]:
    """The dims of one row: Triton adds the batch dimension itself."""
    return spec.dims[1:]


def _serve_version(config: triton.ModelConfig, version: int) -> None:
    config.version_policy.specific.versions.append(version)


def _set_parameters(config: triton.ModelConfig, **values: str) -> None:
    for key, value in values.items():
        config.parameters[key].string_value = value
