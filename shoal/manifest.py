"""The lock file of one version: what it was made from, with what, which files it is, and how it did.

It lies in the version's folder, so that a version and its evidence arrive in one rename. Paths in it
are relative to the model repository. It is read before every start: a file that is not the file that
was measured is not served.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from shoal import model_config
from shoal.errors import RepositoryError
from shoal.hashes import Hashes
from shoal.layout import config_of, is_version, read_regular, versions_in
from shoal.names import PARTS, part_name

FILENAME = "manifest.json"
SCHEMA = 2


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of one published version.

    Attributes:
        model: the name users call, e.g. `minilm`.
        network: the model that holds the weights, e.g. `minilm_encoder`.
        version: its number.
        precision: e.g. `fp32` or `int8`.
        source: `id`, `kind` (package, folder, hub), `revision` and `sha256` of the weights.
        recipe: the export's settings, to make it again.
        files: path in the repository -> SHA-256, of every file the evidence depends on.
        configs: model -> the `config.pbtxt` that serves this version, of the network and of those around it.
        onnx: opset, IR version, inputs and outputs, as read from the graph.
        tools: versions of the packages that made and measured it.
        machine: where it was measured.
        evidence: the figures; see `export.evidence.Measured`.
        created: ISO 8601, UTC.
        engine: fingerprint of a TensorRT engine, see `export.tensorrt.fingerprint`; None: no engine.
        reference: statistics of sample input and output, see `serving.drift`; None: there are none.
    """

    model: str
    network: str
    version: int
    precision: str
    source: dict[str, Any]
    recipe: dict[str, Any]
    files: dict[str, str]
    configs: dict[str, str]
    onnx: dict[str, Any]
    tools: dict[str, str]
    machine: dict[str, Any]
    evidence: dict[str, Any]
    created: str
    engine: dict[str, Any] | None = None
    reference: dict[str, Any] | None = None
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """Give the value as plain JSON types."""
        return msgspec.structs.asdict(self)

    @property
    def rebuild(self) -> str:
        """The command that makes this version anew."""
        return f"shoal export {self.source['id']} --name {self.model} --precision {self.precision}"

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read one manifest.

        Raises:
            RepositoryError: the file cannot be read or is not a manifest of this schema.
        """
        hint = "export the model again"
        try:
            raw = json.loads(read_regular(path).decode())
            schema = raw["schema"]
            manifest = msgspec.convert(raw, cls) if schema == SCHEMA else None
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise RepositoryError(f"{path} is not a readable manifest: {error}", hint=hint) from error
        if manifest is None:
            raise RepositoryError(f"{path} has schema {schema}, this is {SCHEMA}", hint=hint)
        place = (path.parent.parent.name, path.parent.name)
        if place != (manifest.network, str(manifest.version)):
            raise RepositoryError(
                f"{path} is the manifest of {manifest.network}/{manifest.version}", hint=hint
            )
        files = [Path(name) for name in manifest.files]
        inside = all(
            not name.is_absolute()
            and len(name.parts) > 2
            and is_version(name.parts[1])
            and ".." not in name.parts
            for name in files
        )
        if not inside or not any(name.parts[:2] == place for name in files):
            raise RepositoryError(f"{path} does not list the files of its version", hint=hint)
        return manifest

    def check_files(self, repository: Path) -> None:
        """Compare every recorded file with what lies in `repository`.

        Raises:
            RepositoryError: a file is missing or is not the file that was measured.
        """
        hint = f"restore the file, or run: shoal export --name {self.model}"
        hashes = Hashes()
        try:
            for name, expected in self.files.items():
                path = repository / name
                if not path.is_file():
                    said = f"{path} is missing; {self.network}/{self.version} needs it"
                    raise RepositoryError(said, hint=hint)
                if path.is_symlink() or hashes.sha256(path) != expected:
                    raise RepositoryError(
                        f"{path} is not the file that was measured for {self.network}/{self.version}"
                        " (its SHA-256 differs from the manifest's)",
                        hint=hint,
                    )
        except OSError as error:
            raise RepositoryError(f"{error.filename} cannot be read: {error.strerror}", hint=hint) from error
        finally:
            hashes.save()

    def check_partners(self, served: Mapping[str, Collection[int]]) -> None:
        """The models that this version was measured with must be served beside it.

        An export that was killed between two renames could have left a new tokenizer before an old
        network: that answers, and answers nonsense.

        Args:
            served: model -> versions that are served.

        Raises:
            RepositoryError: another version of a partner is served.
        """
        for name in self.files:
            model, version, *_ = Path(name).parts
            if model != self.network and int(version) not in served.get(model, ()):
                raise RepositoryError(
                    f"{self.network}/{self.version} was measured with {model}/{version}, which is not served",
                    hint=f"run: shoal promote {self.model} {self.version}",
                )


@dataclass(frozen=True)
class Damaged:
    """A version whose manifest cannot be read.

    Attributes:
        network: the model that holds its weights.
        error: what is wrong with the manifest.
    """

    network: str
    version: int
    error: RepositoryError


def served_versions(model: Path) -> set[int]:
    """Versions that the config of a model's folder selects by number; empty where it selects none."""
    try:
        return model_config.selected_versions(config_of(model))
    except OSError:
        return set()


def selected_versions(model: Path) -> set[int]:
    """Versions that the config of a model's folder serves: those that it selects by number, or all."""
    return served_versions(model) or versions_in(model)


def history(repository: Path, model: str | None = None) -> Iterator[Manifest | Damaged]:
    """Every version in a repository, by network and number; only those of `model` where given.

    A manifest that cannot be read does not say whose it is: its network's name tells.
    """
    paths = (path for path in repository.glob(f"*/*/{FILENAME}") if is_version(path.parent.name))
    for path in sorted(paths, key=lambda p: (p.parts[-3], int(p.parts[-2]))):
        network = path.parts[-3]
        try:
            manifest = Manifest.load(path)
        except RepositoryError as error:
            if model is None or network in (model, *(part_name(model, part) for part in PARTS)):
                yield Damaged(network, int(path.parts[-2]), error)
            continue
        if model in (None, manifest.model):
            yield manifest


def manifests(repository: Path, model: str | None = None) -> Iterator[Manifest]:
    """`history` without what is damaged: an old version that cannot be read is in nobody's way."""
    return (found for found in history(repository, model) if isinstance(found, Manifest))


def served_manifests(repository: Path, model: str | None = None) -> Iterator[Manifest]:
    """Manifests of the versions that the configs of a repository serve; no others are read.

    Raises:
        RepositoryError: one of them cannot be read.
    """
    for path in sorted(repository.glob("*/config.pbtxt")):
        for version in sorted(selected_versions(path.parent)):
            if (place := path.parent / str(version) / FILENAME).exists():
                manifest = Manifest.load(place)
                if model in (None, manifest.model):
                    yield manifest
