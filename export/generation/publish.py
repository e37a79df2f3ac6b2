"""Write proven decoders into a Triton model repository: one model, a version per precision."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as triton

from export.checkpoint.source import Checkpoint
from export.exported import Exported
from export.generation.checkpoint import DecoderSettings
from export.generation.config import context_of, generation_config
from export.generation.recipe import GenerationRecipe
from export.generation.verify import files_of
from export.repository import ModelFiles, Published, check_kind, model_py, versions
from shoal.model_config import to_text
from shoal.placing import put_in_place


@dataclass(frozen=True)
class Decoder:
    """What a decoder's versions are made from.

    Attributes:
        tokenizer: path of the `tokenizer.json` that is served.
    """

    recipe: GenerationRecipe
    checkpoint: Checkpoint
    settings: DecoderSettings
    tokenizer: Path


def part_of(exported: Exported, decoder: Decoder) -> ModelFiles:
    """A graph as a version of one model that tokenizes and generates."""
    recipe = decoder.recipe
    files: dict[str, Path | str] = {part.name: part for part in files_of(exported.path)}
    files |= {
        "tokenizer.json": decoder.tokenizer.read_text(encoding="utf-8"),
        "model.py": model_py("generation"),
    }
    return ModelFiles(
        recipe.name, files, lambda version: generation_config(recipe, decoder.settings, version=version)
    )


def write_vllm(repository: Path, work: Path, decoder: Decoder) -> Published:
    """The layout of Triton's vLLM backend: `model.json` with the engine's arguments, and a config.

    The weights stay where they are, and nothing of this is measured: that takes a GPU.
    """
    recipe, checkpoint = decoder.recipe, decoder.checkpoint
    check_kind(repository, recipe.name, recipe.to_dict())
    staged = work / "publish"
    version = max(versions(repository / recipe.name), default=0) + 1
    folder = staged / recipe.name / str(version)
    folder.mkdir(parents=True)
    engine: dict[str, Any] = {
        "model": checkpoint.id if checkpoint.kind == "hub" else str(checkpoint.folder),
        "max_model_len": context_of(recipe, decoder.settings),
        "max_num_seqs": recipe.max_num_seqs,
        "enable_prefix_caching": recipe.prefix_cache_tokens > 0,
        "gpu_memory_utilization": 0.9,
        "disable_log_stats": True,
        "trust_remote_code": False,
    }
    if checkpoint.kind == "hub":
        engine["revision"] = checkpoint.revision
    (folder / "model.json").write_text(json.dumps(engine, indent=2) + "\n")
    # The backend fills in inputs and outputs by itself; where the instance runs is vLLM's business.
    config = triton.ModelConfig(name=recipe.name, backend="vllm")
    config.instance_group.add(count=1, kind=triton.ModelInstanceGroup.KIND_MODEL)
    config.version_policy.specific.versions.append(version)
    if decoder.settings.chat_template:
        config.parameters["chat_template"].string_value = decoder.settings.chat_template
    selected = {Path(recipe.name) / "config.pbtxt": to_text(config)}
    put_in_place(repository, staged, [recipe.name], selected)
    return Published(recipe.name, version, "vllm", new=True)
