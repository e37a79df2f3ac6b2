"""The whole way from an encoder-decoder checkpoint to published versions; see `export.pipeline`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from google.protobuf import text_format
from transformers import PreTrainedModel
from tritonclient.grpc import model_config_pb2 as triton

from export.backbone import LONGEST, positions_of
from export.evidence import verified
from export.opened import open_tokenizer
from export.outcome import Outcome, tools_of
from export.raw import encoder_decoder as raw
from export.raw.evidence import RawEvidence
from export.raw.measure import Reference, compare
from export.raw.served import Wire, version_folder
from export.repository import Provenance, Published, check_kind, staging, write
from export.source import Checkpoint, check_source
from export.text2text import verify
from export.text2text.checkpoint import find_encoder_decoder, load_original, search_of
from export.text2text.labelled import read_pairs
from export.text2text.publish import part_of, release
from export.text2text.quantize import quantize_int8
from export.text2text.recipe import Text2TextRecipe
from export.text2text.to_onnx import Graphs, require_optimum, to_onnx
from export.tokenization import write_tokenizer
from serving.models.text2text import TOKENIZER, Settings
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
    labelled = read_pairs(recipe.eval_data) if recipe.eval_data else []
    with staging(repository) as work:
        check_kind(repository, recipe.name, recipe.to_dict())
        with progress.step(f"Load {checkpoint.id}"):
            original = load_original(checkpoint)
            settings = settings_of(original, recipe, checkpoint)
        candidates = build(original, recipe, settings, checkpoint, work, progress)
        measured = verify.measure(original, candidates, settings, labelled=labelled, progress=progress)
        read = raw.Texts(open_tokenizer(checkpoint), work / "fp32" / TOKENIZER, settings, recipe.max_length)
        reference = raw.reference_of(original, read, progress)
        with progress.step("Compare answers to raw inputs", total=len(candidates)) as advance:
            for precision, graphs in candidates.items():
                part = part_of(graphs, recipe, settings)
                folder = version_folder(part.files, work / "raw" / precision / "1")
                answers = _answers(reference, part.config(1), folder, precision)
                measured[precision] = replace(measured[precision], raw=answers)
                advance()
        on_evidence(list(measured.values()))
        proven = verified(candidates, measured)
        tools = tools_of(_TOOLS)
        provenance = Provenance(recipe.name, recipe.to_dict(), checkpoint.describe(), tools)
        with progress.step(f"Write versions to {repository}"):
            releases = [
                release(item, candidates[item.evidence.precision], recipe, settings) for item in proven
            ]
            published = write(releases, repository, work, provenance)
    return Outcome(tuple(measured.values()), tuple(published), recipe.TASK)


def verify_published(
    found: Sequence[Manifest], repository: Path, *, eval_data: Path | None, progress: Silent
) -> Outcome:
    """Measure published versions again; see `export.pipeline.verify_published`.

    Args:
        found: at least one manifest, all of one model, whose files have been checked.
    """
    labelled = read_pairs(eval_data) if eval_data else []
    evidence: list[Evidence] = []
    for manifest in found:
        recipe = Text2TextRecipe.from_dict(manifest.recipe)
        checkpoint = find_encoder_decoder(recipe.source)
        check_source(checkpoint, manifest)
        with progress.step(f"Load {checkpoint.id} for version {manifest.version}"):
            original = load_original(checkpoint)
            settings = settings_of(original, recipe, checkpoint)
        folder = repository / manifest.network / str(manifest.version)
        graphs = {manifest.precision: Graphs.read_both(folder)}
        measured = verify.measure(original, graphs, settings, labelled=labelled, progress=progress)
        read = raw.Texts(open_tokenizer(checkpoint), folder / TOKENIZER, settings, recipe.max_length)
        reference = raw.reference_of(original, read, progress)
        config = text_format.Parse(manifest.configs[manifest.network], triton.ModelConfig())
        answers = _answers(reference, config, folder, manifest.precision)
        evidence.append(replace(measured[manifest.precision], raw=answers))
    versions = [Published(m.network, m.version, m.precision, new=False) for m in found]
    return Outcome(tuple(evidence), tuple(versions), Text2TextRecipe.TASK)


def verify_wire(manifest: Manifest, repository: Path, address: str, progress: Silent) -> RawEvidence:
    """The answers of a running server to raw inputs; see `export.router.verify_wire`."""
    recipe = Text2TextRecipe.from_dict(manifest.recipe)
    checkpoint = find_encoder_decoder(recipe.source)
    check_source(checkpoint, manifest)
    with progress.step(f"Load {checkpoint.id} for version {manifest.version}"):
        original = load_original(checkpoint)
        settings = settings_of(original, recipe, checkpoint)
    with TemporaryDirectory() as folder:
        library = open_tokenizer(checkpoint)
        read = raw.Texts(library, write_tokenizer(library, Path(folder)), settings, recipe.max_length)
        reference = raw.reference_of(original, read, progress)
        with Wire(address) as caller, progress.step(f"Ask {manifest.model} over the wire"):
            return compare(reference, caller, manifest.model, raw.TOLERANCES[manifest.precision])


def _answers(reference: Reference, config: triton.ModelConfig, folder: Path, precision: str) -> RawEvidence:
    """The figures of a version whose files lie in a folder."""
    with raw.in_process(config, folder) as caller:
        return compare(reference, caller, config.name, raw.TOLERANCES[precision])


def build(
    original: PreTrainedModel,
    recipe: Text2TextRecipe,
    settings: Settings,
    checkpoint: Checkpoint,
    work: Path,
    progress: Silent,
) -> dict[str, Graphs]:
    """Both graphs in each precision, in the recipe's order, and beside them their tokenizer."""
    folders = {precision: work / precision for precision in {"fp32", *recipe.precisions}}
    for folder in folders.values():
        folder.mkdir()
        write_tokenizer(open_tokenizer(checkpoint), folder)
    with progress.step("Export to ONNX through optimum"):
        made = {"fp32": to_onnx(original, folders["fp32"])}
    if "int8" in recipe.precisions:
        made["int8"] = quantize_int8(made["fp32"], folders["int8"], settings, progress)
    return {precision: made[precision] for precision in recipe.precisions}


def settings_of(original: PreTrainedModel, recipe: Text2TextRecipe, checkpoint: Checkpoint) -> Settings:
    """How a model is served."""
    library = open_tokenizer(checkpoint)
    limits = (library.model_max_length, positions_of(original), LONGEST)
    stated = min(int(limit) for limit in limits if limit)
    return Settings(
        search_of(original, recipe),
        min(recipe.max_length or stated, stated),
        recipe.max_text_bytes,
        library.truncation_side,
        max_queue_size=recipe.max_queue_size,
    )
