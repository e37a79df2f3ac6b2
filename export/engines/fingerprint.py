"""What an engine was built from, with and for, and whether it fits the machine that is to run it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from export.engines.shapes import Profile, Shape
from shoal.errors import ExportError

# Attributes of cuDeviceGetAttribute, from cuda.h.
_MAJOR, _MINOR = 75, 76


@dataclass(frozen=True)
class Fingerprint:
    """For the manifest, and for `check_fits`.

    Attributes:
        flavour: `tensorrt`, or `tensorrt-rtx`, whose engines Triton does not load.
        version: of that library; an engine is read by the same version only.
        compute_capabilities: of the GPUs it runs on, e.g. `8.9`.
        onnx_sha256: of the graph it was built from.
        strongly_typed: precision is that of the graph's own types and nowhere lower.
        profiles: in the engine's order, which is the order Triton counts them in.
    """

    flavour: str
    version: str
    compute_capabilities: tuple[str, ...]
    onnx_sha256: str
    strongly_typed: bool
    profiles: tuple[Profile, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return vars(self) | {
            "compute_capabilities": list(self.compute_capabilities),
            "profiles": [{key: list(shape) for key, shape in vars(p).items()} for p in self.profiles],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Fingerprint:
        """From what `to_dict` gave."""
        profiles = tuple(
            Profile(**{key: Shape(*dims) for key, dims in profile.items()}) for profile in values["profiles"]
        )
        capabilities = tuple(values["compute_capabilities"])
        return cls(**(values | {"compute_capabilities": capabilities, "profiles": profiles}))


@dataclass(frozen=True)
class Runner:
    """What is to run an engine: the library, its version, the GPU's compute capability or None for no GPU."""

    flavour: str
    version: str
    compute_capability: str | None


def check_fits(fingerprint: Fingerprint, runner: Runner, rebuild: str) -> None:
    """Refuse an engine that would not load.

    Args:
        rebuild: the command that builds it anew on the machine that runs it.

    Raises:
        ExportError: library, version or GPU are others; the command is the hint.
    """
    built = f"{fingerprint.flavour} {fingerprint.version}"
    present = f"{runner.flavour} {runner.version}"
    reason = ""
    if built != present:
        reason = f"the engine was built by {built}, here is {present}"
    elif runner.compute_capability is None:
        reason = "the engine needs an NVIDIA GPU, here is none"
    elif runner.compute_capability not in fingerprint.compute_capabilities:
        reason = (
            f"the engine was built for compute capability {', '.join(fingerprint.compute_capabilities)}, "
            f"the GPU here has {runner.compute_capability}"
        )
    if reason:
        raise ExportError(reason, hint=f"build it again where it runs: {rebuild}")


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
