"""Whether a TensorRT engine fits the machine that is to run it: library, version and GPU must be its own."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes.util import find_library
from dataclasses import dataclass
from typing import Any

from shoal.errors import RepositoryError

# Attributes of cuDeviceGetAttribute, from cuda.h.
_MAJOR, _MINOR = 75, 76


@dataclass(frozen=True)
class EngineRuntime:
    """What is to run an engine: the library, its version, the GPU's compute capability or None for no GPU."""

    flavour: str
    version: str
    compute_capability: str | None


def check_fits(engine: Mapping[str, Any], runner: EngineRuntime, rebuild: str) -> None:
    """Refuse an engine that would not load.

    Args:
        engine: its fingerprint, as a manifest holds it; see `export.tensorrt.fingerprint`.
        rebuild: the command that builds it anew on the machine that runs it.

    Raises:
        RepositoryError: library, version or GPU are others; the command is the hint.
    """
    built = f"{engine['flavour']} {engine['version']}"
    present = f"{runner.flavour} {runner.version}"
    capabilities = engine["compute_capabilities"]
    reason = ""
    if runner.compute_capability is None:
        reason = "the engine needs an NVIDIA GPU, here is none"
    elif _release(built) != _release(present):
        reason = f"the engine was built by {built}, here is {present}"
    elif runner.compute_capability not in capabilities:
        reason = (
            f"the engine was built for compute capability {', '.join(capabilities)}, "
            f"the GPU here has {runner.compute_capability}"
        )
    if reason:
        raise RepositoryError(reason, hint=f"build it again where it runs: {rebuild}")


def _release(version: str) -> list[str]:
    """Split a version without its build number, which only Python's package tells."""
    return version.split(".")[:3]


def triton_runtime() -> EngineRuntime:
    """What runs engines in the official container: the library that Triton's TensorRT backend loads.

    Untried: it takes that container.
    """
    path = find_library("nvinfer")
    number = int(ctypes.CDLL(path).getInferLibVersion()) if path else 0
    major, rest = divmod(number, 10_000)  # NV_TENSORRT_MAJOR * 10000 + MINOR * 100 + PATCH, NvInferVersion.h
    version = ".".join(map(str, (major, *divmod(rest, 100)))) if path else "(not installed)"
    return EngineRuntime("tensorrt", version, compute_capability())


def compute_capability() -> str | None:
    """Of the first GPU that CUDA shows to this process, e.g. `8.9`; None without a driver or a GPU.

    Asked of the driver itself, because it alone obeys CUDA_VISIBLE_DEVICES. Untried on a GPU.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, numbers = ctypes.c_int(), (ctypes.c_int(), ctypes.c_int())
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    for number, attribute in zip(numbers, (_MAJOR, _MINOR), strict=True):
        if cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device):
            return None
    return f"{numbers[0].value}.{numbers[1].value}"
