"""The whole way from an encoder-decoder checkpoint to published versions; see `export.pipeline`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from platform import python_version

from transformers import PreTrainedModel

from export.evidence import verified
from export.outcome import Outcome, disk_errors_named
from export.repository import Provenance, Published, staging, write
from export.source import Checkpoint, check_source, max_length_of
from export.text2text import verify
from export.text2text.checkpoint import find_encoder_decoder, load_original, search_of
from export.text2text.publish import release
from export.text2text.recipe import Text2TextRecipe
from export.text2text.to_onnx import Graphs, require_optimum, to_onnx
from serving.models.text2text import TOKENIZER, Answerer, Settings
from shoal.errors import UsageError
from shoal.manifest import Manifest
from shoal.progress import Silent

_TOOLS = ("torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime", "tokenizers", "numpy")
Evidence = verify.Text2TextEvidence


def export(
    recipe: Text2TextRecipe,
    repository: Path,
    *,
    progress: Silent | None = None,
    on_evidence: Callable[[Sequence[Evidence]], None] = lambda evidence: None,
) -> Outcome:
    """Export, measure, and publish what is proven; see `export.pipeline.export`."""
    progress = progress or Silent()
    require_optimum()
    checkpoint = find_encoder_decoder(recipe.source)
    with staging(repository) as work, disk_errors_named(repository):
        with progress.step(f"Load {checkpoint.id}"):
            original = load_original(checkpoint)
            settings = settings_of(original, recipe, checkpoint)
        with progress.step("Export to ONNX through optimum"):
            graphs = to_onnx(original, work)
            shutil.copyfile(checkpoint.folder / TOKENIZER, work / TOKENIZER)
        (precision,) = recipe.precisions
        measured = {precision: _measure(original, settings, graphs, precision, progress)}
        on_evidence(list(measured.values()))
        proven = verified({precision: graphs}, measured)
        tools = {"python": python_version()} | {name: metadata.version(name) for name in _TOOLS}
        provenance = Provenance(recipe.name, recipe.to_dict(), checkpoint.describe(), tools)
        with progress.step(f"Write versions to {repository}"):
            releases = [release(item, graphs, recipe, settings) for item in proven]
            published = write(releases, repository, work, provenance)
    return Outcome(tuple(measured.values()), tuple(published), recipe.TASK)


def verify_published(
    found: Sequence[Manifest], repository: Path, *, eval_data: Path | None, progress: Silent
) -> Outcome:
    """Measure published versions again; see `export.pipeline.verify_published`.

    Args:
        found: at least one manifest, all of one model, whose files have been checked.
    """
    if eval_data is not None:
        raise UsageError(f"--eval-data is not for {Text2TextRecipe.TASK}")
    evidence: list[Evidence] = []
    for manifest in found:
        recipe = Text2TextRecipe.from_dict(manifest.recipe)
        checkpoint = find_encoder_decoder(recipe.source)
        check_source(checkpoint, manifest)
        with progress.step(f"Load {checkpoint.id} for version {manifest.version}"):
            original = load_original(checkpoint)
            settings = settings_of(original, recipe, checkpoint)
        folder = repository / manifest.network / str(manifest.version)
        evidence.append(_measure(original, settings, Graphs.read_both(folder), manifest.precision, progress))
    versions = [Published(m.network, m.version, m.precision, new=False) for m in found]
    return Outcome(tuple(evidence), tuple(versions), Text2TextRecipe.TASK)


def settings_of(original: PreTrainedModel, recipe: Text2TextRecipe, checkpoint: Checkpoint) -> Settings:
    """How a model is served."""
    stated = max_length_of(checkpoint)
    return Settings(
        search_of(original, recipe), min(recipe.max_length or stated, stated), recipe.max_text_bytes
    )


def _measure(
    original: PreTrainedModel, settings: Settings, graphs: Graphs, precision: str, progress: Silent
) -> Evidence:
    """Evidence for graphs, beside which their tokenizer lies."""
    answerer = Answerer(graphs.path.parent, settings)
    reference = verify.measure_reference(original, settings.search, verify.samples(answerer), progress)
    size = sum(part.stat().st_size for part in graphs.files)
    return verify.measure(
        reference, answerer.runner, settings.search, precision=precision, size_bytes=size, progress=progress
    )
