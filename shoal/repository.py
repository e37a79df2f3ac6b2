"""Which versions of a model a repository holds and which it serves: promote, roll back, prune.

A manifest holds the configs that serve its version, so that serving one takes neither the checkpoint nor
what exported it. What was served is kept in `served.json` beside the network's config, oldest first. A
server that runs goes on with what it has loaded, and the next start serves what is chosen here; under the
supervisor a running server takes it up.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from shoal.errors import RepositoryError
from shoal.manifest import Manifest, manifests, served_versions
from shoal.paths import write_atomic, write_json

STAGING = ".shoal-staging-"
HISTORY = "served.json"
MOST_ENTRIES = 100


@contextmanager
def locked(repository: Path) -> Iterator[Path]:
    """Keep others from writing to a repository.

    Yields:
        What to begin the name of a staging folder with: a path on the repository's own file system.

    Raises:
        RepositoryError: another is writing to it, or it cannot be written.
    """
    try:
        parent = _staging_parent(repository)
        prefix = f"{STAGING}{hashlib.sha256(bytes(repository.resolve())).hexdigest()[:12]}"
        lock = FileLock(parent / f"{prefix}.lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise RepositoryError(
            f"another export is writing to {repository}",
            hint="wait for it to end, or choose another --repository",
        ) from None
    except OSError as error:
        raise not_writable(repository, error) from error
    try:
        yield parent / prefix
    finally:
        lock.release()  # the file stays: removing it would let two exports lock two files of one name


def not_writable(repository: Path, error: OSError) -> RepositoryError:
    """What to raise where a repository cannot be written."""
    return RepositoryError(
        f"{repository} cannot be written: {error.strerror}",
        hint="choose another --repository or its permissions",
    )


def _staging_parent(repository: Path) -> Path:
    """Beside the repository: Triton takes any folder inside it for a model. A repository that is a mount
    point has another file system beside it; there a server must not start while an export is running."""
    parent = repository.resolve().parent
    beside = parent.stat().st_dev == repository.stat().st_dev and os.access(parent, os.W_OK)
    return parent if beside else repository


def versions_of(repository: Path, name: str) -> dict[int, Manifest]:
    """The manifests of a model by version.

    Raises:
        RepositoryError: there is none, or one cannot be read.
    """
    found = {manifest.version: manifest for manifest in manifests(repository, name)}
    if not found:
        raise RepositoryError(f"{repository} holds no version of {name}", hint=f"shoal export --name {name}")
    return found


def version_of(repository: Path, name: str, version: int) -> Manifest:
    """One manifest.

    Raises:
        RepositoryError: there is no such version.
    """
    found = versions_of(repository, name)
    if version not in found:
        known = ", ".join(map(str, found))
        raise RepositoryError(f"{name} has no version {version}", hint=f"it has {known}")
    return found[version]


def served_version(repository: Path, network: str) -> int | None:
    """The version that a network's config selects, or None where it selects none."""
    return max(served_versions(repository / network), default=None)


def record_served(repository: Path, network: str, version: int, before: Sequence[int]) -> None:
    """Note that a version is served from now on.

    Args:
        before: from `served_before`, taken before the configs were written.
    """
    history = [*before] if before[-1:] == [version] else [*before, version]
    write_json(repository / network / HISTORY, history[-MOST_ENTRIES:])


def served_before(repository: Path, network: str) -> list[int]:
    """Versions in the order in which they were served, the last now; without a history, what is served.

    Raises:
        RepositoryError: the history cannot be read.
    """
    path = repository / network / HISTORY
    try:
        return [int(version) for version in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        version = served_version(repository, network)
        return [] if version is None else [version]
    except (OSError, ValueError, TypeError) as error:
        raise RepositoryError(f"{path} cannot be read: {error}", hint="remove it") from error


def promote(repository: Path, name: str, version: int) -> Manifest:
    """Serve a version from the next start on.

    Raises:
        RepositoryError: there is no such version, its files are not those that were measured, or the
            repository cannot be written.
    """
    with locked(repository):
        manifest = version_of(repository, name, version)
        return _serve(repository, manifest, served_before(repository, manifest.network))


def rollback(repository: Path, name: str) -> Manifest:
    """Serve what was served before. Once more: what was served before that.

    Raises:
        RepositoryError: nothing was, or it is not there any more.
    """
    with locked(repository):
        found = versions_of(repository, name)
        network = next(iter(found.values())).network
        history = served_before(repository, network)
        now = served_version(repository, network)
        while history and (history[-1] == now or history[-1] not in found):
            history.pop()
        if not history:
            raise RepositoryError(
                f"no version of {name} was served before {now}", hint=f"shoal promote {name} VERSION"
            )
        return _serve(repository, found[history[-1]], history)


def _serve(repository: Path, manifest: Manifest, before: Sequence[int]) -> Manifest:
    manifest.check_files(repository)
    for model, config in manifest.configs.items():
        write_atomic(repository / model / "config.pbtxt", config)
    record_served(repository, manifest.network, manifest.version, before)
    return manifest


def prune(repository: Path, name: str, keep: int) -> list[Path]:
    """Remove all versions but the newest and the one that is served, and what only they needed.

    Args:
        keep: how many of the newest stay.

    Returns:
        The folders that were removed, relative to the repository.

    Raises:
        RepositoryError: there is no such model, or a folder cannot be removed.
    """
    with locked(repository) as prefix:
        found = versions_of(repository, name)
        served = served_version(repository, next(iter(found.values())).network)
        stay = {*sorted(found)[-keep:], served}
        needed = {folder for number in found if number in stay for folder in _folders(found[number])}
        gone = {folder for number in found if number not in stay for folder in _folders(found[number])}
        removed = sorted(gone - needed)
        _remove(repository, removed, prefix)
        return removed


def _folders(manifest: Manifest) -> set[Path]:
    """The version folders that a version consists of."""
    return {Path(*Path(name).parts[:2]) for name in manifest.files}


def _remove(repository: Path, folders: Sequence[Path], prefix: Path) -> None:
    """A folder leaves in one rename, so that what is half deleted is never in the repository."""
    for folder in folders:
        trash = prefix.with_name(f"{prefix.name}-{'-'.join(folder.parts)}")
        try:
            (repository / folder).rename(trash)
        except OSError as error:
            raise RepositoryError(f"{repository / folder} cannot be removed: {error.strerror}") from error
        shutil.rmtree(trash, ignore_errors=True)
