"""What the supervisor of a service on this machine says of itself, in a file that `serving.service` reads."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from serving.ports import Ports
from shoal.errors import ShoalError
from shoal.machine import kernel
from shoal.paths import write_json

NAME = "service.json"


@dataclass(frozen=True)
class Record:
    """What is known of a service.

    Attributes:
        pid: of the supervisor.
        started: seconds since the epoch.
        ports: of its Triton.
        health_port: of its own health and metrics.
        repository: the model repository that it serves.
        state: file of `serving.supervisor.rollout.Rollout`.
        phase: `starting`, `serving` or `ended`.
        clean: it ended without having to kill anything.
        error: why it ended by itself; "": it did not.
        hint: what to do about that.
        gateway_port: where its gateway listens; None: it has none.
        kernel: see `shoal.machine.kernel`; the folder may be shared with other machines.
    """

    pid: int
    started: float
    ports: Ports
    health_port: int
    repository: Path
    state: Path
    phase: str = "starting"
    clean: bool = False
    error: str = ""
    hint: str = ""
    gateway_port: int | None = None
    kernel: str = field(default_factory=kernel)

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """What a folder holds; None: nothing, or nothing that can be read."""
        try:
            values = json.loads((folder / NAME).read_text(encoding="utf-8"))
            paths = {name: Path(values[name]) for name in ("repository", "state")}
            return cls(**{**values, **paths, "ports": Ports(**values["ports"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def to_dict(self) -> dict[str, Any]:
        """Give the value as plain JSON types."""
        return {**asdict(self), "repository": str(self.repository), "state": str(self.state)}


class Recorder:
    """Keeps the file up to date.

    Args:
        folder: of the service; None: nobody reads it, as in a container.
        record: how it begins.
    """

    def __init__(self, folder: Path | None, record: Record) -> None:
        self._folder, self._record = folder, record
        self._write()

    def serving(self) -> None:
        """Requests are answered."""
        self._become(phase="serving")

    def ended(self, *, clean: bool = True, error: ShoalError | None = None) -> None:
        """The end, asked for or by itself."""
        told = {"error": error.message, "hint": error.hint} if error else {}
        self._become(phase="ended", clean=clean, **told)

    def _become(self, **changes: Any) -> None:
        self._record = replace(self._record, **changes)
        self._write()

    def _write(self) -> None:
        if self._folder is not None:
            with suppress(OSError):  # a full disk, or the folder is gone: no reason not to serve
                write_json(self._folder / NAME, self._record.to_dict())
