"""Copies of a model repository by links, beside it, for servers that try something."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shoal.locks import Busy, lock


@contextmanager
def scratch_beside(repository: Path, prefix: str) -> Iterator[Path]:
    """A folder beside the repository, to which its files can be linked, gone afterwards.

    Args:
        prefix: of its name, such as `.tune-`. What a killed process left under it goes, too.
    """
    for left in repository.parent.glob(f"{prefix}*"):
        with suppress(Busy, OSError):  # of one that runs
            descriptor = lock(left, exclusive=True)
            shutil.rmtree(left, ignore_errors=True)
            os.close(descriptor)
    beside = os.access(repository.parent, os.W_OK)
    with tempfile.TemporaryDirectory(dir=repository.parent if beside else None, prefix=prefix) as folder:
        descriptor = lock(Path(folder), exclusive=True)
        try:
            yield Path(folder)
        finally:
            os.close(descriptor)


def linked(source: str, place: str) -> None:
    """A link, which takes no room; a copy where the file system has none. For `shutil.copytree`."""
    try:
        os.link(source, place)
    except OSError:
        shutil.copy2(source, place)
