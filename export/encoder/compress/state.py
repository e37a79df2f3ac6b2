"""The saved state of a training run: killed at any moment, it goes on from the last save.

Two files: `step-<n>.safetensors` (weights and Adam's moments) and `state.json`, which names it and is
renamed into place after it is complete. Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors

from shoal.errors import UsageError
from shoal.paths import TEMPORARY, write_atomic

_FILE = "state.json"


@dataclass(frozen=True)
class State:
    """What a run has reached.

    Attributes:
        step: steps done.
        tensors: by name.
        figures: plain JSON values that go with them.
    """

    step: int
    tensors: Mapping[str, torch.Tensor]
    figures: dict[str, Any]


def save(folder: Path, run: Mapping[str, Any], state: State) -> None:
    """Replace the saved state by this one; atomic.

    Args:
        run: what the run is defined by; `load` compares it.

    Raises:
        UsageError: the folder cannot be written.
    """
    tensors = folder / f"step-{state.step:06d}.safetensors"
    text = json.dumps({"run": dict(run), "step": state.step, "figures": state.figures}, indent=1)
    try:
        write_atomic(tensors, safetensors(dict(state.tensors)))
        write_atomic(folder / _FILE, text + "\n")
        for old in (*folder.glob("step-*"), *folder.glob(f".*{TEMPORARY}")):
            if old != tensors:
                old.unlink()
    except (OSError, SafetensorError) as error:
        raise UsageError(f"the training state cannot be saved in {folder}: {error}") from error


def load(folder: Path, run: Mapping[str, Any]) -> State | None:
    """The saved state of this very run; None where none was saved. Makes the folder.

    Raises:
        UsageError: the folder holds another run, files that cannot be read, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made a folder for training: {error.strerror}") from error
    if not (folder / _FILE).exists():
        return None
    start_over = f"delete {folder} to start over, or give another folder"
    try:
        saved = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        step, found, figures = int(saved["step"]), dict(saved["run"]), dict(saved["figures"])
        tensors = load_file(folder / f"step-{step:06d}.safetensors")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UsageError(
            f"the training state in {folder} cannot be read: {error}", hint=start_over
        ) from error
    other = [
        f"{key} {found.get(key)} instead of {run.get(key)}"
        for key in sorted(run.keys() | found.keys())
        if found.get(key) != run.get(key)
    ]
    if other:
        raise UsageError(f"{folder} holds another training run: {', '.join(other)}", hint=start_over)
    return State(step, tensors, figures)
