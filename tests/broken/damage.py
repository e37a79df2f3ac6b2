"""What is done to a copy of a sound checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from tests import tiny

Case = tuple[str, Callable[[Path], Any], list[str], int, str]
"""Which sound checkpoint, what is done to a copy of it, flags, exit code and the line."""

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
WEIGHTS = "model.safetensors"
SENTENCE = "config_sentence_transformers.json"


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def cut(path: Path) -> None:
    write(path, path.read_bytes()[: path.stat().st_size // 2])


def weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def modules(*types: str, **configs: Any) -> Callable[[Path], None]:
    def made(folder: Path) -> None:
        entries = [
            {"idx": index, "name": str(index), "path": "" if not index else f"{index}_M", "type": kind}
            for index, kind in enumerate(types)
        ]
        for index in range(1, len(types)):
            (folder / f"{index}_M").mkdir()
        for name, config in configs.items():
            write(folder / f"{name.removeprefix('_')}_M" / CONFIG, json.dumps(config))
        write(folder / "modules.json", json.dumps(entries))

    return made


def another(architecture: str, **config: Any) -> Callable[[Path], None]:
    """A random model of another class in the place of the one that is there."""

    def made(folder: Path) -> None:
        kind = getattr(transformers, architecture)
        torch.manual_seed(0)
        kind(kind.config_class(**config)).save_pretrained(folder)

    return made


FIRST, POOLING = "sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"
VISION = {k: v for k, v in tiny.VISION.items() if k != "vocab_size"}
MEAN = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
