"""One graph or engine for each precision of an encoder, of the model itself or of a smaller one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from export.encoder import precisions
from export.encoder.compress.apply import compressed
from export.encoder.parts import profiles_of
from export.encoder.prepare import Source
from export.encoder.to_onnx import finish, to_onnx
from export.exported import Exported
from export.tensorrt import ENGINES
from export.tensorrt.engine import Engine, make_engine
from shoal import corpus
from shoal.paths import cache_dir
from shoal.progress import Silent
from shoal.tensorrt import compute_capability


def compress(source: Source, progress: Silent) -> tuple[Source, dict[str, Any]]:
    """The source with a smaller model to export, where its recipe wants one; and what was done.

    Raises:
        UsageError, ExportError: see `export.encoder.compress.apply.compressed`.
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
