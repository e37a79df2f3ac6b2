"""The measured figures of an encoder's version, and what they must reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from export.encoder.tasks.text import SentenceSimilarity
from export.evidence import Check, Column, Scored, figure

# What a precision must reach against the original, in the vectors that a task compares; see
# `EncoderEvidence.CHECKS`. `loss` is of the metric on labelled data, x100.
_ALL = {"batch_invariance": 0.9999, "agreement": 1.0, "loss": 0.5}
_EXACT = _ALL | {"min_cosine": 0.9999, "max_abs_diff": 1e-4, "agreement": 0.9999}
# Embeddings have length one, so that differences are absolute and relative at once.
_CLOSE = _ALL | {"min_cosine": 0.985, "max_abs_diff": 0.1, "agreement": 0.97}
# 16 bits hold 11 significant ones; a GPU's libraries choose another kernel for another batch.
_HALF = _ALL | {"min_cosine": 0.999, "max_abs_diff": 0.02, "batch_invariance": 0.999, "agreement": 0.99}
# For memory, at an accuracy that a user must want to pay.
_COARSE = _ALL | {"min_cosine": 0.95, "max_abs_diff": 0.15, "agreement": 0.9, "loss": 1.0}
# One probability near a half may move far while no answer changes: there the answers count.
_AGREEING = {"min_cosine": 0.0, "max_abs_diff": 1.0, "batch_invariance": 0.99, "agreement": 0.97, "loss": 1.0}
# A smaller model is another model: what it must keep is which answer it gives, or which texts are alike.
_SMALLER = {"min_cosine": 0.0, "max_abs_diff": 2.0, "batch_invariance": 0.99, "agreement": 0.8, "loss": 4.0}


def limits_of(task: str, precision: str, *, smaller: bool = False) -> Mapping[str, float]:
    """What a version must reach.

    Args:
        smaller: it was pruned.
    """
    if smaller:
        return _SMALLER
    if precision.endswith("fp32"):
        return _EXACT
    if task != SentenceSimilarity.name:
        return _AGREEING
    if precision.endswith("fp16"):
        return _HALF
    return _COARSE if precision == "int4" else _CLOSE


@dataclass(frozen=True, kw_only=True)
class EncoderEvidence(Scored):
    """The measured figures of one version of an encoder; see also `export.evidence.Scored`.

    Attributes:
        task: what it is for.
        max_abs_diff: largest difference of a component against the original, relative to the original's
            largest where that is above 1.
        min_cosine, mean_cosine: of a vector (embedding, probabilities) against the original's, over `cases`.
        agreement: share of vectors whose largest component is the original's; of embeddings, Spearman's
            correlation between the similarities of sample texts and the original's; None of single numbers.
        batch_invariance: how equal a row is alone and inside a batch: of embeddings the least cosine, of
            other vectors 1 less the largest difference; of answers in a context, where rows have different
            numbers of windows, also 1 less the largest difference of an answer's probability.
        latency_ms: median of one row (of 16 tokens where it has tokens), milliseconds, in process.
        throughput: rows per second in a full batch of such rows, in process.
        metric, score, reference_score: of the task, x100, on the user's labelled data.
        cases: [batch size, tokens] pairs that were compared; 0 tokens: it has none.
        notes: what the precision had to decide, e.g. which nodes were left out.
        serving: how its network runs on CPUs, and what that was chosen by: `export.encoder.setting.Choice` as
            plain types; None: it runs on a GPU, or was exported before there was a choice.
    """

    CHECKS: ClassVar[tuple[Check, ...]] = (
        Check("min_cosine", "cosine", ".5f"),
        Check("max_abs_diff", "difference", ".2g", most=True),
        Check("batch_invariance", "batch invariance", ".5f"),
        Check("agreement", "agreement", ".1%"),
        Check("loss", "{0.metric} loses", ".2f", most=True),
    )

    task: str
    max_abs_diff: float
    min_cosine: float
    mean_cosine: float
    agreement: float | None
    batch_invariance: float
    latency_ms: float
    throughput: float
    cases: tuple[tuple[int, int], ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    serving: Mapping[str, Any] | None = None

    @property
    def smaller(self) -> bool:
        """Whether the model was pruned."""
        return "compression" in self.notes

    @property
    def limits(self) -> Mapping[str, float]:
        """See `Measured`. Of a smaller model labelled data, where there are some, say more than any
        likeness."""
        limits = limits_of(self.task, self.precision, smaller=self.smaller)
        if self.smaller and self.score is not None:
            return {key: limit for key, limit in limits.items() if key != "agreement"}
        return limits

    @classmethod
    def columns(cls, entries: Sequence[EncoderEvidence]) -> list[Column]:
        """Size, parity, batch invariance, speed of one row and of 32."""
        first = entries[0]
        embeds = first.task == SentenceSimilarity.name and not any(entry.smaller for entry in entries)
        score = cls.score_columns(entries)
        return [
            figure("#MB", "size_bytes", ".1f", 1e6),
            *([] if score else [figure("#max |Δ|", "max_abs_diff", ".1e")]),
            figure("#cosine", "min_cosine", ".5f") if embeds else figure("#agree", "agreement", ".5f"),
            figure("#batch", "batch_invariance", ".5f"),
            figure("#ms ×1", "latency_ms", ".2f"),
            figure("#×32/s", "throughput", ".0f"),
            *score,
        ]
