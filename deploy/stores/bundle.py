"""What a version consists of in a store: a list of its files with their sizes and SHA-256, and nothing else.

What comes from a store is not trusted: names, sizes and bytes are checked. Nothing in it may be code, but for
the one line by which a model names a module of `serving.models`.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
from google.protobuf.text_format import ParseError

from shoal import model_config
from shoal.errors import RepositoryError, UsageError, first_line
from shoal.hashes import sha256
from shoal.layout import is_version
from shoal.manifest import FILENAME, Manifest
from shoal.names import PARTS, check_name, part_name

MOST_BYTES = 4 << 20  # of a bundle's own text
MOST_FILES = 10_000
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_SUFFIXES = {".bin", ".data", ".json", ".onnx", ".plan", ".txt", ".xml"}  # files that no part of Triton runs
_MODEL_PY = re.compile(rb"from serving\.models\.[a-z0-9_]+ import TritonPythonModel  # noqa: F401\n")
# Of a config: what exporters write. Other fields name files, libraries and agents outside of the version.
_FIELDS = {
    *("name", "platform", "backend", "version_policy", "max_batch_size", "input", "output", "parameters"),
    *("dynamic_batching", "instance_group", "model_transaction_policy", "ensemble_scheduling"),
    *("response_cache", "default_model_filename"),
}
_BACKENDS = {"onnxruntime": {".onnx"}, "python": {".py"}, "tensorrt": {".plan"}, "tensorrt_plan": {".plan"}}
_ENSEMBLE = "ensemble"
MOST_INSTANCES = 256


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Size in bytes and hexadecimal SHA-256 of a file."""

    size: int
    sha256: str


class Bundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One version.

    Attributes:
        model: the name users call.
        version: its number.
        network: the model that holds the weights, and the manifest.
        files: path in a model repository -> file, the manifest included.
        folders: `MODEL/VERSION` of models without files, such as an ensemble.
    """

    model: str
    version: int
    network: str
    files: dict[str, File]
    folders: list[str]
    schema: int = 1

    @property
    def manifest(self) -> str:
        """The path of the manifest."""
        return f"{self.network}/{self.version}/{FILENAME}"

    def encode(self) -> bytes:
        """As JSON, the same for the same content."""
        return msgspec.json.format(msgspec.json.encode(self, order="deterministic"), indent=2) + b"\n"

    @classmethod
    def decode(cls, text: bytes, where: str) -> Bundle:
        """Read and check what a store holds.

        Raises:
            RepositoryError: it is not such a list, or names what it must not.
        """
        try:
            bundle = msgspec.json.decode(text, type=cls)
            bundle._check()
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, UsageError) as error:
            raise RepositoryError(f"{where} does not hold a version of Shoal's: {error}") from error
        return bundle

    def _check(self) -> None:
        check_name(self.model)
        if self.schema != 1:
            raise ValueError(f"its schema is {self.schema}, this is 1")
        if not self.files or len(self.files) > MOST_FILES or len(self.folders) > MOST_FILES:
            raise ValueError(f"it lists {len(self.files)} files, and may list 1 to {MOST_FILES}")
        for path, file in self.files.items():
            parts = path.split("/")
            known = parts[-1] == "model.py" or PurePosixPath(path).suffix in _SUFFIXES
            if len(parts) != 3 or not _is_place(parts) or not known:
                raise ValueError(f"{path!r} is no file of a model repository that may be pulled")
            if file.size < 0 or not re.fullmatch(r"[0-9a-f]{64}", file.sha256):
                raise ValueError(f"size or SHA-256 of {path} is none")
        for folder in self.folders:
            if len(parts := folder.split("/")) != 2 or not _is_place(parts):
                raise ValueError(f"{folder!r} is no folder of a version")
        if self.manifest not in self.files:
            raise ValueError(f"it lacks {self.manifest}")
        self._check_versions()

    def _check_versions(self) -> None:
        """Nothing of another model, and one version of each part: no manifest but the one that is checked."""
        places = {tuple(path.split("/")[:2]) for path in [*self.files, *self.folders]}
        models = [model for model, _ in places]
        own = {self.model, *(part_name(self.model, part) for part in PARTS)}
        if strange := sorted(set(models) - own):
            raise ValueError(f"{strange[0]} is no part of {self.model}")
        if len(models) > len(set(models)) or (self.network, str(self.version)) not in places:
            raise ValueError("it has several versions of a model")
        manifests = [path for path in self.files if path.endswith(f"/{FILENAME}")]
        if manifests != [self.manifest]:
            raise ValueError("it has several manifests")


def _is_place(parts: list[str]) -> bool:
    return all(_PART.fullmatch(part) for part in parts) and is_version(parts[1])


def bundle_of(repository: Path, manifest: Manifest) -> Bundle:
    """The bundle of a version that lies in a repository.

    Raises:
        RepositoryError: a file is not the one that was measured, or may not be pulled elsewhere.
    """
    manifest.check_files(repository)
    paths = [*manifest.files, f"{manifest.network}/{manifest.version}/{FILENAME}"]
    files = {
        path: File((repository / path).stat().st_size, manifest.files.get(path) or sha256(repository / path))
        for path in sorted(paths)
    }
    held = {path.split("/")[0] for path in files}
    folders = [
        f"{model}/{version}"
        for model, config in sorted(manifest.configs.items())
        if model not in held
        for version in sorted(model_config.selected_versions(config)) or [1]
    ]
    made = Bundle(manifest.model, manifest.version, manifest.network, files, folders)
    for path in files:
        check_content(path, repository / path)
    return Bundle.decode(made.encode(), str(repository))


def check_content(path: str, file: Path) -> None:
    """Refuse code.

    Args:
        path: in the model repository.
        file: where it lies now.

    Raises:
        RepositoryError: it is a `model.py` that does anything but name a module of ours.
    """
    if path.endswith(".py") and not _MODEL_PY.fullmatch(file.read_bytes()):
        raise RepositoryError(
            f"{path} has code of its own, which is never pushed or pulled",
            hint="copy the model repository by other means, if you trust it",
        )


def check_manifest(manifest: Manifest, bundle: Bundle) -> None:
    """What a manifest says must be what its bundle says, and its configs must start nothing of their own.

    Raises:
        RepositoryError: it says something else.
    """

    def refused(reason: str) -> RepositoryError:
        return RepositoryError(f"the manifest of {bundle.model} {bundle.version} is refused: {reason}")

    if (manifest.model, manifest.network, manifest.version) != (bundle.model, bundle.network, bundle.version):
        raise refused("it is of another version")
    listed = {path: file.sha256 for path, file in bundle.files.items() if path != bundle.manifest}
    if listed != manifest.files:
        raise refused("it lists other files")
    places = {path.split("/")[0] for path in [*listed, *bundle.folders]}
    if places != set(manifest.configs):
        raise refused("it has configs of other models")
    for model, text in manifest.configs.items():
        try:
            config: Any = model_config.parse(text, strict=True)
        except ParseError as error:
            raise refused(f"the config of {model} cannot be read: {first_line(error)}") from error
        if reason := _refusal(config, model, [path for path in bundle.files if path.split("/")[0] == model]):
            raise refused(f"the config of {model} {reason}")


def _refusal(config: Any, model: str, files: list[str]) -> str:
    """Why a config of a store is not taken; "": it is."""
    fields = {field.name for field, _ in config.ListFields()}
    backend = config.backend or config.platform
    versions = {path.split("/")[1] for path in files}
    named = config.default_model_filename
    strange = sorted(fields - _FIELDS)
    suffixes = {PurePosixPath(path).suffix for path in files}
    selected = {str(version) for version in config.version_policy.specific.versions}
    ensemble = backend == _ENSEMBLE
    reasons = {
        f"has the field {', '.join(strange)}, which may lead outside of the version": bool(strange),
        f"is that of {config.name}": config.name != model,
        "has a Python environment of its own": any(
            name.upper() == "EXECUTION_ENV_PATH" for name in config.parameters
        ),
        f"asks for more than {MOST_INSTANCES} instances": sum(group.count for group in config.instance_group)
        > MOST_INSTANCES,
        "has files, and is an ensemble's": ensemble and bool(files),
        f"has the backend {backend}": not ensemble and backend not in _BACKENDS,
        f"has no file for the backend {backend}": not ensemble
        and not suffixes & _BACKENDS.get(backend, set()),
        "has a model.py that its backend does not run": backend != "python" and ".py" in suffixes,
        f"names the file {named}, which is not in the version": bool(named)
        and named not in {path.split("/", 2)[2] for path in files},
        "selects another version": not ensemble and selected != versions,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
