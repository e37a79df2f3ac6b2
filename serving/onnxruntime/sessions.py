"""Open an ONNX file on the right device, and run many requests as one.

Knows ONNX Runtime and numpy, not Triton.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import io
import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from serving.onnxruntime.options import ACCELERATORS, BadConfig, Options, session_options
from shoal.errors import first_line, install_hint
from shoal.manifest import FILENAME, Manifest
from shoal.paths import named

Arrays = Mapping[str, NDArray]
# Execution providers with their options, in the order they are asked for.
Providers = Sequence[tuple[str, dict[str, int]]]
CPU = "CPUExecutionProvider"
DRIVER = "look at NVIDIA's driver: nvidia-smi"


def open_session(path: Path, asked: Options, *, gpu: int | None = None) -> onnxruntime.InferenceSession:
    """Load a graph.

    Args:
        asked: what the model's config asks of the session.
        gpu: CUDA device of a GPU instance; None: the CPU.

    Raises:
        BadConfig: an accelerator that was asked for is not installed, or the GPU cannot be used.
        RuntimeError: ONNX Runtime cannot load the file; the message names it.
    """
    options = asked.session_options()
    device = "cpu" if gpu is None else "gpu"
    misplaced = [name for name in asked.accelerators if name not in ACCELERATORS[device]]
    if misplaced:
        raise BadConfig(f"the accelerator {misplaced[0]} is not for a {device} instance")
    if gpu is None and "openvino" in asked.accelerators:
        _add_openvino(options)
        return load_session(path, options, None)
    return load_session(path, options, providers_of(gpu, tensorrt="tensorrt" in asked.accelerators))


def measured_session(
    model: Path | bytes, *, threads: int = 0, provider: str = CPU
) -> onnxruntime.InferenceSession:
    """Load a graph to measure or to convert it.

    Args:
        model: its file or its content.
        threads: threads inside one operator; 0: as many as ONNX Runtime chooses.
        provider: the execution provider asked for first; the CPU takes what it has no kernel for.

    Raises:
        BadConfig: the provider cannot be used.
        Exception: ONNX Runtime cannot load it; its classes share no other base.
    """
    given = model if isinstance(model, bytes) else named(model)
    options = session_options(threads, measured=True)
    return _open(given, options, [(name, {}) for name in dict.fromkeys((provider, CPU))])


def providers_of(gpu: int | None, *, tensorrt: bool = False) -> Providers:
    """Execution providers in the order they are asked for.

    Args:
        gpu: number of the CUDA device; None: the CPU alone.

    Raises:
        BadConfig: this onnxruntime lacks one of them.
    """
    wanted = [CPU]
    if gpu is not None:
        wanted.insert(0, "CUDAExecutionProvider")
    if tensorrt:
        wanted.insert(0, "TensorrtExecutionProvider")
    missing = set(wanted) - set(onnxruntime.get_available_providers())
    if missing:
        raise BadConfig(
            f"a GPU instance needs {', '.join(sorted(missing))}, which this onnxruntime lacks;"
            " install onnxruntime-gpu, or set instance_group { kind: KIND_CPU }"
        )
    return [(name, {} if gpu is None or name == CPU else {"device_id": gpu}) for name in wanted]


def check_runtime(version: Path, package: str = "onnxruntime") -> None:
    """Compare the library that runs a version with the one that made it, where its manifest says.

    Args:
        package: the library, by the name in the manifest; one that is not installed is no business of this.

    Raises:
        BadConfig: this one is older, so it may lack an operator, or compute one otherwise.
    """
    manifest = version / FILENAME
    if not manifest.exists():
        return
    made_with = Manifest.load(manifest).tools.get(package, "0.0")
    installed = onnxruntime.__version__ if package == "onnxruntime" else _version_of(package, made_with)
    if _release(installed) < _release(made_with):
        raise BadConfig(
            f"{version} was made with {package} {made_with}, this is {installed};"
            f" upgrade {package}, or export again with this one"
        )


def _version_of(package: str, otherwise: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return otherwise


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def load_session(
    path: Path, options: onnxruntime.SessionOptions, providers: Providers | None
) -> onnxruntime.InferenceSession:
    """Load a graph to serve it.

    Args:
        providers: from `providers_of`; None: those that `options` brings.

    Raises:
        BadConfig: a provider that was asked for cannot be used.
        RuntimeError: ONNX Runtime cannot load the file; the message names it.
    """
    # Resolved: weights in another file must lie beside the graph, not beside a link to it.
    try:
        return _open(named(path.resolve()), options, providers)
    except BadConfig:
        raise
    except Exception as error:  # onnxruntime raises its own classes, which share no base but this
        raise RuntimeError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {named(path)}: {first_line(error)}"
        ) from error


def _open(
    model: str | bytes, options: onnxruntime.SessionOptions, providers: Providers | None
) -> onnxruntime.InferenceSession:
    on_gpu = {name for name, _ in providers or ()} - {CPU}
    if on_gpu:
        _find_cuda()
    session = onnxruntime.InferenceSession(model, options, providers=providers)
    # Where a provider's libraries cannot be loaded, ONNX Runtime takes the next one and prints a warning.
    lost = sorted(on_gpu.difference(session.get_providers()))
    if lost:
        raise BadConfig(f"ONNX Runtime cannot use {lost[0]}: {_why_not(lost[0])}")
    return session


@functools.cache
def _find_cuda() -> None:
    """Load CUDA and cuDNN from NVIDIA's Python packages, where they are installed.

    The dynamic linker does not look there; what it finds elsewhere serves as well.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        onnxruntime.preload_dlls()


def _why_not(provider: str) -> str:
    """What the dynamic linker says of a provider's library."""
    name = provider.removesuffix("ExecutionProvider").lower()
    library = Path(onnxruntime.__file__).parent / "capi" / f"libonnxruntime_providers_{name}.so"
    try:
        ctypes.CDLL(named(library), os.RTLD_LAZY)
    except OSError as error:
        # `libcudnn.so.9: cannot open shared object file: No such file or directory`
        reason = first_line(error)
        return f"{reason}; {DRIVER if 'libcuda.so' in reason else install_hint('gpu')}"
    return f"its libraries load; {DRIVER}"


def _add_openvino(options: onnxruntime.SessionOptions) -> None:
    """OpenVINO on the CPU through its plug-in package; the rest of the graph stays with ONNX Runtime."""
    try:
        plugin = importlib.import_module("onnxruntime_ep_openvino")
    except ModuleNotFoundError:
        raise BadConfig(
            f"the accelerator openvino needs onnxruntime-ep-openvino; {install_hint('openvino')}"
        ) from None
    name = plugin.get_ep_name()
    if not any(device.ep_name == name for device in onnxruntime.get_ep_devices()):
        onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
    cpu = onnxruntime.OrtHardwareDeviceType.CPU
    found = [d for d in onnxruntime.get_ep_devices() if d.device.type == cpu]
    devices = [d for d in found if d.ep_name == name]
    if not devices:
        makers = " and ".join(sorted({d.device.vendor for d in found}))
        raise BadConfig(
            f"the accelerator openvino takes Intel CPUs only, and this one is by {makers};"
            " take cpu_execution_accelerator out of config.pbtxt"
        )
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
