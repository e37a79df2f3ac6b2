"""Where a checkpoint comes from, and what its own files say of how it is to be used.

Only safetensors weights are read and no code of the checkpoint is run.
"""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from shoal.errors import ExportError, RepositoryError, UsageError
from shoal.manifest import Manifest, sha256

# What is fetched from a hub: configuration, tokenizer, safetensors. Never pickled weights, never code.
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*/config.json"]
# Models that keep the first two positions for padding.
_OFFSET = ("camembert", "data2vec-text", "ibert", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta")


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face folder on this disk.

    Attributes:
        folder: holds `config.json`, `*.safetensors`, and `tokenizer.json` or `preprocessor_config.json`.
        id: what the user asked for.
        kind: `package`, `folder` or `hub`.
        revision: the package's version, the hub's commit, or "" for a folder.
    """

    folder: Path
    id: str
    kind: str
    revision: str

    @property
    def config(self) -> dict[str, Any]:
        """`config.json`.

        Raises:
            ExportError: it cannot be read.
        """
        return dict(read_json(self.folder / "config.json"))

    def describe(self) -> dict[str, Any]:
        """For the manifest: identity and the hash of the weights."""
        return {
            "id": self.id,
            "kind": self.kind,
            "revision": self.revision,
            "sha256": {p.name: sha256(p) for p in sorted(self.folder.glob("*.safetensors"))},
        }


@dataclass(frozen=True)
class SentenceSettings:
    """How a checkpoint turns token vectors into one vector a text.

    Attributes:
        pooling: `mean` (over real tokens), `cls` (the first token) or `lasttoken` (the last real one).
        normalize: whether the vector is scaled to length one.
        prompts: what is put before a text, by the name of its use, e.g. `query`.
    """

    pooling: str
    normalize: bool
    prompts: dict[str, str]


def find_checkpoint(source: str) -> Checkpoint:
    """Resolve a folder, an installed pip package or a hub id, in this order.

    Raises:
        UsageError: it is none of these, or the hub cannot be reached.
        ExportError: it was found but holds no safetensors checkpoint with a fast tokenizer.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _checked(Checkpoint(folder.resolve(), source, "folder", ""))
    if re.fullmatch(r"[A-Za-z0-9_.-]+", source):
        spec = importlib.util.find_spec(source.replace("-", "_").replace(".", "_"))
        for location in (spec.submodule_search_locations or []) if spec else []:
            for config in sorted(Path(location).glob("**/config.json")):
                if any(config.parent.glob("*.safetensors")):
                    return _checked(Checkpoint(config.parent, source, "package", metadata.version(source)))
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        return _checked(_from_hub(source))
    raise UsageError(f"no checkpoint at {source}", hint="give a folder, an installed package or a hub id")


def _from_hub(source: str) -> Checkpoint:
    from huggingface_hub import snapshot_download  # noqa: PLC0415

    try:
        folder = Path(snapshot_download(source, allow_patterns=_HUB_FILES))
    except Exception as error:  # what requests raises, or httpx: that depends on the client's version
        raise UsageError(
            f"{source} is not a folder, not an installed package, and could not be had from the hub",
            hint=f"check the name and the network; {type(error).__name__}",
        ) from error
    return Checkpoint(folder, source, "hub", folder.name)


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    folder = checkpoint.folder
    prepares = ("tokenizer.json", "preprocessor_config.json")  # text, images
    if not (folder / "config.json").is_file() or not any((folder / name).is_file() for name in prepares):
        missing = "tokenizer.json" if (folder / "config.json").is_file() else "config.json"
        hint = "a Hugging Face folder with a fast tokenizer is needed, or one of an image model"
        raise ExportError(f"{folder} has no {missing}", hint=hint)
    if not any(folder.glob("*.safetensors")):
        raise ExportError(
            f"{folder} has no *.safetensors",
            hint="pickled weights are not read; save as safetensors",
        )
    return checkpoint


def check_source(checkpoint: Checkpoint, manifest: Manifest) -> None:
    """Refuse to measure a version against a checkpoint that it was not made from.

    Raises:
        RepositoryError: the weights are others.
    """
    if checkpoint.describe()["sha256"] != manifest.source["sha256"]:
        raise RepositoryError(
            f"{checkpoint.id} is not what {manifest.network}/{manifest.version} was made from",
            hint=f"get revision {manifest.source['revision'] or '(unknown)'} of it, or export again",
        )


def max_length_of(checkpoint: Checkpoint) -> int:
    """Longest input in tokens, as the checkpoint's files state it."""
    config = checkpoint.config
    limit = int(config.get("max_position_embeddings") or 512)
    if config.get("model_type") in _OFFSET:
        limit -= 2
    transformer = read_json(checkpoint.folder / "sentence_bert_config.json", {})
    tokenizer = read_json(checkpoint.folder / "tokenizer_config.json", {})
    stated = transformer.get("max_seq_length") or tokenizer.get("model_max_length")
    return min(int(stated), limit) if stated else limit


def sentence_settings(checkpoint: Checkpoint) -> SentenceSettings:
    """Read the sentence-transformers files beside a checkpoint; mean pooling where there are none.

    Raises:
        ExportError: the checkpoint asks for a module or a pooling that is not supported, by name.
    """
    folder = checkpoint.folder
    pooling = "mean"
    modules = read_json(folder / "modules.json", [])
    for module in modules:
        kind = module["type"].rpartition(".")[2]
        if kind == "Pooling":
            pooling = _pooling(read_json(folder / module["path"] / "config.json"))
        elif kind not in ("Transformer", "Normalize"):
            raise ExportError(f"{checkpoint.id} uses the module {module['type']}, which is not supported")
    if read_json(folder / "sentence_bert_config.json", {}).get("do_lower_case"):
        raise ExportError(f"{checkpoint.id} lower-cases text before its tokenizer, which is not supported")
    normalize = not modules or any(module["type"].endswith(".Normalize") for module in modules)
    stated = read_json(folder / "config_sentence_transformers.json", {})
    prompts = {name: text for name, text in (stated.get("prompts") or {}).items() if text}
    return SentenceSettings(pooling, normalize, prompts)


def _pooling(config: dict[str, Any]) -> str:
    if isinstance(config.get("pooling_mode"), str):  # as sentence-transformers 5 writes it
        config |= {f"pooling_mode_{config['pooling_mode']}": True}
    if config.get("include_prompt") is False:
        raise ExportError("pooling that leaves a prompt out is not supported", hint="include_prompt: true")
    names = {
        "pooling_mode_mean": "mean",
        "pooling_mode_cls": "cls",
        "pooling_mode_lasttoken": "lasttoken",
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "cls",
    }
    asked = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    if len(asked) != 1 or asked[0] not in names:
        hint = "mean, cls or lasttoken"
        raise ExportError(f"pooling {' + '.join(asked) or '(none)'} is not supported", hint=hint)
    return names[asked[0]]


def read_json(path: Path, default: Any = None) -> Any:
    """A JSON file of a checkpoint, or the default where there is one and no file.

    Raises:
        ExportError: it cannot be read.
    """
    if default is not None and not path.exists():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error
