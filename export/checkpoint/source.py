"""Where a checkpoint comes from. Only safetensors weights are read and no code of the checkpoint is run.

What its files say of how it is to be used, the libraries tell that they are made for:
`export.checkpoint.opened`.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import safe_open

from shoal.errors import ExportError, RepositoryError, UsageError
from shoal.hashes import sha256
from shoal.manifest import Manifest

# What is fetched from a hub, and what a checkpoint is known by: configuration, tokenizer, safetensors. Never
# pickled weights, never code.
_NAMES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")
_FILES = [*_NAMES, *(f"*/{name}" for name in _NAMES)]
CONFIG = "config.json"
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face folder on this disk.

    Attributes:
        folder: holds the files; `transformer` is where `config.json` and the weights lie.
        id: what the user asked for.
        kind: `package`, `folder` or `hub`.
        revision: the package's version, the hub's commit, or "" for a folder.
    """

    folder: Path
    id: str
    kind: str
    revision: str

    @property
    def transformer(self) -> Path:
        """The transformer's folder: the checkpoint's own, or one that sentence-transformers made in it."""
        if (self.folder / CONFIG).exists():
            return self.folder
        return self.folder / str(_first_module(self.folder).get("path") or "")

    @property
    def config(self) -> dict[str, Any]:
        """`config.json`.

        Raises:
            ExportError: it cannot be read.
        """
        path = self.transformer / CONFIG
        config = read_json(path)
        if not isinstance(config, dict):
            raise ExportError(f"{path} holds no JSON object", hint="is it of a Hugging Face model?")
        return config

    def describe(self) -> dict[str, Any]:
        """Describe it for the manifest: identity, and the hash of every file that decides on an answer."""
        found = sorted({path for pattern in _FILES for path in self.folder.glob(pattern) if path.is_file()})
        hashes = {str(path.relative_to(self.folder)): sha256(path) for path in found}
        return {"id": self.id, "kind": self.kind, "revision": self.revision, "sha256": hashes}


def find_checkpoint(source: str) -> Checkpoint:
    """Resolve a folder, an installed pip package or a hub id, in this order.

    Raises:
        UsageError: it is none of these, or the hub cannot be reached.
        ExportError: it was found but holds no checkpoint with safetensors.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _checked(Checkpoint(folder.resolve(), source, "folder", ""))
    if folder.is_file():
        raise UsageError(f"{source} is a file", hint=f"give the folder that holds it: {folder.parent}")
    for place in package_folders(source):
        for config in sorted(place.glob(f"**/{CONFIG}")):
            if any(config.parent.glob("*.safetensors")):
                return _checked(Checkpoint(config.parent, source, "package", package_version(source)))
    if re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source):
        return _checked(_from_hub(source))
    raise UsageError(f"no checkpoint at {source}", hint="give a folder, an installed package or a hub id")


def package_folders(source: str) -> list[Path]:
    """The folders of an installed package, which is not imported; none where there is no such package."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", source):
        return []
    try:
        spec = importlib.util.find_spec(re.sub(r"[-.]", "_", source))
    except (ImportError, ValueError):
        return []
    return [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []


def package_version(source: str) -> str:
    """The version of an installed package; "" of a folder with code that nothing installed."""
    try:
        return metadata.version(source)
    except metadata.PackageNotFoundError:
        return ""


def _from_hub(source: str) -> Checkpoint:
    from huggingface_hub import snapshot_download  # noqa: PLC0415

    try:
        folder = Path(snapshot_download(source, allow_patterns=_FILES))
    except Exception as error:  # what requests raises, or httpx: that depends on the client's version
        raise UsageError(
            f"{source} is not a folder, not an installed package, and could not be had from the hub",
            hint=f"check the name and the network; {type(error).__name__}",
        ) from error
    return Checkpoint(folder, source, "hub", folder.name)


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    folder = checkpoint.transformer
    if (folder / "adapter_config.json").is_file() and not any(folder.glob("model*.safetensors")):
        raise ExportError(
            f"{folder} holds an adapter and no model",
            hint="put it into its model with PEFT: model.merge_and_unload().save_pretrained(FOLDER)",
        )
    if not (folder / CONFIG).is_file():
        if first := str(_first_module(checkpoint.folder).get("type", "")).rpartition(".")[2]:
            raise ExportError(
                f"{checkpoint.folder} begins with the module {first}, which is no transformer",
                hint="a transformer, Pooling, Dense, LayerNorm and Normalize can be exported",
            )
        raise ExportError(
            f"{folder} has no {CONFIG}", hint="give the folder that a Hugging Face model was saved to"
        )
    if not any(folder.glob("*.safetensors")):
        pickled = next((path.name for path in folder.glob("*.bin")), None)
        raise ExportError(
            f"{folder} has no *.safetensors" + (f", only {pickled}, which is a pickle" if pickled else ""),
            hint="load it where you trust it and save it again: save_pretrained(FOLDER) writes safetensors",
        )
    for path in sorted(folder.glob("*.safetensors")):
        _check_whole(path)
    return checkpoint


def _check_whole(path: Path) -> None:
    """Refuse a file of weights that was cut off or is damaged, by its header.

    Raises:
        ExportError: it is.
    """
    try:
        with safe_open(path, "np"):
            return
    except Exception as error:  # safetensors' own has no base but Exception
        pointer = path.read_bytes()[: len(_POINTER)] == _POINTER
        raise ExportError(
            f"{path} is cut off or damaged ({path.stat().st_size} bytes): {error}",
            hint="it is a pointer: git lfs pull" if pointer else "copy or download it again",
        ) from error


def _first_module(folder: Path) -> dict[str, Any]:
    """What sentence-transformers has saved of its first module; empty: it has saved none there."""
    modules = read_json(folder / "modules.json", [])
    first = modules[0] if isinstance(modules, list) and modules else {}
    return first if isinstance(first, dict) else {}


def check_source(checkpoint: Checkpoint, versions: Sequence[Manifest]) -> None:
    """Refuse to measure versions against a checkpoint that they were not made from.

    Raises:
        RepositoryError: a file is another.
    """
    now = checkpoint.describe()["sha256"] if versions else {}
    for manifest in versions:
        then = manifest.source["sha256"]
        if {name: now.get(name) for name in then} != then:
            raise RepositoryError(
                f"{checkpoint.id} is not what {manifest.network}/{manifest.version} was made from",
                hint=f"get revision {manifest.source['revision'] or '(unknown)'} of it, or export again",
            )


def read_json(path: Path, default: Any = None) -> Any:
    """A JSON file of a checkpoint, or the default where there is one and no file.

    Raises:
        ExportError: it cannot be read.
    """
    if default is not None and not path.exists():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{path} cannot be read: {error}", hint="is the download complete?") from error
