"""Open an ONNX file on the right device, and run many requests as one.

Knows ONNX Runtime and numpy, not Triton.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from serving.backends.onnxruntime.settings import BadConfig, Settings

Arrays = Mapping[str, NDArray]


def open_session(
    path: Path, settings: Settings, *, gpu: int | None = None
) -> onnxruntime.InferenceSession:
    """Load a graph.

    Args:
        gpu: CUDA device of a GPU instance; None: the CPU.

    Raises:
        BadConfig: an accelerator that was asked for is not installed.
        RuntimeError: ONNX Runtime cannot load the file; the message names it.
    """
    options = settings.session_options()
    if gpu is not None:
        wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        if "tensorrt" in settings.accelerators:
            wanted.insert(0, "TensorrtExecutionProvider")
        missing = set(wanted) - set(onnxruntime.get_available_providers())
        if missing:
            raise BadConfig(
                f"a GPU instance needs {', '.join(sorted(missing))}, which this onnxruntime lacks;"
                " install onnxruntime-gpu, or set instance_group { kind: KIND_CPU }"
            )
        providers = [(name, {"device_id": gpu} if name[0] != "C" or "CUDA" in name else {}) for name in wanted]
        return _load(path, options, providers)
    if "openvino" in settings.accelerators:
        _add_openvino(options)
        return _load(path, options, None)
    return _load(path, options, ["CPUExecutionProvider"])


def _load(
    path: Path, options: onnxruntime.SessionOptions, providers: list | None
) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime raises its own classes, which share no base but this
        reason = str(error).strip().splitlines()[0]
        raise RuntimeError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {reason}") from error


def _add_openvino(options: onnxruntime.SessionOptions) -> None:
    """OpenVINO on the CPU through its plug-in package; the rest of the graph stays with ONNX Runtime."""
    try:
        plugin = importlib.import_module("onnxruntime_ep_openvino")
    except ModuleNotFoundError:
        raise BadConfig(
            "the accelerator openvino needs the package onnxruntime-ep-openvino: pip install 'shoal[openvino]'"
        ) from None
    name = plugin.get_ep_name()
    if not any(device.ep_name == name for device in onnxruntime.get_ep_devices()):
        onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
    cpu = onnxruntime.OrtHardwareDeviceType.CPU
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == name and d.device.type == cpu]
    if not devices:
        raise BadConfig("the accelerator openvino finds no CPU it can use")
    options.add_provider_for_devices(devices[:1], {})


def run_together(
    session: onnxruntime.InferenceSession, outputs: Sequence[str], requests: Sequence[Arrays]
) -> list[list[NDArray]]:
    """Run the requests as one batch and split the result by their rows.

    Args:
        outputs: names of the graph's outputs to compute.
        requests: the inputs of each, arrays whose first dimension is the batch.

    Returns:
        For each request its outputs, in the order of `outputs`.
    """
    if len(requests) == 1:
        return [session.run(list(outputs), dict(requests[0]))]
    joined = {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}
    rows = [len(next(iter(request.values()))) for request in requests]
    results = session.run(list(outputs), joined)
    ends = np.cumsum(rows)[:-1]
    return [list(parts) for parts in zip(*(np.split(result, ends) for result in results), strict=True)]
