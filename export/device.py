"""Where a precision must be measured."""

from __future__ import annotations

from collections.abc import Sequence

import onnxruntime

from shoal.errors import ExportError
from shoal.machine import gpus


def require_gpu(precisions: Sequence[str]) -> None:
    """A GPU's graph is measured on a GPU, and nothing is published unmeasured.

    Args:
        precisions: those that are for a GPU; with none, nothing is required.

    Raises:
        ExportError: there is none, or this onnxruntime cannot use it.
    """
    if not precisions:
        return
    why = "" if gpus() else "there is none"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        why = "this onnxruntime has no CUDA: install onnxruntime-gpu in its place"
    if why:
        raise ExportError(f"{', '.join(precisions)} must be measured on an NVIDIA GPU; {why}")
