"""Write proven decoders into a Triton model repository: one model, a version per precision."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as triton

from export import config as texts
from export.generation.checkpoint import DecoderSettings
from export.generation.config import context_of, generation_config
from export.generation.recipe import GenerationRecipe
from export.generation.verify import files_of
from export.repository import Published, move_versions, next_version, same_version, sync
from export.source import Checkpoint
from export.verify import Verified
from shoal import machine
from shoal.manifest import FILENAME, Manifest, sha256
from shoal.paths import write_json

MODEL_PY = "from serving.models.generation import TritonPythonModel  # noqa: F401\n"


@dataclass(frozen=True)
class DecoderProvenance:
    """Where versions come from: what the manifest records beside the evidence."""

    recipe: GenerationRecipe
    checkpoint: Checkpoint
    settings: DecoderSettings
    tools: dict[str, str]


def write(
    verified: Sequence[Verified], repository: Path, work: Path, provenance: DecoderProvenance
) -> list[Published]:
    """Publish proven graphs as versions of one model, the last of them served.

    Args:
        verified: at least one, in order of preference, the best last.
        repository: the Triton model repository.
        work: a folder from `export.repository.staging(repository)`.

    Raises:
        OSError: the disk is full or the repository cannot be written; what was served still is.
    """
    recipe = provenance.recipe
    model, staged = repository / recipe.name, work / "publish" / recipe.name
    staged.mkdir(parents=True)
    published: list[Published] = []
    renewed: list[Manifest] = []
    version = next_version(model)
    for item in verified:
        known = same_version(model, "model.onnx", sha256(item.exported.path))
        number = known or version
        folder = model / str(number) if known else staged / str(number)
        if known is None:
            folder.mkdir()
            for part in files_of(item.exported.path):
                part.replace(folder / part.name.replace(item.exported.path.name, "model.onnx"))
            shutil.copyfile(provenance.checkpoint.folder / "tokenizer.json", folder / "tokenizer.json")
            (folder / "model.py").write_text(MODEL_PY)
            version += 1
        manifest = _manifest(item, provenance, number, folder)
        if known is None:
            write_json(folder / FILENAME, manifest.to_dict())
        else:
            renewed.append(manifest)
        published.append(Published(recipe.name, number, item.evidence.precision, new=known is None))
    served = generation_config(recipe, provenance.settings, version=published[-1].version)
    (staged / "config.pbtxt").write_text(texts.to_text(served))
    for manifest in renewed:
        write_json(model / str(manifest.version) / FILENAME, manifest.to_dict())
    _move(staged, model)
    return published


def _move(staged: Path, model: Path) -> None:
    """Versions first, then the config that selects one of them."""
    sync(staged)
    move_versions(staged, model)
    if staged.exists():
        (staged / "config.pbtxt").replace(model / "config.pbtxt")


def _manifest(item: Verified, provenance: DecoderProvenance, version: int, folder: Path) -> Manifest:
    recipe = provenance.recipe
    files = ("model.onnx", "model.onnx.data", "model.onnx.moves", "tokenizer.json", "model.py")
    return Manifest(
        model=recipe.name,
        network=recipe.name,
        version=version,
        precision=item.evidence.precision,
        source=provenance.checkpoint.describe(),
        recipe=recipe.to_dict(),
        files={
            f"{recipe.name}/{version}/{name}": sha256(folder / name)
            for name in files
            if (folder / name).exists()
        },
        onnx=item.exported.describe(),
        tools=provenance.tools,
        machine=machine.describe(),
        evidence=item.evidence.to_dict(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def write_vllm(repository: Path, work: Path, provenance: DecoderProvenance) -> Published:
    """The layout of Triton's vLLM backend: `model.json` with the engine's arguments, and a config.

    The weights stay where they are, and nothing of this is measured: that takes a GPU.
    """
    recipe, checkpoint = provenance.recipe, provenance.checkpoint
    model, staged = repository / recipe.name, work / "publish" / recipe.name
    version = next_version(model)
    (staged / str(version)).mkdir(parents=True)
    engine: dict[str, Any] = {
        "model": checkpoint.id if checkpoint.kind == "hub" else str(checkpoint.folder),
        "max_model_len": context_of(recipe, provenance.settings),
        "max_num_seqs": recipe.max_num_seqs,
        "enable_prefix_caching": recipe.prefix_cache_tokens > 0,
        "gpu_memory_utilization": 0.9,
        "disable_log_stats": True,
        "trust_remote_code": False,
    }
    if checkpoint.kind == "hub":
        engine["revision"] = checkpoint.revision
    (staged / str(version) / "model.json").write_text(json.dumps(engine, indent=2) + "\n")
    # The backend fills in inputs and outputs by itself; where the instance runs is vLLM's business.
    config = triton.ModelConfig(name=recipe.name, backend="vllm")
    config.instance_group.add(count=1, kind=triton.ModelInstanceGroup.KIND_MODEL)
    config.version_policy.specific.versions.append(version)
    if provenance.settings.chat_template:
        config.parameters["chat_template"].string_value = provenance.settings.chat_template
    (staged / "config.pbtxt").write_text(texts.to_text(config))
    _move(staged, model)
    return Published(recipe.name, version, "vllm", new=True)
