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
        make: fills the folder, which does not exist yet.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, told = root / f"shared-{name}", root / f"shared-{name}.pickle"
    with FileLock(root / f"shared-{name}.lock"):
        if not told.exists():
            told.write_bytes(pickle.dumps(make(folder)))
        made: Made = pickle.loads(told.read_bytes())  # noqa: S301 - our own
    return folder, made
