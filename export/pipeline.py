"""The whole way from a recipe to published versions, and the check of what is already published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Any

import torch

from export import verify
from export.exported import Exported
from export.generation import pipeline as generation
from export.generation.recipe import GenerationRecipe
from export.optimize import fuse, fuse_around_matmuls
from export.outcome import Outcome, disk_errors_named
from export.quantize import quantize_int8
from export.recipe import Recipe
from export.repository import Provenance, Published, staging, write
from export.source import Checkpoint, SentenceSettings, find_checkpoint, sentence_settings
from export.to_onnx import SentenceEmbedder, load_embedder, to_onnx
from export.tokenization import Encoder
from shoal import corpus
from shoal.errors import RepositoryError
from shoal.machine import available_cpus
from shoal.manifest import manifests
from shoal.progress import Silent

CALIBRATION_TEXTS = 64
CALIBRATION_BATCH = 8
_TOOLS = ("torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime", "tokenizers", "numpy")


def export_any(recipe: Recipe | GenerationRecipe, repository: Path, **options: Any) -> Outcome:
    """`export`, or `export.generation.pipeline.export`, by the kind of recipe."""
    if isinstance(recipe, Recipe):
        return export(recipe, repository, **options)
    return generation.export(recipe, repository, **options)


def export(
    recipe: Recipe,
    repository: Path,
    *,
    progress: Silent | None = None,
    on_evidence: Callable[[Sequence[verify.Evidence]], None] = lambda evidence: None,
) -> Outcome:
    """Export, optimize, quantize, measure, and publish what is proven.

    Args:
        repository: the Triton model repository; made where it does not exist.
        on_evidence: called with all evidence before anything is published or refused.

    Raises:
        UsageError, ExportError: the checkpoint cannot be found or turned into ONNX.
        NotProven: no precision reached its tolerance; nothing was written.
        RepositoryError: the repository cannot be written or its disk is full; nothing was changed.
    """
    progress = progress or Silent()
    checkpoint = find_checkpoint(recipe.source)
    settings = settings_of(checkpoint, recipe)
    with staging(repository) as work, disk_errors_named(repository):
        with progress.step(f"Load {checkpoint.id}"):
            embedder = load_embedder(checkpoint, settings)
            encode = encoder_of(checkpoint, settings, embedder)
        candidates = build(recipe, embedder, encode, work, progress)
        evidence = verify.measure(
            as_model(embedder), candidates, encode, eval_data=recipe.eval_data, progress=progress
        )
        on_evidence(list(evidence.values()))
        proven = verify.verified(candidates, evidence)
        provenance = Provenance(
            recipe=recipe,
            source=checkpoint.describe(),
            tools={"python": python_version()} | {name: metadata.version(name) for name in _TOOLS},
            tokenizer=checkpoint.folder / "tokenizer.json",
            max_length=settings.max_length,
            pad_id=_pad_id(embedder),
        )
        with progress.step(f"Write versions to {repository}"):
            published = write(proven, repository, work, provenance)
    return Outcome(tuple(evidence.values()), tuple(published))


def verify_published(
    name: str, repository: Path, *, eval_data: Path | None = None, progress: Silent | None = None
) -> Outcome:
    """Measure the published versions of a model again, against the checkpoint they came from.

    Raises:
        RepositoryError: there is no such model, its files are not those that were measured, or the
            checkpoint is not the one it was made from.
    """
    progress = progress or Silent()
    found = {manifest.version: manifest for manifest in manifests(repository, name)}
    if not found:
        raise RepositoryError(f"{repository} holds no version of {name}", hint=f"shoal export --name {name}")
    for manifest in found.values():
        manifest.check_files(repository)
    if manifest.recipe.get("task") == GenerationRecipe.TASK:
        return generation.verify_published(
            list(found.values()), repository, eval_data=eval_data, progress=progress
        )
    evidence: list[verify.Evidence] = []
    for version, manifest in found.items():
        recipe = Recipe.from_dict(manifest.recipe)
        checkpoint = find_checkpoint(recipe.source)
        if checkpoint.describe()["sha256"] != manifest.source["sha256"]:
            raise RepositoryError(
                f"{recipe.source} is not the checkpoint that {manifest.network}/{version} was made from",
                hint=f"get revision {manifest.source['revision'] or '(unknown)'} of it, or export again",
            )
        settings = settings_of(checkpoint, recipe)
        with progress.step(f"Load {checkpoint.id} for version {version}"):
            embedder = load_embedder(checkpoint, settings)
            encode = encoder_of(checkpoint, settings, embedder)
        graph = Exported.read(repository / manifest.network / str(version) / "model.onnx")
        measured = verify.measure(
            as_model(embedder), {manifest.precision: graph}, encode, eval_data=eval_data, progress=progress
        )
        evidence.append(measured[manifest.precision])
    versions = [Published(m.network, m.version, m.precision, new=False) for m in found.values()]
    return Outcome(tuple(evidence), tuple(versions))


def settings_of(checkpoint: Checkpoint, recipe: Recipe) -> SentenceSettings:
    """The checkpoint's own settings, the recipe's shorter length where it asks for one."""
    settings = sentence_settings(checkpoint)
    length = min(recipe.max_length or settings.max_length, settings.max_length)
    return SentenceSettings(settings.pooling, length, settings.normalize)


def encoder_of(checkpoint: Checkpoint, settings: SentenceSettings, embedder: SentenceEmbedder) -> Encoder:
    """The tokenizer that will be served, for calibration and verification."""
    return Encoder(checkpoint.folder / "tokenizer.json", settings.max_length, _pad_id(embedder))


def _pad_id(embedder: SentenceEmbedder) -> int:
    pad_id = embedder.config.pad_token_id
    return int(pad_id) if pad_id is not None else 0


def build(
    recipe: Recipe, embedder: SentenceEmbedder, encode: Encoder, work: Path, progress: Silent
) -> dict[str, Exported]:
    """One graph per precision, in the recipe's order."""
    with progress.step("Export to ONNX through optimum"):
        plain = to_onnx(embedder, work / "plain.onnx")
    made: dict[str, Exported] = {}
    for precision in recipe.precisions:
        if precision == "fp32":
            with progress.step("Fuse attention and layer norms"):
                made[precision] = fuse(plain, work / "fp32.onnx", embedder.config)
        else:
            base = fuse_around_matmuls(plain, work / "fused.onnx", embedder.config)
            texts = corpus.passages()[:CALIBRATION_TEXTS]
            feeds = [
                encode(texts[start : start + CALIBRATION_BATCH])
                for start in range(0, CALIBRATION_TEXTS, CALIBRATION_BATCH)
            ]
            made[precision] = quantize_int8(base, work / "int8.onnx", feeds, progress)
    return made


def as_model(embedder: SentenceEmbedder) -> verify.Model:
    """The PyTorch original as a function of the graph's inputs, on the CPUs this process may use."""
    torch.set_num_threads(available_cpus())

    def model(feed: verify.Feed) -> Any:
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
            return embedder(**tensors)["embedding"].numpy()

    return model
