"""Publish proven versions in a Triton model repository.

What users call is one model or several: tokenizer, network, output, and the ensemble that joins them. Each
is a `Part` with the files of a version and the config that serves it. A version is its content: exporting
the same bytes again keeps the version's number and renews its evidence; other bytes get the next number.

Everything is written to a staging folder on the repository's file system and renamed into place: first the
version folders, which nobody serves yet, then the configs, one rename each. Killed between two of those, an
export leaves a pair that `Manifest.check_partners` refuses to start.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as triton

from export import config
from export.evidence import Verified
from shoal import machine
from shoal.errors import RepositoryError
from shoal.manifest import FILENAME, Manifest, manifests, sha256
from shoal.paths import write_json
from shoal.repository import locked, not_writable, record_served, served_before


@dataclass(frozen=True)
class Part:
    """One model of the repository, as a version of what users call needs it.

    Attributes:
        name: of the model, e.g. `minilm_tokenizer`.
        files: what lies in its version's folder, by name: a file, or text to write. An ensemble has none.
        config: its config for a version number.
    """

    name: str
    files: Mapping[str, Path | str]
    config: Callable[[int], triton.ModelConfig]


@dataclass(frozen=True)
class Provenance:
    """Where versions come from: what the manifest records beside the evidence."""

    model: str
    recipe: dict[str, Any]
    source: dict[str, Any]
    tools: dict[str, str]


@dataclass(frozen=True)
class Release:
    """A proven version and the models that serve it.

    Attributes:
        parts: in the order in which requests pass them, the ensemble last.
        network: which of them holds the weights.
        reference: statistics by which drift is seen, see `export.reference`; None: there are none.
    """

    verified: Verified
    parts: Sequence[Part]
    network: str
    reference: dict[str, Any] | None = None


@dataclass(frozen=True)
class Published:
    """One version in the repository; `new` is False where the same bytes were there already."""

    network: str
    version: int
    precision: str
    new: bool


@contextmanager
def staging(repository: Path) -> Iterator[Path]:
    """A folder to work in on the repository's own file system, gone afterwards whatever happens.

    Raises:
        RepositoryError: the repository cannot be written, or another export is at work in it.
    """
    try:
        repository.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(repository, error) from error
    with locked(repository) as prefix:
        for abandoned in prefix.parent.glob(f"{prefix.name}-*"):  # of an export that was killed
            shutil.rmtree(abandoned, ignore_errors=True)
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"{prefix.name}-", dir=prefix.parent))
            _check_writable(repository)
        except OSError as error:
            raise not_writable(repository, error) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _check_writable(repository: Path) -> None:
    """Before minutes of work, not after: the repository and each model in it take new folders."""
    for folder in (repository, *(path.parent for path in repository.glob("*/config.pbtxt"))):
        tempfile.TemporaryFile(dir=folder).close()


def check_network(repository: Path, name: str, network: str) -> None:
    """Before minutes of work: what is published under a name must be of the kind that is to be published.

    Raises:
        RepositoryError: its versions are of a network of another name, and would be mixed up with these.
    """
    other = next((m.network for m in manifests(repository, name) if m.network != network), None)
    if other is not None:
        raise RepositoryError(
            f"{repository} holds {name} with its weights in {other}, and this export has them in {network}",
            hint=f"choose another --name, or remove {repository / other} and the folders that begin so",
        )


def write(
    releases: Sequence[Release], repository: Path, work: Path, provenance: Provenance
) -> list[Published]:
    """Publish proven versions; the last of them is served.

    Args:
        releases: at least one, in order of preference, the best last; all of one network.
        repository: the Triton model repository.
        work: a folder from `staging(repository)`.

    Raises:
        OSError: the disk is full or the repository cannot be written; what was served still is.
    """
    staged = work / "publish"
    history = served_before(repository, releases[-1].network)
    published: list[Published] = []
    renewed: list[Manifest] = []
    for release in releases:
        numbers: dict[str, int] = {}
        hashes: dict[str, str] = {}
        fresh = False
        for part in release.parts:
            content = {name: _hash(value) for name, value in part.files.items()}
            numbers[part.name], new = _number(part.name, content, repository, staged)
            if new:
                _stage(part, staged / part.name / str(numbers[part.name]), work)
            fresh |= new and part.name == release.network
            hashes |= {f"{part.name}/{numbers[part.name]}/{name}": value for name, value in content.items()}
        configs = {part.name: config.to_text(part.config(numbers[part.name])) for part in release.parts}
        number = numbers[release.network]
        manifest = _manifest(release, provenance, number, hashes, configs)
        if fresh:
            write_json(staged / release.network / str(number) / FILENAME, manifest.to_dict())
        else:
            renewed.append(manifest)
        published.append(Published(release.network, number, manifest.precision, new=fresh))
    for model, text in configs.items():  # of the last release: the one that is served
        (staged / model).mkdir(parents=True, exist_ok=True)
        (staged / model / "config.pbtxt").write_text(text)
        sync(staged / model)
    for manifest in renewed:
        write_json(repository / manifest.network / str(manifest.version) / FILENAME, manifest.to_dict())
    for model in configs:
        move_versions(staged / model, repository / model)
    for model in configs:
        if (staged / model).exists():
            (staged / model / "config.pbtxt").replace(repository / model / "config.pbtxt")
    record_served(repository, published[-1].network, published[-1].version, history)
    return published


def _number(model: str, content: Mapping[str, str], repository: Path, staged: Path) -> tuple[int, bool]:
    """The version of a model that holds this content, or the next number; and whether it is new."""
    found = [
        folder / str(number) for folder in (repository / model, staged / model) for number in versions(folder)
    ]
    for version in found:
        files = {path.name: path for path in version.iterdir()}
        # What else lies there is the manifest, and bytecode that Triton's stub writes.
        if all(name in files and sha256(files[name]) == value for name, value in content.items()):
            return int(version.name), False
    return max((int(version.name) for version in found), default=0) + 1, True


def _stage(part: Part, folder: Path, work: Path) -> None:
    folder.mkdir(parents=True)
    for name, value in part.files.items():
        if isinstance(value, str):
            (folder / name).write_text(value)
        elif value.is_relative_to(work):  # made for this, and too large to be copied
            value.replace(folder / name)
        else:
            shutil.copyfile(value, folder / name)
    if not part.files:
        # Triton wants a version folder of an ensemble too, even though it holds nothing.
        (folder / ".gitkeep").touch()


def _hash(value: Path | str) -> str:
    return sha256(value) if isinstance(value, Path) else hashlib.sha256(value.encode()).hexdigest()


def move_versions(staged: Path, model: Path) -> None:
    """A new model in one rename, config and all; new versions of a known one in one each."""
    if not model.exists():
        staged.rename(model)
        return
    for version in sorted(path for path in staged.iterdir() if path.is_dir()):
        shutil.rmtree(model / version.name, ignore_errors=True)  # a version folder without its weights
        version.rename(model / version.name)


def _manifest(
    release: Release, provenance: Provenance, version: int, files: dict[str, str], configs: dict[str, str]
) -> Manifest:
    return Manifest(
        model=provenance.model,
        network=release.network,
        version=version,
        precision=release.verified.evidence.precision,
        source=provenance.source,
        recipe=provenance.recipe,
        files=files,
        configs=configs,
        onnx=release.verified.exported.describe(),
        engine=release.verified.exported.provenance,
        reference=release.reference,
        tools=provenance.tools,
        machine=machine.describe(),
        evidence=release.verified.evidence.to_dict(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def versions(model: Path) -> list[int]:
    """Numbers in use. In a fresh clone the encoder has none: its weights are not committed."""
    return sorted(int(p.name) for p in model.glob("[0-9]*") if p.name.isdigit() and any(p.iterdir()))


def sync(folder: Path) -> None:
    """Force a folder's files to the disk, so that a rename never publishes what is not written."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
