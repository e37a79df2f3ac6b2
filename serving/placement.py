"""On which device a model runs that does not say so.

Triton places an instance group without a kind on the GPU of a machine that has one. A graph then needs
CUDA, which the package `onnxruntime` does not have, and the model could not be loaded; so it is placed on the
CPU, where its version was measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf import text_format

from shoal import model_config
from shoal.machine import gpus

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig


def on_cpu_without_cuda(config: str) -> str:
    """Place instance groups without a kind on the CPU, where ONNX Runtime cannot use the GPU that is here.

    Args:
        config: the text of a `config.pbtxt`.

    Returns:
        That text; as it is where there is no GPU, where ONNX Runtime has CUDA, or of an ensemble.
    """
    if not gpus() or _has_cuda() or model_config.is_ensemble(config):
        return config
    try:
        read = model_config.parse(config, strict=True)
    except text_format.ParseError:  # Triton says what is wrong with it
        return config
    if not read.instance_group:
        read.instance_group.add()
    for group in read.instance_group:
        if group.kind == group.KIND_AUTO:
            group.kind = group.KIND_CPU
    return model_config.to_text(read)


def on_gpu(config: ModelConfig) -> bool:
    """Whether the embedded server runs a model on a GPU."""
    auto = not config.instance_group or any(g.kind == g.KIND_AUTO for g in config.instance_group)
    return any(g.kind == g.KIND_GPU for g in config.instance_group) or (auto and bool(gpus()) and _has_cuda())


def _has_cuda() -> bool:
    import onnxruntime  # noqa: PLC0415 - only a machine with a GPU asks

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()
