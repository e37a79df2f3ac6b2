"""Which device a precision must be measured on."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnxruntime

from export.tensorrt import ACCELERATED, ENGINES
from export.tensorrt.library import Library
from serving.onnxruntime.options import BadConfig
from serving.onnxruntime.sessions import CPU, measured_session
from shoal.errors import ExportError
from shoal.machine import gpus

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"


def provider_of(precision: str, on_gpu: Sequence[str]) -> str:
    """ONNX Runtime's name of what runs a precision.

    Args:
        on_gpu: precisions that are for a GPU.
    """
    if precision not in on_gpu:
        return CPU
    return TENSORRT if precision == ACCELERATED else CUDA


def require_gpu(precisions: Sequence[str]) -> None:
    """What is for a GPU is measured on a GPU, and nothing is published unmeasured.

    Args:
        precisions: those that are for a GPU; with none, nothing is required.

    Raises:
        ExportError: there is none, or this onnxruntime cannot use it.
        MissingDependency: an engine is to be built, and TensorRT is not installed.
    """
    if not precisions:
        return
    providers = {provider_of(name, precisions) for name in precisions if name not in ENGINES}
    missing = sorted(providers.difference(onnxruntime.get_available_providers()))
    why = f"this onnxruntime has no {missing[0]}: install onnxruntime-gpu in its place" if missing else ""
    if not gpus():
        why = "there is none"
    if not why:
        try:
            for provider in sorted(providers):
                measured_session(smallest_graph(), provider=provider)
        except BadConfig as error:
            why = str(error)
    if why:
        raise ExportError(f"{', '.join(precisions)} must be measured on an NVIDIA GPU; {why}")
    if set(precisions).intersection(ENGINES):
        Library("tensorrt")


def smallest_graph() -> bytes:
    """A serialized model of one node, for a session that shows whether a provider can be used."""
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    made = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "smallest", [value], [made])
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9)
    return bytes(model.SerializeToString())
