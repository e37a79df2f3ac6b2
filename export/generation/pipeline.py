"""The whole way from a decoder's checkpoint to published versions, and the check of what is published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from google.protobuf import text_format
from tokenizers import Tokenizer
from transformers import PreTrainedModel
from tritonclient.grpc import model_config_pb2 as triton

from export.device import require_gpu
from export.evidence import Verified, verified
from export.exported import Exported
from export.generation import publish, verify
from export.generation.checkpoint import decoder_settings, find_decoder
from export.generation.config import generation_config
from export.generation.quantize import quantize_int4, quantize_int8
from export.generation.recipe import GenerationRecipe
from export.generation.reference import prompts_of, take_reference
from export.generation.to_onnx import to_onnx
from export.loading import load
from export.opened import open_tokenizer
from export.outcome import Outcome, tools_of
from export.raw import decoder as raw
from export.raw.evidence import RawEvidence
from export.raw.measure import Reference, compare
from export.raw.served import Wire, version_folder
from export.repository import Provenance, Published, check_kind, staging, write
from export.source import Checkpoint, check_source
from export.tokenization import write_tokenizer
from serving.generation.runner import Runner
from serving.generation.sequence import SCORED_TOKENS
from shoal import corpus
from shoal.manifest import Manifest
from shoal.progress import Silent

CALIBRATION_WINDOW = 128  # tokens
CALIBRATION_WINDOWS = 16  # of documentation
CALIBRATION_WRITTEN = 32  # by the model itself
_TOOLS = ("torch", "transformers", "onnxruntime-genai", "onnx", "onnxruntime", "tokenizers", "numpy")


def export(
    recipe: GenerationRecipe,
    repository: Path,
    *,
    progress: Silent | None = None,
    on_evidence: Callable[[Sequence[verify.GenerationEvidence]], None] = lambda evidence: None,
) -> Outcome:
    """Build, quantize, measure, and publish what is proven; see `export.pipeline.export`.

    With `engine="vllm"` the layout of Triton's vLLM backend is written instead, without evidence.
    """
    progress = progress or Silent()
    require_gpu(_on_gpu(recipe))
    with staging(repository) as work:
        check_kind(repository, recipe.name, recipe.to_dict())
        with progress.step(f"Find {recipe.source}"):
            checkpoint = find_decoder(recipe.source)
            decoder = decoder_of(recipe, checkpoint, work)
        tools = tools_of(_TOOLS)
        if recipe.engine == "vllm":
            return Outcome((), (publish.write_vllm(repository, work, decoder),))
        candidates = build(recipe, checkpoint, work, progress)
        original, measured = _measure(candidates, decoder, recipe.eval_data, progress)
        answers = _reference_answers(original, decoder, progress)
        with progress.step("Compare answers to raw inputs", total=len(candidates)) as advance:
            for precision, graph in candidates.items():
                folder = version_folder(publish.part_of(graph, decoder).files, work / "raw" / precision / "1")
                config = generation_config(recipe, decoder.settings, version=1)
                measured[precision] = replace(
                    measured[precision], raw=_answers(answers, config, folder, precision)
                )
                advance()
        on_evidence(list(measured.values()))
        proven = verified(candidates, measured)
        reference = _reference(proven[-1], decoder, progress)
        with progress.step(f"Write versions to {repository}"):
            provenance = Provenance(recipe.name, recipe.to_dict(), checkpoint.describe(), tools)
            releases = [replace(publish.release(item, decoder), reference=reference) for item in proven]
            published = write(releases, repository, work, provenance)
    return Outcome(tuple(measured.values()), tuple(published))


def decoder_of(recipe: GenerationRecipe, checkpoint: Checkpoint, folder: Path) -> publish.Decoder:
    """A checkpoint with what transformers says of its use.

    Args:
        folder: the tokenizer that will be served is written there.
    """
    tokenizer = write_tokenizer(open_tokenizer(checkpoint), folder)
    return publish.Decoder(recipe, checkpoint, decoder_settings(checkpoint), tokenizer)


def _reference_answers(original: PreTrainedModel, decoder: publish.Decoder, progress: Silent) -> Reference:
    """What transformers writes after the raw inputs."""
    config = generation_config(decoder.recipe, decoder.settings, version=1)
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    prompts = raw.Prompts.of(open_tokenizer(decoder.checkpoint), decoder.tokenizer, parameters)
    return raw.reference_of(original, prompts, progress)


def _answers(reference: Reference, config: triton.ModelConfig, folder: Path, precision: str) -> RawEvidence:
    """The figures of a version whose files lie in a folder."""
    with raw.in_process(config, folder, exact=precision == "fp32") as caller:
        return compare(reference, caller, config.name, raw.TOLERANCES[precision])


def _reference(served: Verified, decoder: publish.Decoder, progress: Silent) -> dict[str, Any]:
    """Statistics of prompts, under the version that will be served; perplexities of others are near."""
    tokenizer = decoder.tokenizer
    eval_data = decoder.recipe.eval_data
    prompts = prompts_of(eval_data, tokenizer, decoder.settings)
    gpu = 0 if served.evidence.precision in GenerationRecipe.ON_GPU else None
    with progress.step("Keep statistics to see drift by", total=len(prompts)) as advance:
        runner = Runner(served.exported.path, rows=1, max_length=SCORED_TOKENS, gpu=gpu)
        labelled = eval_data is not None
        return take_reference(runner, tokenizer, prompts, labelled=labelled, advance=advance)


def verify_published(
    found: Sequence[Manifest], repository: Path, *, eval_data: Path | None, progress: Silent
) -> Outcome:
    """Measure published versions again; see `export.router.verify_published`.

    Args:
        found: at least one manifest, all of one model, whose files have been checked.
    """
    recipe = GenerationRecipe.from_dict(found[-1].recipe)
    require_gpu(_on_gpu(recipe))
    checkpoint = _checked_source(found)
    graphs = {str(manifest.version): _folder(manifest, repository) / "model.onnx" for manifest in found}
    exported = {version: Exported.read(path) for version, path in graphs.items()}
    precisions = {str(manifest.version): manifest.precision for manifest in found}
    with TemporaryDirectory() as work:
        decoder = decoder_of(recipe, checkpoint, Path(work))
        original, measured = _measure(exported, decoder, eval_data, progress, precisions)
        answers = _reference_answers(original, decoder, progress)
        with progress.step("Compare answers to raw inputs", total=len(found)) as advance:
            for manifest in found:
                config = text_format.Parse(manifest.configs[manifest.network], triton.ModelConfig())
                compared = _answers(answers, config, _folder(manifest, repository), manifest.precision)
                key = str(manifest.version)
                measured[key] = replace(measured[key], raw=compared)
                advance()
    versions = [Published(m.network, m.version, m.precision, new=False) for m in found]
    return Outcome(tuple(measured.values()), tuple(versions))


def verify_wire(manifest: Manifest, repository: Path, address: str, progress: Silent) -> RawEvidence:
    """The answers of a running server to raw inputs; see `export.router.verify_wire`."""
    checkpoint = _checked_source([manifest])
    with TemporaryDirectory() as work:
        decoder = decoder_of(GenerationRecipe.from_dict(manifest.recipe), checkpoint, Path(work))
        with progress.step(f"Load {checkpoint.id}"):
            original = load_original(checkpoint)
        reference = _reference_answers(original, decoder, progress)
        with Wire(address) as caller, progress.step(f"Ask {manifest.model} over the wire"):
            return compare(reference, caller, manifest.model, raw.TOLERANCES[manifest.precision])


def _checked_source(found: Sequence[Manifest]) -> Checkpoint:
    """The checkpoint that versions were made from."""
    checkpoint = find_decoder(str(found[-1].recipe["source"]))
    for manifest in found:
        check_source(checkpoint, manifest)
    return checkpoint


def _folder(manifest: Manifest, repository: Path) -> Path:
    return repository / manifest.network / str(manifest.version)


def build(
    recipe: GenerationRecipe, checkpoint: Checkpoint, work: Path, progress: Silent
) -> dict[str, Exported]:
    """One graph per precision, in the recipe's order."""
    made: dict[str, Exported] = {}
    if recipe.gpu:
        for precision in recipe.precisions:
            with progress.step(f"Build the graph in {precision} with ONNX Runtime GenAI"):
                made[precision] = to_onnx(checkpoint.folder, _file(work, precision), precision)
        return made
    with progress.step("Build the graph with ONNX Runtime GenAI"):
        plain = to_onnx(checkpoint.folder, _file(work, "fp32"))
    for precision in recipe.precisions:
        path = _file(work, precision)
        if precision == "fp32":
            made[precision] = plain
        elif precision == "int8":
            made[precision] = quantize_int8(plain, path, _calibration(checkpoint, plain, progress), progress)
        else:
            made[precision] = quantize_int4(plain, path, progress)
    return made


def _file(work: Path, precision: str) -> Path:
    """Where a graph is made: under the name it is served by, since a large one names its weights' file."""
    folder = work / precision
    folder.mkdir(exist_ok=True)
    return folder / "model.onnx"


def _on_gpu(recipe: GenerationRecipe) -> tuple[str, ...]:
    """Those precisions that are measured on a GPU; what vLLM makes is not measured."""
    return recipe.precisions if recipe.gpu and recipe.engine != "vllm" else ()


def _measure(
    graphs: Mapping[str, Exported],
    decoder: publish.Decoder,
    eval_data: Path | None,
    progress: Silent,
    precisions: Mapping[str, str] | None = None,
) -> tuple[PreTrainedModel, dict[str, verify.GenerationEvidence]]:
    """The PyTorch original, and evidence for each graph that this machine can run."""
    tokenizer = Tokenizer.from_file(str(decoder.tokenizer))
    chosen = verify.sample(tokenizer, eval_data, progress)
    with progress.step(f"Load {decoder.checkpoint.id}"):
        original = load_original(decoder.checkpoint)
    reference = verify.measure_reference(original, chosen, progress)
    return original, verify.measure(reference, graphs, chosen, precisions=precisions, progress=progress)


def load_original(checkpoint: Checkpoint) -> PreTrainedModel:
    """The PyTorch original; see `export.loading.load`."""
    # PyTorch's fused attention leaves out the cap on attention scores that Gemma 2 was trained with.
    capped = checkpoint.config.get("attn_logit_softcapping")
    options = {"attn_implementation": "eager"} if capped else {}
    return load("AutoModelForCausalLM", checkpoint, GenerationRecipe.TASK, **options)


def _calibration(checkpoint: Checkpoint, plain: Exported, progress: Silent) -> list[list[int]]:
    """Token ids to quantize on: documentation, and what the model writes when nobody asks it for anything.

    The latter is as varied as what the model was trained on, whatever that was (Williams et al. 2024,
    arXiv:2410.17170). Each text begins with a random token and goes on as the model would have it.
    """
    tokenizer = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json"))
    ids = tokenizer.encode("\n\n".join(corpus.passages()[1000:]), add_special_tokens=False).ids
    starts = range(0, min(len(ids), CALIBRATION_WINDOWS * CALIBRATION_WINDOW), CALIBRATION_WINDOW)
    windows = [ids[start : start + CALIBRATION_WINDOW] for start in starts]
    runner = Runner(plain.path, rows=CALIBRATION_WRITTEN, max_length=CALIBRATION_WINDOW)
    chance = np.random.default_rng(0)
    written = chance.integers(runner.vocabulary, size=(CALIBRATION_WRITTEN, 1))
    with progress.step("Let the model write sample text", total=CALIBRATION_WINDOW - 1) as advance:
        for length in range(CALIBRATION_WINDOW - 1):
            logits = runner.decode(written[:, -1].tolist(), [length] * len(written))
            # The likeliest after Gumbel noise is a sample at temperature 1.
            following = (logits + chance.gumbel(size=logits.shape)).argmax(axis=1)
            written = np.column_stack([written, following])
            advance()
    return windows + written.tolist()
