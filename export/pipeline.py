"""The whole way from a recipe to published versions, and the check of what is already published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tritonclient.grpc import model_config_pb2 as triton

from export import config, precisions, verify
from export.backbone import LONGEST, load_head, network_inputs, positions_of
from export.compress.apply import compressed
from export.device import require_gpu
from export.engines.config import ENGINE_CACHE, accelerated_config, plan_config
from export.engines.engine import Engine, make_engine, published_engine
from export.engines.library import Library
from export.engines.shapes import Profile, from_buckets, from_traffic, read_traffic, whole
from export.evidence import Evidence, Verified, verified
from export.exported import Exported
from export.opened import Opened, open_checkpoint
from export.outcome import Outcome, tools_of
from export.raw import encoder as raw
from export.raw.evidence import RawEvidence
from export.raw.measure import Reference, compare
from export.raw.served import Wire
from export.recipe import ACCELERATED, ENGINES, ON_GPU, Recipe
from export.reference import reference_rows, take_reference
from export.repository import Part, Provenance, Published, Release, check_kind, staging, write
from export.source import Checkpoint, check_source, find_checkpoint
from export.tasks import task_of
from export.tasks.heads import Head
from export.tasks.images import processor_of
from export.tasks.task import Feed, Outputs, Row, Task
from export.to_onnx import finish, to_onnx
from export.tokenization import ImageEncoder, TextEncoder, served_settings, write_tokenizer
from export.verify import Subject
from shoal import corpus
from shoal.engine import check_fits, compute_capability
from shoal.errors import NotProven
from shoal.machine import available_cpus
from shoal.manifest import Manifest
from shoal.names import ENCODER, LABELS, OUTPUT, PREPROCESSOR, TOKENIZER, part_name
from shoal.paths import cache_dir
from shoal.progress import Silent

_TOOLS = (
    "torch",
    "transformers",
    "sentence-transformers",
    "optimum",
    "optimum-onnx",
    "onnx",
    "onnxruntime",
    "tokenizers",
    "numpy",
)


@dataclass(frozen=True)
class Source:
    """A checkpoint that is ready to be exported for a task.

    Attributes:
        opened: the checkpoint in its own library.
        head: what is exported: the PyTorch original, or a smaller copy of it.
        original: what every version is compared with.
        encode: rows to features, as they will be served.
        inputs: which of the features the network reads.
    """

    recipe: Recipe
    opened: Opened
    task: Task
    head: Head
    original: Head
    encode: TextEncoder | ImageEncoder
    inputs: tuple[str, ...]

    @property
    def subject(self) -> Subject:
        """What is measured."""
        return Subject(self.task, self.opened, as_model(self.original, self.inputs), self.encode)

    def feed(self, texts: Sequence[str]) -> dict[str, Any]:
        """The network's inputs, of rows that are made from some texts."""
        features = self.encode(self.subject.rows(texts))
        return {name: features[name] for name in self.inputs}


def prepare(recipe: Recipe, checkpoint: Checkpoint, folder: Path) -> Source:
    """Load a checkpoint for its task.

    Args:
        folder: the tokenizer that will be served is written there.

    Raises:
        UsageError, ExportError: there is no such task, or the checkpoint is not made for it.
    """
    task = task_of(checkpoint, recipe.task)
    opened = open_checkpoint(checkpoint, task.name, truncate_dim=recipe.truncate_dim)
    head = load_head(opened, task)
    inputs = network_inputs(head, task, opened)
    encode: TextEncoder | ImageEncoder
    if task.layout is None:
        encode = ImageEncoder(processor_of(checkpoint))
    else:
        assert opened.tokenizer is not None  # noqa: S101 - a task over texts
        stated = min(length for length in (opened.longest, positions_of(head.backbone), LONGEST) if length)
        length = min(recipe.max_length or task.longest, stated)
        encode = TextEncoder(
            write_tokenizer(opened.tokenizer, folder),
            task.layout,
            length,
            _pad_id(opened),
            (*inputs, *task.features),
            **served_settings(opened),
            **task.layout_options(opened, length),
        )
    return Source(recipe, opened, task, head, head, encode, inputs)


def _pad_id(opened: Opened) -> int:
    """The token that fills a sequence up; the mask hides it, and some families count positions by it."""
    tokenizer = opened.tokenizer.pad_token_id if opened.tokenizer is not None else None
    known = (token for token in (opened.config.pad_token_id, tokenizer) if token is not None)
    return int(next(known, 0))


def compress(source: Source, progress: Silent) -> tuple[Source, dict[str, Any]]:
    """The source with a smaller model to export, where its recipe wants one; and what was done.

    Raises:
        UsageError, ExportError: see `export.compress.apply.compressed`.
    """
    if not source.recipe.compresses:
        return source, {}
    small, report = compressed(
        source.head,
        source.recipe,
        lambda text: source.task.row(text, 0, source.opened),
        source.encode,
        progress,
        names=source.inputs,
        weights=source.opened.checkpoint.describe()["sha256"],
    )
    return replace(source, head=small), {"compression": report}


def export(
    recipe: Recipe,
    repository: Path,
    *,
    progress: Silent | None = None,
    on_evidence: Callable[[Sequence[Evidence]], None] = lambda evidence: None,
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
    require_gpu([precision for precision in recipe.precisions if precision in ON_GPU])
    checkpoint = find_checkpoint(recipe.source)
    with staging(repository) as work:
        check_kind(repository, recipe.name, recipe.to_dict())
        with progress.step(f"Load {checkpoint.id}"):
            original = prepare(recipe, checkpoint, work)
        source, compression = compress(original, progress)
        candidates, decided = build(source, work, progress)
        notes = {precision: {**note, **compression} for precision, note in decided.items()}
        labelled: list[Row] = []
        evidence = verify.measure(
            source.subject,
            candidates,
            eval_data=recipe.eval_data,
            notes=notes,
            on_labelled=labelled.extend,
            progress=progress,
        )
        reference = raw.reference_of(source, progress)
        if recipe.compresses or "fp32" not in candidates:
            _check_reading(original, reference, work, progress)
        with progress.step("Compare answers to raw inputs", total=len(candidates)) as advance:
            for precision, graph in candidates.items():
                with raw.in_process(parts_of(graph, precision, source), graph, precision, work) as caller:
                    found = raw.compared(reference, caller, source, precision)
                evidence[precision] = replace(evidence[precision], raw=found)
                advance()
        on_evidence(list(evidence.values()))
        proven = verified(candidates, evidence)
        references = _references(proven, source, labelled, progress)
        tools = tools_of(_TOOLS)
        provenance = Provenance(recipe.name, recipe.to_dict(), checkpoint.describe(), tools)
        with progress.step(f"Write versions to {repository}"):
            releases = [
                replace(release(item, source), reference=references[item.evidence.precision])
                for item in proven
            ]
            published = write(releases, repository, work, provenance)
    return Outcome(tuple(evidence.values()), tuple(published), source.task.name)


def _check_reading(original: Source, reference: Reference, work: Path, progress: Silent) -> None:
    """Compare the exact graph of the whole model where it is not published: what a smaller or a coarser one
    may lose would hide that the model was read wrongly.

    Raises:
        NotProven: it answers raw inputs otherwise than the original.
    """
    made = to_onnx(original.head, work / "exact-bare.onnx", original.feed(corpus.passages()[:2]), progress)
    graph = finish(
        made, work / "exact.onnx", original.head, original.task, original.opened, original.recipe.top_k
    )
    with (
        progress.step("Compare answers of the exact graph to raw inputs"),
        raw.in_process(parts_of(graph, "fp32", original), graph, "fp32", work / "exact") as caller,
    ):
        found = compare(reference, caller, original.recipe.name, raw.tolerance_of(original.task.name, "fp32"))
    if found.failures:
        raise NotProven(f"nothing is published, the model is read wrongly ({'; '.join(found.failures)})")


def _references(
    proven: Sequence[Verified], source: Source, labelled: Sequence[Row], progress: Silent
) -> dict[str, dict[str, Any] | None]:
    """By precision, because each answers a little otherwise."""
    rows = reference_rows(source.subject, labelled)
    found = {}
    with progress.step("Keep statistics to see drift by", total=len(proven)) as advance:
        for item in proven:
            precision = item.evidence.precision
            model = verify.open_network(item.exported, precision)
            found[precision] = take_reference(source.subject, model, rows, labelled=bool(labelled))
            advance()
    return found


def verify_published(
    found: Sequence[Manifest], repository: Path, *, eval_data: Path | None, progress: Silent
) -> Outcome:
    """Measure published versions again; see `export.router.verify_published`.

    Args:
        found: at least one manifest, all of one model, whose files have been checked.
    """
    require_gpu([manifest.precision for manifest in found if manifest.precision in ON_GPU])
    evidence: list[Evidence] = []
    for manifest in found:
        with TemporaryDirectory() as folder:
            source = _source_of(manifest, Path(folder), progress)
            graph = published_network(manifest, repository)
            measured = verify.measure(
                source.subject,
                {manifest.precision: graph},
                eval_data=eval_data,
                notes={manifest.precision: manifest.evidence["notes"]},
                progress=progress,
            )
            reference = raw.reference_of(source, progress)
            network = verify.open_network(graph, manifest.precision)
            with raw.published(manifest, repository, network) as caller:
                answers = raw.compared(reference, caller, source, manifest.precision)
        evidence.append(replace(measured[manifest.precision], raw=answers))
    versions = [Published(m.network, m.version, m.precision, new=False) for m in found]
    return Outcome(tuple(evidence), tuple(versions), source.task.name)


def verify_wire(manifest: Manifest, repository: Path, address: str, progress: Silent) -> RawEvidence:
    """The answers of a running server to raw inputs; see `export.router.verify_wire`."""
    with TemporaryDirectory() as folder:
        source = _source_of(manifest, Path(folder), progress)
        reference = raw.reference_of(source, progress)
        with Wire(address) as caller, progress.step(f"Ask {manifest.model} over the wire"):
            return raw.compared(reference, caller, source, manifest.precision)


def _source_of(manifest: Manifest, folder: Path, progress: Silent) -> Source:
    """What a version was made from."""
    recipe = Recipe.from_dict(manifest.recipe)
    checkpoint = find_checkpoint(recipe.source)
    check_source(checkpoint, manifest)
    with progress.step(f"Load {checkpoint.id} for version {manifest.version}"):
        return prepare(recipe, checkpoint, folder)


def published_network(manifest: Manifest, repository: Path) -> Exported:
    """The network of a version in the repository, whose files have been checked.

    Raises:
        RepositoryError: it is an engine that does not fit this machine.
    """
    if manifest.engine is None:
        return Exported.read(repository / manifest.network / str(manifest.version) / "model.onnx")
    check_fits(manifest.engine, Library(manifest.engine["flavour"]).runner, manifest.rebuild)
    return published_engine(repository, manifest)


def build(
    source: Source, work: Path, progress: Silent
) -> tuple[dict[str, Exported], dict[str, precisions.Notes]]:
    """One graph per precision, in the recipe's order, and what was decided while making it."""
    head = source.head
    plain = to_onnx(head, work / "plain.onnx", source.feed(corpus.passages()[:2]), progress)
    # What a precision loses is measured against what it is made from, be that smaller than the original.
    subject = replace(source, original=head).subject
    material = precisions.Material(plain, head.config, subject, source.feed, work, progress)
    made: dict[str, Exported] = {}
    notes: dict[str, precisions.Notes] = {}
    for precision in source.recipe.precisions:
        graph, notes[precision] = precisions.MAKERS[precision](material, work / f"{precision}-bare.onnx")
        finished = finish(
            graph, work / f"{precision}.onnx", head, source.task, source.opened, source.recipe.top_k
        )
        made[precision] = _engine(finished, source, progress) if precision in ENGINES else finished
    return made, notes


def profiles_of(source: Source) -> tuple[Profile, ...]:
    """The shapes that TensorRT builds for: of the traffic that the recipe names, or of its buckets."""
    recipe, batch = source.recipe, config.batch_size_of(source.recipe, source.task)
    buckets = config.buckets_of(recipe, source.encode.max_length) or (1,)  # a picture has no length
    if recipe.traffic is None:
        return from_buckets(batch, buckets)
    return from_traffic(read_traffic(recipe.traffic), batch, buckets[-1])


def _engine(graph: Exported, source: Source, progress: Silent) -> Engine:
    """A finished graph as an engine for the GPU that is here. Untried: it takes one."""
    cache = cache_dir() / "tensorrt"
    cache.mkdir(parents=True, exist_ok=True)
    return make_engine(
        graph,
        graph.path.with_suffix(".plan"),
        profiles_of(source),
        timing_cache=cache / f"{compute_capability()}.timing",
        progress=progress,
    )


def _network_config(exported: Exported, precision: str, source: Source, version: int) -> triton.ModelConfig:
    """For ONNX Runtime, for TensorRT, or for the one through the other."""
    if isinstance(exported, Engine):
        computed = replace(exported, outputs=exported.computed)
        onnx_config = config.encoder_config(source.recipe, source.task, computed, version)
        return plan_config(onnx_config, exported, exported.fingerprint)
    onnx_config = config.encoder_config(source.recipe, source.task, exported, version)
    if precision == ACCELERATED:
        return accelerated_config(onnx_config, exported, whole(profiles_of(source)), ENGINE_CACHE)
    return onnx_config


def release(proven: Verified, source: Source) -> Release:
    """A proven graph and the models around it, as they will stand in the repository."""
    parts = parts_of(proven.exported, proven.evidence.precision, source)
    return Release(proven, parts, part_name(source.recipe.name, ENCODER))


def parts_of(exported: Exported, precision: str, source: Source) -> tuple[Part, ...]:
    """A graph and the models around it, in the order in which requests pass them, the ensemble last."""
    recipe, task, name = source.recipe, source.task, source.recipe.name
    parts = []
    if isinstance(source.encode, TextEncoder):
        files: dict[str, Path | str] = {
            "tokenizer.json": source.encode.path.read_text(encoding="utf-8"),
            "model.py": _model_py("tokenizer"),
        }
        make = partial(config.tokenizer_config, recipe, task, source.encode)
        parts.append(Part(part_name(name, TOKENIZER), files, make))
    else:
        make = partial(config.image_config, recipe, task, source.encode.processor)
        parts.append(Part(part_name(name, PREPROCESSOR), {"model.py": _model_py("images")}, make))
    make = partial(_network_config, exported, precision, source)
    parts.append(Part(part_name(name, ENCODER), {exported.filename: exported.path}, make))
    if isinstance(exported, Engine) and exported.tail is not None:
        batch = config.batch_size_of(recipe, task)
        make = partial(config.network_config, part_name(name, LABELS), exported.tail, batch)
        parts.append(Part(part_name(name, LABELS), {exported.tail.filename: exported.tail.path}, make))
    if (output := task.output_model(source.opened)) is not None:
        module, parameters = output
        make = partial(config.output_config, recipe, task, exported, module, parameters)
        parts.append(Part(part_name(name, OUTPUT), {"model.py": _model_py(module)}, make))
    steps = [part.config(1) for part in parts]
    make = partial(
        config.ensemble_config,
        recipe,
        task,
        source.encode,
        steps,
        config.facts_of(source.opened, task),
    )
    return (*parts, Part(name, {}, make))


def _model_py(module: str) -> str:
    return f"from serving.models.{module} import TritonPythonModel  # noqa: F401\n"


def as_model(head: Head, inputs: Sequence[str]) -> verify.Model:
    """The PyTorch original as a function of features, on the CPUs this process may use."""
    torch.set_num_threads(available_cpus())

    def model(feed: Feed) -> Outputs:
        with torch.inference_mode():
            results = head(**{name: torch.from_numpy(feed[name]) for name in inputs})
        return {name: value.numpy() for name, value in results.items()}

    return model
