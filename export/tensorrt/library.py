"""TensorRT, or in its place TensorRT-RTX: one API under two names, met here and nowhere else.

`tensorrt` comes with the official container and builds for the GPU it finds. `tensorrt-rtx` builds for GPUs
that are not there; Triton does not load its engines, so they are proof that a graph can be built, not what
is served.
"""

from __future__ import annotations

import importlib
from typing import Any

from shoal.errors import ExportError, MissingDependency
from shoal.tensorrt import EngineRuntime, compute_capability

FLAVOURS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


class Library:
    """The module, with its messages kept for the one line that an error is.

    Args:
        flavour: `tensorrt` or `tensorrt-rtx`; None: the first of them that is installed.

    Raises:
        MissingDependency: it is not installed, or none is.
    """

    def __init__(self, flavour: str | None = None) -> None:
        for name in [flavour] if flavour else FLAVOURS:
            try:
                self.trt: Any = importlib.import_module(FLAVOURS[name])
            except ImportError:
                continue
            self.flavour = name
            break
        else:
            extra = "gpu" if flavour == "tensorrt" else "tensorrt-rtx"
            raise MissingDependency(flavour or "TensorRT", extra=extra)
        self.version: str = self.trt.__version__
        self.ahead_of_time = self.flavour == "tensorrt-rtx"
        self.errors: list[str] = []
        self.logger = _logger(self.trt, self.errors)

    @property
    def runner(self) -> EngineRuntime:
        """What runs engines on this machine."""
        return EngineRuntime(self.flavour, self.version, compute_capability())

    def builder(self) -> Any:
        """A builder.

        Raises:
            ExportError: there is no GPU, and this TensorRT builds only for the one it runs on.
        """
        try:
            return self.trt.Builder(self.logger)
        except TypeError as error:  # pybind's word for a factory that returned nothing
            raise self.failure("cannot build here", needs_gpu=True) from error

    def open(self, engine: bytes) -> Any:
        """An engine, ready to be asked or run: an `ICudaEngine`. Untried where there is a GPU.

        Raises:
            ExportError: there is no GPU, or the engine was built for another or by another version.
        """
        self.errors.clear()
        opened = self.trt.Runtime(self.logger).deserialize_cuda_engine(engine)
        if opened is None:
            raise self.failure("cannot open the engine", needs_gpu=True)
        return opened

    def failure(self, what: str, *, needs_gpu: bool = False) -> ExportError:
        """What failed, with the first thing that TensorRT said of it."""
        reason = f": {one_line(self.errors[0])}" if self.errors else ""
        missing = needs_gpu and compute_capability() is None
        hint = "this takes an NVIDIA GPU and its driver; here is none" if missing else ""
        return ExportError(f"{self.flavour} {self.version} {what}{reason}", hint=hint)


def one_line(text: str) -> str:
    """A message of several lines as one, cut where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= 300 else f"{text[:300]}…"


def _logger(trt: Any, errors: list[str]) -> Any:
    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                errors.append(message)

    return Logger()
