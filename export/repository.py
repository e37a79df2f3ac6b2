"""Publish proven versions in a Triton model repository.

A version is its content: exporting the same bytes again keeps the version's number and renews its
evidence; other bytes get the next number. Everything is written to a staging folder on the repository's
file system and renamed into place: first the version folders, which nobody serves yet, then the three
configs, one rename each. Killed between two of those, an export leaves a pair that
`Manifest.check_partners` refuses to start.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from export import config
from export.recipe import Recipe
from export.verify import Verified
from shoal import machine
from shoal.errors import RepositoryError
from shoal.manifest import FILENAME, Manifest, sha256
from shoal.paths import write_json

STAGING = ".shoal-staging-"
MODEL_PY = "from serving.models.tokenizer import TritonPythonModel  # noqa: F401\n"


@dataclass(frozen=True)
class Provenance:
    """Where versions come from: what the manifest records beside the evidence."""

    recipe: Recipe
    source: dict[str, Any]
    tools: dict[str, str]
    tokenizer: Path
    max_length: int
    pad_id: int


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
        raise _not_writable(repository, error) from error
    try:
        for abandoned in parent.glob(f"{prefix}-*"):  # of an export that was killed: we hold its lock
            shutil.rmtree(abandoned, ignore_errors=True)
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=parent))
            _check_writable(repository)
        except OSError as error:
            raise _not_writable(repository, error) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.release()  # the file stays: removing it would let two exports lock two files of one name


def _check_writable(repository: Path) -> None:
    """Before minutes of work, not after: the repository and each model in it take new folders."""
    for folder in (repository, *(path.parent for path in repository.glob("*/config.pbtxt"))):
        tempfile.TemporaryFile(dir=folder).close()


def _not_writable(repository: Path, error: OSError) -> RepositoryError:
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


def write(
    verified: Sequence[Verified], repository: Path, work: Path, provenance: Provenance
) -> list[Published]:
    """Publish proven graphs as versions of one encoder, the last of them served.

    Args:
        verified: at least one, in order of preference, the best last.
        repository: the Triton model repository.
        work: a folder from `staging(repository)`.

    Raises:
        OSError: the disk is full or the repository cannot be written; what was served still is.
    """
    recipe = provenance.recipe
    served = verified[-1].exported
    tokenizer = f"{recipe.name}_tokenizer"
    encoder = f"{recipe.name}_encoder"
    staged = work / "publish"

    tokenizer_version = same_version(repository / tokenizer, "tokenizer.json", sha256(provenance.tokenizer))
    if tokenizer_version is None:
        tokenizer_version = next_version(repository / tokenizer)
        folder = staged / tokenizer / str(tokenizer_version)
        folder.mkdir(parents=True)
        shutil.copyfile(provenance.tokenizer, folder / "tokenizer.json")
        (folder / "model.py").write_text(MODEL_PY)

    published: list[Published] = []
    renewed: list[Manifest] = []
    version = next_version(repository / encoder)
    for item in verified:
        content = sha256(item.exported.path)
        known = same_version(repository / encoder, "model.onnx", content)
        number = known or version
        manifest = _manifest(item, provenance, encoder, number, content, tokenizer_version)
        if known is None:
            folder = staged / encoder / str(number)
            folder.mkdir(parents=True)
            item.exported.path.replace(folder / "model.onnx")
            write_json(folder / FILENAME, manifest.to_dict())
            version += 1
        else:
            renewed.append(manifest)
        published.append(Published(encoder, number, item.evidence.precision, new=known is None))

    # Triton wants a version folder of an ensemble too, even though it holds nothing.
    if not (repository / recipe.name / "1").is_dir():
        (staged / recipe.name / "1").mkdir(parents=True)
        (staged / recipe.name / "1" / ".gitkeep").touch()

    configs = {
        tokenizer: config.tokenizer_config(
            recipe,
            served,
            version=tokenizer_version,
            max_length=provenance.max_length,
            pad_id=provenance.pad_id,
        ),
        encoder: config.encoder_config(recipe, served, version=published[-1].version),
        recipe.name: config.ensemble_config(recipe, served),
    }
    for model, made in configs.items():
        folder = staged / model
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.pbtxt").write_text(config.to_text(made))
        sync(folder)
    for manifest in renewed:
        write_json(repository / encoder / str(manifest.version) / FILENAME, manifest.to_dict())
    for model in configs:
        move_versions(staged / model, repository / model)
    for model in configs:
        if (staged / model).exists():
            (staged / model / "config.pbtxt").replace(repository / model / "config.pbtxt")
    return published


def move_versions(staged: Path, model: Path) -> None:
    """A new model in one rename, config and all; new versions of a known one in one each."""
    if not model.exists():
        staged.rename(model)
        return
    for version in sorted(path for path in staged.iterdir() if path.is_dir()):
        shutil.rmtree(model / version.name, ignore_errors=True)  # a version folder without its weights
        version.rename(model / version.name)


def _manifest(
    item: Verified,
    provenance: Provenance,
    encoder: str,
    version: int,
    content: str,
    tokenizer_version: int,
) -> Manifest:
    recipe = provenance.recipe
    return Manifest(
        model=recipe.name,
        network=encoder,
        version=version,
        precision=item.evidence.precision,
        source=provenance.source,
        recipe=recipe.to_dict(),
        files={
            f"{encoder}/{version}/model.onnx": content,
            f"{recipe.name}_tokenizer/{tokenizer_version}/tokenizer.json": sha256(provenance.tokenizer),
            f"{recipe.name}_tokenizer/{tokenizer_version}/model.py": hashlib.sha256(
                MODEL_PY.encode()
            ).hexdigest(),
        },
        onnx=item.exported.describe(),
        tools=provenance.tools,
        machine=machine.describe(),
        evidence=item.evidence.to_dict(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _versions(model: Path) -> list[int]:
    """Numbers in use. In a fresh clone the encoder has none: its weights are not committed."""
    return sorted(int(p.name) for p in model.glob("[0-9]*") if p.name.isdigit() and any(p.iterdir()))


def next_version(model: Path) -> int:
    return max(_versions(model), default=0) + 1


def same_version(model: Path, filename: str, content: str) -> int | None:
    """The version that holds these very bytes, if there is one."""
    for version in _versions(model):
        path = model / str(version) / filename
        if path.is_file() and sha256(path) == content:
            return version
    return None


def sync(folder: Path) -> None:
    """Force a folder's files to the disk, so that a rename never publishes what is not written."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
