"""Publish proven versions in a Triton model repository.

What users call is one model or several: tokenizer, network, output, and the ensemble that joins them. Each
is a `ModelFiles`, the files of a version and the config that serves it. A version is its content: exporting
the same bytes again keeps the version's number and renews its evidence; other bytes get the next number.

Everything is written to a staging folder on the repository's file system and renamed into place: first the
version folders, which nobody serves yet, each after those that it needs, then the configs together
(`shoal.change`). So whenever an export is killed, what was served still is, or what it publishes.
What fails is taken back.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as triton

from export.evidence import Verified
from shoal import machine
from shoal.errors import RepositoryError
from shoal.hashes import sha256
from shoal.layout import versions_in
from shoal.manifest import FILENAME, Manifest, manifests
from shoal.model_config import to_text
from shoal.names import ENCODER, ESTIMATOR, part_name
from shoal.paths import to_json
from shoal.placing import put_in_place
from shoal.repository import served_before, served_texts

# What stands behind a name, by the task that a recipe states; encoders state a task of
# `export.encoder.tasks`, or none.
_KINDS = {
    "text-generation": "a decoder",
    "text2text-generation": "an encoder-decoder",
    "tabular": "an estimator",
}
ENCODERS = "an encoder"


@dataclass(frozen=True)
class ModelFiles:
    """One model of the repository, as a version of what users call needs it.

    Attributes:
        name: of the model, e.g. `minilm_tokenizer`.
        files: what lies in its version's folder, by name: a file, or text to write. An ensemble has none.
        config: its config for a version number.
    """

    name: str
    files: Mapping[str, Path | str]
    config: Callable[[int], triton.ModelConfig]


def model_py(module: str) -> str:
    """The text of `model.py`: a module of `serving.models`, as Triton's Python backend wants it."""
    return f"from serving.models.{module} import TritonPythonModel  # noqa: F401\n"


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
        reference: statistics by which drift is seen, see `export.encoder.reference`; None: there are none.
    """

    verified: Verified
    parts: Sequence[ModelFiles]
    network: str
    reference: dict[str, Any] | None = None


@dataclass(frozen=True)
class Published:
    """One version in the repository; `new` is False where the same bytes were there already."""

    network: str
    version: int
    precision: str
    new: bool


def check_kind(repository: Path, name: str, recipe: Mapping[str, Any]) -> None:
    """Before minutes of work: what is published under a name must be of the kind that is to be published.

    Two kinds would have versions of the same numbers, and clients that call one would get the other.

    Args:
        recipe: of what is to be published, as its `to_dict` has it.

    Raises:
        RepositoryError: the name is taken.
    """
    kind = _kind_of(recipe)
    known = {_kind_of(manifest.recipe) for manifest in manifests(repository, name)}
    for other in sorted((known or _kinds_without_manifest(repository / name)) - {kind}):
        raise RepositoryError(
            f"{repository} holds {name} already, which is {other}, and this is {kind}",
            hint=f"choose another --name, or remove {name} and what is called {name}_... from {repository}",
        )


def _kind_of(recipe: Mapping[str, Any]) -> str:
    return _KINDS.get(str(recipe.get("task")), ENCODERS)


def _kinds_without_manifest(model: Path) -> set[str]:
    """Kinds of a model without a manifest: a clone without weights, a damaged one, or another's."""
    if not (model / "config.pbtxt").exists():
        return set()
    texts = [path.read_text() for path in (model / "config.pbtxt", *model.glob("*/model.py"))]
    marks = {
        f'model_name: "{part_name(model.name, ENCODER)}"': ENCODERS,
        f'model_name: "{part_name(model.name, ESTIMATOR)}"': _KINDS["tabular"],
        'backend: "vllm"': _KINDS["text-generation"],
        "serving.models.generation": _KINDS["text-generation"],
        "serving.models.text2text": _KINDS["text2text-generation"],
    }
    return {kind for mark, kind in marks.items() if any(mark in text for text in texts)} or {"not Shoal's"}


def write(
    releases: Sequence[Release], repository: Path, work: Path, provenance: Provenance
) -> list[Published]:
    """Publish proven versions; the last of them is served.

    Args:
        releases: at least one, in order of preference, the best last; all of one network.
        repository: the Triton model repository.
        work: a folder from `staging(repository)`.

    Raises:
        RepositoryError: the name is taken by another kind of model.
        OSError: the disk is full or the repository cannot be written; nothing was changed.
    """
    check_kind(repository, provenance.model, provenance.recipe)
    staged = work / "publish"
    network = releases[-1].network
    before = served_before(repository, network)
    published: list[Published] = []
    texts: dict[Path, str] = {}
    for release in releases:
        numbers: dict[str, int] = {}
        hashes: dict[str, str] = {}
        fresh = False
        for part in release.parts:
            content = {name: _hash(value) for name, value in part.files.items()}
            numbers[part.name], new = _number(part.name, content, repository, staged)
            if new:
                _stage(part, staged / part.name / str(numbers[part.name]), work)
            fresh |= new and part.name == network
            hashes |= {f"{part.name}/{numbers[part.name]}/{name}": value for name, value in content.items()}
        configs = {part.name: to_text(part.config(numbers[part.name])) for part in release.parts}
        number = numbers[network]
        manifest = _manifest(release, provenance, number, hashes, configs)
        place = Path(network) / str(number) / FILENAME
        if (staged / place.parent).exists():
            (staged / place).write_text(to_json(manifest.to_dict()), encoding="utf-8")
        else:
            texts[place] = to_json(manifest.to_dict())  # the same bytes with evidence of today
        published.append(Published(network, number, manifest.precision, new=fresh))
    # Nobody sees a version before what it needs, nor an ensemble before its steps.
    ensembles = [part.name for part in releases[-1].parts if not part.files]
    order = sorted(configs, key=lambda model: (model in ensembles, model == network))
    texts |= served_texts(repository, network, published[-1].version, before, configs)
    put_in_place(repository, staged, order, texts)
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


def _stage(part: ModelFiles, folder: Path, work: Path) -> None:
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
    if not model.is_dir():
        return []
    return sorted(number for number in versions_in(model) if any((model / str(number)).iterdir()))
