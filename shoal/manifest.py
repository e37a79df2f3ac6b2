"""The lock file of one version: what it was made from, with what, which files it is, and how it did.

It lies in the version's folder, so that a version and its evidence arrive in one rename. Paths in it
are relative to the model repository. It is read before every start: a file that is not the file that
was measured is not served.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shoal.errors import RepositoryError

FILENAME = "manifest.json"
SCHEMA = 2


@dataclass(frozen=True)
class Manifest:
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
        evidence: the figures; see `export.evidence.Evidence`.
        created: ISO 8601, UTC.
        engine: fingerprint of a TensorRT engine, see `export.engines.fingerprint`; None: no engine.
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
    schema: int = field(default=SCHEMA)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)

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
            raw = json.loads(path.read_text(encoding="utf-8"))
            schema = raw["schema"]
            manifest = cls(**raw) if schema == SCHEMA else None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RepositoryError(f"{path} is not a readable manifest: {error}", hint=hint) from error
        if manifest is None:
            raise RepositoryError(f"{path} has schema {schema}, this is {SCHEMA}", hint=hint)
        place = (path.parent.parent.name, path.parent.name)
        if place != (manifest.network, str(manifest.version)):
            raise RepositoryError(
                f"{path} is the manifest of {manifest.network}/{manifest.version}", hint=hint
            )
        files = manifest.files if isinstance(manifest.files, dict) else {}
        inside = all(not Path(name).is_absolute() and ".." not in Path(name).parts for name in files)
        own = any(name.startswith(f"{place[0]}/{place[1]}/") for name in files)
        if not own or not inside:
            raise RepositoryError(f"{path} does not list the files of its version", hint=hint)
        return manifest

    def check_files(self, repository: Path) -> None:
        """Compare every recorded file with what lies in `repository`.

        Raises:
            RepositoryError: a file is missing or is not the file that was measured.
        """
        hint = f"restore the file, or run: shoal export --name {self.model}"
        for name, expected in self.files.items():
            path = repository / name
            if not path.is_file():
                raise RepositoryError(f"{path} is missing; {self.network}/{self.version} needs it", hint=hint)
            if path.is_symlink() or sha256(path) != expected:
                raise RepositoryError(
                    f"{path} is not the file that was measured for {self.network}/{self.version}"
                    " (its SHA-256 differs from the manifest's)",
                    hint=hint,
                )

    def served_in(self, repository: Path) -> bool:
        """Whether the config of its network serves this version; one that names none serves any."""
        return _serves(repository / self.network, self.version)

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


def _serves(model: Path, version: int) -> bool:
    """Whether a model's config serves a version; one that names none serves any."""
    return version in (served_versions(model) or {version})


def served_versions(model: Path) -> set[int]:
    """Versions that the config of a model's folder selects by number; empty where it selects none."""
    try:
        policy = re.search(r"\bspecific\s*\{([^}]*)\}", (model / "config.pbtxt").read_text())
    except OSError:
        return set()
    return {int(version) for version in re.findall(r"\d+", policy[1])} if policy else set()


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def manifests(repository: Path, model: str | None = None) -> Iterator[Manifest]:
    """Every manifest in a repository, by network and version; only those of `model` where given."""
    paths = repository.glob(f"*/*/{FILENAME}")
    for path in sorted(paths, key=lambda p: (p.parts[-3], p.parts[-2].rjust(12))):
        manifest = Manifest.load(path)
        if model in (None, manifest.model):
            yield manifest
