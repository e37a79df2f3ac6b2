"""The two Tritons that can be started: the one that pip brings, and the one of the official container."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from serving.check import EMBEDDED
from serving.placement import on_cpu_without_cuda
from serving.ragged import with_ragged_batches
from serving.wheel import Wheel, find_wheel
from shoal.errors import ServerError


class Distribution(Protocol):
    """How a server is started."""

    @property
    def backends(self) -> tuple[str, ...] | None:
        """What its models may be made for; None: whatever the image holds."""
        ...

    def command(self, folder: Path) -> list[str]:
        """The program, with the arguments that every start of it needs.

        Args:
            folder: an empty one, for what it must find on disk.
        """
        ...

    def environment(self) -> Mapping[str, str]:
        """Environment variables of the process."""
        ...

    def shown(self, name: str, configs: Mapping[str, str]) -> str:
        """The text of a model's config as its backend needs it.

        Args:
            name: of the model.
            configs: by model, those that are served together.
        """
        ...


@dataclass(frozen=True)
class Embedded:
    """The server inside the wheel `nvidia-pytriton`, with our onnxruntime backend.

    Raises:
        MissingDependency, ServerError: see `wheel.find_wheel`.
    """

    wheel: Wheel
    backends: tuple[str, ...] = EMBEDDED

    @classmethod
    def find(cls) -> Embedded:
        """The one that is installed."""
        return cls(find_wheel())

    def command(self, folder: Path) -> list[str]:
        backends = folder / "backends"
        self._lay_out(backends)
        return [
            str(self.wheel.server),
            f"--backend-directory={backends}",
            f"--cache-directory={self.wheel.root / 'caches'}",
            "--allow-gpu-metrics=false",
        ]

    def environment(self) -> Mapping[str, str]:
        return self.wheel.environment()

    def shown(self, name: str, configs: Mapping[str, str]) -> str:
        return on_cpu_without_cuda(with_ragged_batches(name, configs))

    def _lay_out(self, folder: Path) -> None:
        """The backend directory: Triton's Python backend, and ours, each where Triton looks for it.

        Copies of 3 MB: Triton refuses a library that a symlink takes out of its backend directory.
        """
        python = folder / "python"
        python.mkdir(parents=True)
        for part in (*(self.wheel.root / "backends" / "python").glob("*.*"), self.wheel.stub):
            shutil.copy(part, python)
        onnxruntime = folder / "onnxruntime"
        onnxruntime.mkdir()
        (onnxruntime / "model.py").write_text(
            "from serving.backends.onnxruntime.model import TritonPythonModel  # noqa: F401\n"
        )


@dataclass(frozen=True)
class Installed:
    """The server of the official container, with its own backends. Untried: the image could not be had."""

    server: Path
    backends: tuple[str, ...] | None = None

    @classmethod
    def find(cls) -> Installed:
        """The one on PATH.

        Raises:
            ServerError: there is none.
        """
        path = shutil.which("tritonserver")
        if path is None:
            raise ServerError(
                "there is no tritonserver on PATH", hint="this is for NVIDIA's Triton container"
            )
        return cls(Path(path))

    def command(self, folder: Path) -> list[str]:
        return [str(self.server)]

    def environment(self) -> Mapping[str, str]:
        return os.environ

    def shown(self, name: str, configs: Mapping[str, str]) -> str:
        return configs[name]
