"""A tiny checkpoint as it would be served, joined in this process, beside its original library."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from export.checkpoint.source import find_checkpoint
from export.encoder import raw as encoder
from export.encoder.parts import parts_of
from export.encoder.prepare import Source, prepare
from export.encoder.recipe import EncoderRecipe
from export.encoder.to_onnx import to_onnx
from export.originals.original import Row
from export.raw.evidence import RawEvidence, RawTolerance
from export.raw.measure import compare
from export.raw.served import Caller
from shoal import corpus
from shoal.progress import Silent

AGREED = RawEvidence("transformers: pipeline", 10, 1.0, 0.0, 1.0, 0, 0, None, RawTolerance(1e-3))


@contextmanager
def served(folder: Path, work: Path, **recipe: Any) -> Iterator[tuple[Source, Caller]]:
    """The ensemble of a checkpoint over its plain graph, and what it was made from."""
    settings = EncoderRecipe.from_dict({"source": str(folder), "name": "m", "precisions": ["fp32"], **recipe})
    work.mkdir(parents=True, exist_ok=True)
    source = prepare(settings, find_checkpoint(str(folder)), work)
    bare = to_onnx(source.head, work / "bare.onnx", source.feed(corpus.passages()[:2]))
    graph = source.finished(bare, work / "fp32.onnx")
    with encoder.in_process(parts_of(graph, "fp32", source), graph, "fp32", work) as caller:
        yield source, caller


def evidence(source: Source, caller: Caller, rows: Sequence[Row] | None = None) -> RawEvidence:
    """The figures of what is served: on all raw inputs of the task, or on some rows."""
    with pytest.MonkeyPatch.context() as patch:
        if rows is not None:
            patch.setattr(encoder, "cases_of", lambda task, limits: list(rows))
        reference = encoder.reference_of(source, Silent())
    tolerance = encoder.tolerance_of(source.task.name, "fp32", smaller=source.recipe.compresses)
    return compare(reference, caller, source.recipe.name, tolerance)


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; a value of `...` takes one out."""
    content = json.loads(path.read_text()) if path.exists() else {}
    content |= changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
