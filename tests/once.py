"""What takes minutes to make is made once, and not by each of the workers of pytest-xdist."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from filelock import FileLock

Made = TypeVar("Made")


def made_once(
    tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Made]
) -> tuple[Path, Made]:
    """A folder that all workers share, and what the first of them got as it made its content.

    Args:
        name: of the folder.
        make: fills the folder; what one that failed has left is there.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    place = root / f"shared-{name}"  # of its own: an export works beside its repository
    place.mkdir(exist_ok=True)
    folder, told = place / "model_repository", place / "made.pickle"
    with FileLock(place / "lock"):
        if not told.exists():
            told.write_bytes(pickle.dumps(make(folder)))
        made: Made = pickle.loads(told.read_bytes())  # noqa: S301 - our own
    return folder, made
