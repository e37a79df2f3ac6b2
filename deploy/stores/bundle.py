"""What a version consists of in a store: a list of its files with their sizes and SHA-256, and nothing else.

What comes from a store is not trusted: names, sizes and bytes are checked. Nothing in it may be code, but for
the one line by which a model names a module of `serving.models`.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from shoal import model_config
from shoal.errors import RepositoryError
from shoal.hashes import sha256
from shoal.layout import is_version
from shoal.manifest import FILENAME, Manifest
from shoal.names import check_name

MOST_BYTES = 4 << 20  # of a bundle's own text
MOST_FILES = 10_000
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_SUFFIXES = {".bin", ".data", ".json", ".onnx", ".plan", ".txt", ".xml"}  # files that no part of Triton runs
_MODEL_PY = re.compile(rb"from serving\.models\.[a-z0-9_]+ import TritonPythonModel  # noqa: F401\n")
_BACKENDS = {"", "onnxruntime", "python", "tensorrt", "tensorrt_plan"}


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
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
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
            if len(parts) < 3 or not _is_place(parts) or not known:
                raise ValueError(f"{path!r} is no file of a model repository that may be pulled")
            if file.size < 0 or not re.fullmatch(r"[0-9a-f]{64}", file.sha256):
                raise ValueError(f"size or SHA-256 of {path} is none")
        for folder in self.folders:
            if len(parts := folder.split("/")) != 2 or not _is_place(parts):
                raise ValueError(f"{folder!r} is no folder of a version")
        if self.manifest not in self.files:
            raise ValueError(f"it lacks {self.manifest}")


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
        config: Any = model_config.parse(text)
        own = [name for name in config.parameters if name.upper() == "EXECUTION_ENV_PATH"]
        backend = config.backend or config.platform
        if config.name != model or own or backend not in {*_BACKENDS, "ensemble"}:
            raise refused(f"the config of {model} has another name, an environment or a backend of its own")
