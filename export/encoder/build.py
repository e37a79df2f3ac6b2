"""One graph or engine for each precision of an encoder, of the model itself or of a smaller one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from export.encoder import precisions
from export.encoder.parts import profiles_of
from export.encoder.prepare import Source
from export.encoder.to_onnx import to_onnx
from export.exported import Exported
from export.tensorrt import ENGINES
from export.tensorrt.engine import Engine, make_engine
from shoal import corpus
from shoal.paths import cache_dir
from shoal.progress import Silent
from shoal.tensorrt import compute_capability


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
        finished = source.finished(graph, work / f"{precision}.onnx")
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
