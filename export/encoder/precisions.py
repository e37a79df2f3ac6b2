"""One maker for each precision of an encoder: the same plain graph goes in, a graph and notes come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from export.encoder import verify
from export.encoder.evidence import EncoderEvidence, limits_of
from export.encoder.optimize import fuse, fuse_around_matmuls
from export.encoder.tasks.task import Feed
from export.encoder.verify import Subject
from export.exported import Exported
from export.quantization.int4 import quantize_int4
from export.quantization.int8 import quantize_int8
from export.quantization.static import Judge, Judged, quantize_static
from export.tensorrt.prepare import to_fp16
from shoal import corpus
from shoal.progress import Silent

CALIBRATION_TEXTS = 64
JUDGED_TEXTS = 64
BATCH = 8
SHORT = 80  # characters, as people search with
# Evidence is taken on more texts than a graph is judged by while it is made: this share of the tolerance is
# left for those.
MARGIN = 0.15

Notes = dict[str, Any]


@dataclass(frozen=True)
class Material:
    """What every precision is made from.

    Attributes:
        plain: the graph as exported, in fp32 and ONNX's own operators.
        config: of transformers.
        subject: the task, and the original to compare with.
        feed: texts to the network's inputs.
        work: a folder for files in between.
    """

    plain: Exported
    config: Any
    subject: Subject
    feed: Callable[[Sequence[str]], Feed]
    work: Path
    progress: Silent = field(default_factory=Silent)

    @cached_property
    def fused(self) -> Exported:
        """The plain graph with attention fused and products left as they are."""
        return fuse_around_matmuls(self.plain, self.work / "fused.onnx", self.config, self.samples)

    @cached_property
    def samples(self) -> list[Feed]:
        """A batch of long and short texts, and one alone, to compare fused graphs with the plain one."""
        few = corpus.passages()[:3]
        return [self.feed([few[0], few[1][:SHORT], few[2]]), self.feed([few[1]])]

    @cached_property
    def calibration(self) -> list[Feed]:
        """Inputs made from sample text, to quantize on."""
        texts = corpus.passages()[:CALIBRATION_TEXTS]
        return [self.feed(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]

    def judge(self, precision: str) -> Judge:
        """Compares a graph with the original, on other text than the calibration's."""
        task = self.subject.task
        texts = corpus.passages()[CALIBRATION_TEXTS : CALIBRATION_TEXTS + JUDGED_TEXTS]
        # Every other batch is short.
        batches = [
            [text[:SHORT] if start // BATCH % 2 else text for text in texts[start : start + BATCH]]
            for start in range(0, len(texts), BATCH)
        ]
        feeds = [self.subject.feed(self.subject.rows(batch)) for batch in batches]
        expected = [task.compared(self.subject.reference(feed), feed) for feed in feeds]

        def judged(path: Path) -> Judged:
            model, parity = verify.open_session(path), verify.Parity()
            for feed, vectors in zip(feeds, expected, strict=True):
                parity.add(task.compared(model(feed), feed), vectors)
            figures = parity.figures()
            if verify.is_embedding(task):  # no component of a vector is an answer
                figures["agreement"] = None
            return Judged(1 - figures["mean_cosine"], _failures(figures, task.name, precision))

        return judged


def _failures(figures: Mapping[str, Any], task: str, precision: str) -> tuple[str, ...]:
    limits = limits_of(task, precision)
    wanted = {
        "min_cosine": 1 - (1 - MARGIN) * (1 - limits["min_cosine"]),
        "max_abs_diff": (1 - MARGIN) * limits["max_abs_diff"],
        "agreement": limits["agreement"],
    }
    seen = SimpleNamespace(**figures)
    checks = [check for check in EncoderEvidence.CHECKS if check.key in wanted]
    found = (check.failure(seen, wanted[check.key]) for check in checks)
    return tuple(filter(None, found))


def _fp32(material: Material, path: Path) -> tuple[Exported, Notes]:
    with material.progress.step("Fuse attention and layer norms"):
        return fuse(material.plain, path, material.config, material.samples), {}


def _fp16(material: Material, path: Path) -> tuple[Exported, Notes]:
    with material.progress.step("Convert to fp16"):
        return to_fp16(material.plain, path), {}


def _plain(material: Material, path: Path) -> tuple[Exported, Notes]:
    return material.plain, {}


def _int8(material: Material, path: Path, *, dynamic: bool = False) -> tuple[Exported, Notes]:
    graph = quantize_int8(material.fused, path, material.calibration, material.progress, dynamic=dynamic)
    return graph, {}


def _int8_static(material: Material, path: Path) -> tuple[Exported, Notes]:
    judge = material.judge("int8-static")
    return quantize_static(material.fused, path, material.calibration, judge, material.progress)


def _int4(material: Material, path: Path) -> tuple[Exported, Notes]:
    with material.progress.step("Quantize weights to 4 bits"):
        return quantize_int4(material.fused, path), {}


# The recipe's `PRECISIONS`.
MAKERS: Mapping[str, Callable[[Material, Path], tuple[Exported, Notes]]] = {
    "fp32": _fp32,
    "int8": _int8,
    "int8-dynamic": partial(_int8, dynamic=True),
    "int8-static": _int8_static,
    "int4": _int4,
    "fp16": _fp16,
    "tensorrt-fp32": _plain,
    "tensorrt-fp16": _fp16,
    "ort-tensorrt-fp16": _fp16,
}
