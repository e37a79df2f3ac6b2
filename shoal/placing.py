"""New versions appear in a model repository whole or not at all: staged beside it, and renamed into place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shoal.change import write_together
from shoal.errors import RepositoryError
from shoal.paths import sync_folder
from shoal.repository import locked


@contextmanager
def staging(repository: Path) -> Iterator[Path]:
    """A folder to work in on the repository's own file system, gone afterwards whatever happens.

    Raises:
        RepositoryError: the repository cannot be written, or another command is writing to it.
    """
    try:
        repository.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RepositoryError(
            f"{repository} cannot be written: {error.strerror}",
            hint="choose another --repository or its permissions",
        ) from error
    with locked(repository) as prefix:
        folder = Path(tempfile.mkdtemp(prefix=f"{prefix.name}-", dir=prefix.parent))
        try:
            _check_writable(repository)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _check_writable(repository: Path) -> None:
    """Check before minutes of work and not after: the repository and each model in it take new folders."""
    for folder in (repository, *(path.parent for path in repository.glob("*/config.pbtxt"))):
        tempfile.TemporaryFile(dir=folder).close()


def put_in_place(repository: Path, staged: Path, order: Sequence[str], texts: dict[Path, str]) -> None:
    """Let staged versions appear, then serve them: all of it or, where something fails, nothing.

    Args:
        staged: holds a folder for each model that is new or has new versions.
        order: models, each after those that it needs.
        texts: files that select what is served, as `shoal.change.write_together` takes them. A new model's
            appear with it.

    Raises:
        OSError: the disk is full or the repository cannot be written; nothing was changed.
    """
    staged.mkdir(parents=True, exist_ok=True)
    for model in order:
        if not (repository / model).exists():
            (staged / model).mkdir(parents=True, exist_ok=True)
            for name in [name for name in texts if name.parts[0] == model]:
                (staged / name).write_text(texts.pop(name), encoding="utf-8")
    sync(staged)
    moved: list[tuple[Path, Path]] = []
    try:
        for model in order:
            for source, place in _moves(staged / model, repository / model):
                source.rename(place)
                moved.append((source, place))
        for parent in sorted({place.parent for _, place in moved}):
            sync_folder(parent)
        write_together(repository, texts)
    except BaseException:
        for source, place in reversed(moved):
            place.rename(source)
        raise


def _moves(staged: Path, model: Path) -> list[tuple[Path, Path]]:
    """A new model in one rename, config and all; new versions of a known one in one each.

    A version's folder may be there: without a file a rename takes its place, and with files it gets those
    that it lacks.
    """
    if not model.exists():
        return [(staged, model)]
    moves: list[tuple[Path, Path]] = []
    for version in sorted(path for path in staged.glob("*") if path.is_dir()):
        place = model / version.name
        if place.exists() and any(place.iterdir()):
            moves += [(file, place / file.name) for file in sorted(version.iterdir())]
        else:
            moves.append((version, place))
    return moves


def sync(folder: Path) -> None:
    """Force a folder and all in it to the disk, so that a rename never publishes what is not written."""
    for path in (folder, *folder.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
