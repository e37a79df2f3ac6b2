"""What the configs of all models have in common, built from Triton's own protobuf.

No config of a network names an instance kind: Triton places the same file on a CPU or a GPU. Where ONNX
Runtime has no CUDA, the embedded server shows it with a kind, see `serving.placement`.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from tritonclient.grpc import model_config_pb2 as triton
from tritonclient.utils import np_to_triton_dtype

from export.exported import Exported


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
    serve_version(config, version)
    return config


def python_config(name: str, max_batch_size: int, version: int) -> triton.ModelConfig:
    """A model of Triton's Python backend that batches what waits; inputs and outputs are still to come."""
    config = triton.ModelConfig(name=name, backend="python", max_batch_size=max_batch_size)
    set_batching(config)
    serve_version(config, version)
    return config


def set_batching(config: triton.ModelConfig) -> None:
    """Requests that are waiting run together; none waits for others to come.

    Nothing is set, neither priorities nor a queue policy: with either of them Triton 2.51 lets a request that
    comes while the model runs wait until another one comes, or for half a second.
    """
    config.dynamic_batching.SetInParent()


def tensor_input(name: str, dtype: str, dims: Iterable[int]) -> triton.ModelInput:
    """An input of one row, of an ONNX element type such as `FLOAT`."""
    return input_of(name, _dtype_of(dtype), dims)


def tensor_output(name: str, dtype: str, dims: Iterable[int]) -> triton.ModelOutput:
    """An output of one row, of an ONNX element type such as `FLOAT`."""
    return output_of(name, _dtype_of(dtype), dims)


def _dtype_of(element_type: str) -> str:
    """Triton's name of an ONNX element type."""
    number = onnx.TensorProto.DataType.Value(element_type)
    name = np_to_triton_dtype(onnx.helper.tensor_dtype_to_np_dtype(number))
    return "STRING" if name == "BYTES" else str(name)


def input_of(name: str, kind: str, dims: Iterable[int], *, optional: bool = False) -> triton.ModelInput:
    """An input of one row, of a type as Triton names it, e.g. `FP32`. Triton adds the batch dimension."""
    dtype = triton.DataType.Value(f"TYPE_{kind}")
    return triton.ModelInput(name=name, data_type=dtype, dims=dims, optional=optional)


def output_of(name: str, kind: str, dims: Iterable[int]) -> triton.ModelOutput:
    """An output of one row, of a type as Triton names it."""
    return triton.ModelOutput(name=name, data_type=triton.DataType.Value(f"TYPE_{kind}"), dims=dims)


def serve_version(config: triton.ModelConfig, version: int) -> None:
    """This version is served, and no other."""
    config.version_policy.specific.versions.append(version)


def set_parameters(config: triton.ModelConfig, **values: str) -> None:
    """What the model itself, those who call it and health checks read of its config."""
    for key, value in values.items():
        config.parameters[key].string_value = value
