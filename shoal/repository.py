"""Which versions of a model a repository holds and which it serves: promote, roll back, prune.

A manifest holds the configs that serve its version, so that serving one takes neither the checkpoint nor
what exported it. What was served is kept in `served.json` beside the network's config, oldest first. What
is chosen here is asked for: a supervisor tries it, and serves it then, or says why not.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from shoal.change import JOURNAL, finish_change, write_together
from shoal.errors import RepositoryError
from shoal.layout import config_of, read_regular
from shoal.locks import Busy, lock
from shoal.manifest import Damaged, Manifest, history, selected_versions, served_versions
from shoal.paths import sync_folder, to_json

LOCK = ".shoal.lock"
STAGING = ".shoal-staging-"
HISTORY = "served.json"
MOST_ENTRIES = 100
MOMENT_SECONDS = 10.0  # a promotion waits so long for another to end; an export is not waited for any longer
LAST_SERVED = 2  # entries of the history whose versions `prune` keeps: what is served, and what to go back to
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def locked(repository: Path, *, wait: float = 0.0) -> Iterator[Path]:
    """Keep others from writing to a repository, after what a killed one left is finished and cleared away.

    The lock is a file in the repository, where a host and a container find the same one.

    Args:
        wait: seconds until another must have ended.

    Yields:
        What to begin the name of a staging folder with: a path on the repository's own file system.

    Raises:
        RepositoryError: another is writing to it, or it cannot be written: no room, or no right.
    """
    with disk_errors_named(repository):
        try:
            descriptor = lock(repository / LOCK, exclusive=True, create=True, wait=wait)
        except Busy:
            raise RepositoryError(
                f"another command is writing to {repository}",
                hint="wait for it to end, or choose another --repository",
            ) from None
        try:
            prefix = _staging_prefix(repository)
            _clear_up(repository, prefix)
            finish_change(repository)
            yield prefix
        finally:
            os.close(descriptor)  # the file stays: removing it would let two lock two files of one name


@contextmanager
def disk_errors_named(repository: Path) -> Iterator[None]:
    """A full disk, or a folder that may not be written, as one clear error, wherever it strikes.

    Raises:
        RepositoryError: either.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _REFUSED:
            raise RepositoryError(
                f"{error.filename or repository} cannot be written: {error.strerror}",
                hint="choose another --repository or its permissions",
            ) from error
        if error.errno in (errno.ENOENT, errno.ENOTDIR) and not repository.is_dir():
            raise RepositoryError(f"there is no repository {repository}", hint="shoal export") from error
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(repository).free // 2**20
        raise RepositoryError(
            f"the disk of {repository} is full ({free} MiB free); nothing was changed",
            hint="make room, or choose another --repository",
        ) from error


def finish_broken_change(repository: Path) -> None:
    """Finish what a process that was killed had begun to change, where the repository can be written.

    Raises:
        RepositoryError: another process is changing it, and does not end.
    """
    if (repository / JOURNAL).exists() and os.access(repository, os.W_OK):
        with locked(repository, wait=MOMENT_SECONDS):
            pass


def _staging_prefix(repository: Path) -> Path:
    """Beside the repository: Triton takes any folder inside it for a model. A repository that is mounted has
    another file system beside it; there a server must not start while an export is running."""
    repository = repository.resolve()
    parent = repository.parent
    beside = _mount_of(parent) == _mount_of(repository) and os.access(parent, os.W_OK)
    # By the inode, since a host and a container have two paths to it.
    return parent / f"{STAGING}{repository.stat().st_ino}" if beside else repository / STAGING.rstrip("-")


def _mount_of(folder: Path) -> tuple[int, str]:
    """Find where a folder is mounted: no rename leads from one mount to another, even of one disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        facts = ""
        with suppress(OSError):  # there is a /proc under Linux alone
            facts = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
        mount = next((line for line in facts.splitlines() if line.startswith("mnt_id:")), "")
        return os.fstat(descriptor).st_dev, mount
    finally:
        os.close(descriptor)


def _clear_up(repository: Path, prefix: Path) -> None:
    """Remove what an export or a removal left that was killed, here or in a container."""
    for left in {*prefix.parent.glob(f"{prefix.name}-*"), *repository.glob(f"{STAGING}*")}:
        shutil.rmtree(left, ignore_errors=True)


def versions_of(repository: Path, name: str) -> dict[tuple[str, int], Manifest]:
    """The manifests of a model by network and version, but those that cannot be read.

    A name has one network, but where an older release published two kinds of models under it.

    Raises:
        RepositoryError: there is none.
    """
    found = {(m.network, m.version): m for m in history(repository, name) if isinstance(m, Manifest)}
    if not found:
        raise RepositoryError(f"{repository} holds no version of {name}", hint=f"shoal export --name {name}")
    return found


def network_of(repository: Path, name: str, found: Collection[tuple[str, int]]) -> str:
    """Which of the networks that were published under a name stands behind it now.

    Args:
        found: networks and versions, of `versions_of`.
    """
    networks = sorted({network for network, _ in found})
    with suppress(OSError):
        config = config_of(repository / name)
        called = [network for network in networks if f'model_name: "{network}"' in config]
        return [*called, *(network for network in networks if network == name), *networks][0]
    return networks[0]


def version_of(repository: Path, name: str, version: int) -> Manifest:
    """One manifest: of two networks of a name, that of the one which stands behind it now.

    Raises:
        RepositoryError: there is no such version, or its manifest cannot be read.
    """
    for entry in history(repository, name):
        if isinstance(entry, Damaged) and entry.version == version:
            raise entry.error
    found = versions_of(repository, name)
    if not (having := [key for key in found if key[1] == version]):
        known = ", ".join(str(number) for number in sorted({number for _, number in found}))
        raise RepositoryError(f"{name} has no version {version}", hint=f"it has {known}")
    return found[network_of(repository, name, having), version]


def served_version(repository: Path, network: str) -> int | None:
    """The version that a network's config selects, or None where it selects none."""
    return max(served_versions(repository / network), default=None)


def served_texts(
    repository: Path, network: str, version: int, before: Sequence[int], configs: Mapping[str, str]
) -> dict[Path, str]:
    """What to write so that a version is served from now on, and that it was is known later.

    Args:
        before: from `served_before`.
        configs: model -> the config that serves this version.

    Returns:
        Path in the repository -> text, for `write_together`.
    """
    entries = [*before] if before[-1:] == [version] else [*before, version]
    texts = {Path(model) / "config.pbtxt": config for model, config in configs.items()}
    return {**texts, Path(network) / HISTORY: to_json(entries[-MOST_ENTRIES:])}


def served_before(repository: Path, network: str) -> list[int]:
    """Versions in the order in which they were served, the last now; without a history, what is served.

    Raises:
        RepositoryError: the history cannot be read.
    """
    path = repository / network / HISTORY
    try:
        return [int(version) for version in json.loads(read_regular(path).decode())]
    except FileNotFoundError:
        version = served_version(repository, network)
        return [] if version is None else [version]
    except (OSError, ValueError, TypeError) as error:
        raise RepositoryError(f"{path} cannot be read: {error}", hint="remove it") from error


def promote(repository: Path, name: str, version: int) -> Manifest:
    """Serve a version from the next start on.

    Raises:
        RepositoryError: there is no such version, its files are not those that were measured, or the
            repository cannot be written; nothing was changed.
    """
    with locked(repository, wait=MOMENT_SECONDS):
        manifest = version_of(repository, name, version)
        return _serve(repository, manifest, served_before(repository, manifest.network))


def rollback(repository: Path, name: str) -> Manifest:
    """Serve what was served before. Once more: what was served before that.

    Raises:
        RepositoryError: nothing was, or it is not there any more; nothing was changed.
    """
    with locked(repository, wait=MOMENT_SECONDS):
        found = versions_of(repository, name)
        network = network_of(repository, name, found)
        before = served_before(repository, network)
        now = served_version(repository, network)
        while before and (before[-1] == now or (network, before[-1]) not in found):
            before.pop()
        if not before:
            raise RepositoryError(
                f"no version of {name} was served before {now}", hint=f"shoal promote {name} VERSION"
            )
        return _serve(repository, found[network, before[-1]], before)


def _serve(repository: Path, manifest: Manifest, before: Sequence[int]) -> Manifest:
    manifest.check_files(repository)
    for model in manifest.configs:
        if not (repository / model).is_dir():
            raise RepositoryError(f"{repository / model} is missing", hint=f"run: {manifest.rebuild}")
    texts = served_texts(repository, manifest.network, manifest.version, before, manifest.configs)
    write_together(repository, texts)
    for model in manifest.configs:  # asked for now, also where no text changed: see `ModelSpec.asked`
        with suppress(OSError):
            (repository / model / "config.pbtxt").touch()
    return manifest


@dataclass(frozen=True)
class Pruned:
    """What `prune` did.

    Attributes:
        removed: folders, relative to the repository.
        kept: version -> why it stays, of each that is not among the newest.
    """

    removed: tuple[Path, ...] = ()
    kept: dict[int, str] = field(default_factory=dict)


def prune(repository: Path, name: str, keep: int) -> Pruned:
    """Remove old versions, and what only they needed.

    What stays: the newest, what is served, what was served before it, what a running server holds (see
    `shoal.leases`), and what cannot be read.

    Args:
        keep: how many of the newest stay.

    Raises:
        RepositoryError: there is no such model, or a folder cannot be removed; then nothing was.
    """
    with locked(repository, wait=MOMENT_SECONDS) as prefix:
        found = versions_of(repository, name)
        kept = _needed(repository, found)
        damaged = [entry for entry in history(repository, name) if isinstance(entry, Damaged)]
        stay = {key for network in {n for n, _ in found} for key in _newest(found, network, keep)}
        held: list[int] = []
        try:
            for key in sorted(set(found) - stay - set(kept)):
                if reason := _taken(repository / key[0] / str(key[1]), held):
                    kept[key] = reason
            gone = set(found) - stay - set(kept)
            folders = {folder for key in gone for folder in _folders(found[key])}
            folders -= {folder for key in set(found) - gone for folder in _folders(found[key])}
            if damaged:  # nobody knows what it needs of other models
                folders &= {Path(network, str(version)) for network, version in gone}
            folders = {folder for folder in folders if _unserved(repository / folder)}
            # A version goes after its parts: what is broken off in between is still known, and removed next
            # time.
            networks = {Path(network) for network, _ in found}
            removed = sorted(folders, key=lambda folder: (folder.parent in networks, folder))
            trash = _move_away(repository, removed, prefix)
        finally:
            for descriptor in held:
                os.close(descriptor)
        for folder in trash:
            shutil.rmtree(folder, ignore_errors=True)
        said = {version: reason for (_, version), reason in sorted(kept.items()) if (_, version) not in stay}
        said |= {entry.version: "cannot be read" for entry in damaged}
        return Pruned(tuple(sorted(removed)), said)


def _newest(found: Collection[tuple[str, int]], network: str, keep: int) -> list[tuple[str, int]]:
    return sorted(key for key in found if key[0] == network)[-keep:]


def _needed(repository: Path, found: Collection[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """The versions that are served, or were served last, and which of both."""
    reasons = {}
    for network in {network for network, _ in found}:
        for version in served_before(repository, network)[-LAST_SERVED:]:
            reasons[network, version] = "was served last"
        for version in selected_versions(repository / network):
            reasons[network, version] = "is served"
    return {key: reason for key, reason in reasons.items() if key in found}


def _taken(folder: Path, held: list[int]) -> str:
    """Lock a version's folder, so that no server takes it while it is removed; else why it cannot be."""
    try:
        held.append(lock(folder, exclusive=True))
    except Busy:
        return "is in use by a running server"
    except OSError as error:  # a file system without locks does not tell who needs it
        return f"cannot be locked: {error.strerror}"
    return ""


def _folders(manifest: Manifest) -> set[Path]:
    """The version folders that a version consists of."""
    return {Path(*Path(name).parts[:2]) for name in manifest.files}


def _unserved(folder: Path) -> bool:
    """Whether a version's folder is there, and its model's config serves others."""
    return folder.is_dir() and int(folder.name) not in selected_versions(folder.parent)


def _move_away(repository: Path, folders: Sequence[Path], prefix: Path) -> list[Path]:
    """Each folder leaves in one rename, so that nothing half deleted is in the repository; all or none."""
    moved: list[tuple[Path, Path]] = []
    try:
        for folder in folders:
            trash = prefix.with_name(f"{prefix.name}-{'-'.join(folder.parts)}")
            (repository / folder).rename(trash)
            moved.append((repository / folder, trash))
        for parent in sorted({(repository / folder).parent for folder in folders}):
            sync_folder(parent)
    except BaseException as error:
        for place, trash in reversed(moved):
            trash.rename(place)
        if isinstance(error, OSError):
            raise RepositoryError(f"{error.filename} cannot be removed: {error.strerror}") from error
        raise
    return [trash for _, trash in moved]
