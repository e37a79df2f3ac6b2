"""What evidence is, what it must reach, and the gate: without it nothing is published.

`Verified` is made from evidence within its tolerance alone, and `repository.write` takes nothing else: a
model without evidence, or with evidence that misses its tolerance, cannot be published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from export.exported import Exported
from export.raw.evidence import RawEvidence
from export.tasks.text import SentenceSimilarity
from shoal.errors import NotProven
from shoal.machine import available_cpus


@dataclass(frozen=True)
class Tolerance:
    """What a precision must reach against the original, in the vectors that a task compares.

    Attributes:
        min_cosine: of any vector.
        max_abs_diff: of any component, relative to the largest where that is above 1.
        min_invariance: see `Evidence.batch_invariance`.
        min_agreement: see `Evidence.agreement`.
        max_loss: of the metric on labelled data, x100.
    """

    min_cosine: float
    max_abs_diff: float
    min_invariance: float = 0.9999
    min_agreement: float = 1.0
    max_loss: float = 0.5


_EXACT = Tolerance(min_cosine=0.9999, max_abs_diff=1e-4, min_agreement=0.9999)
# Embeddings have length one, so that differences are absolute and relative at once.
_CLOSE = Tolerance(min_cosine=0.985, max_abs_diff=0.1, min_agreement=0.97)
# 16 bits hold 11 significant ones; a GPU's libraries choose another kernel for another batch.
_HALF = Tolerance(min_cosine=0.999, max_abs_diff=0.02, min_invariance=0.999, min_agreement=0.99)
# For memory, at an accuracy that a user must want to pay.
_COARSE = Tolerance(min_cosine=0.95, max_abs_diff=0.15, min_agreement=0.9, max_loss=1.0)
# One probability near a half may move far while no answer changes: there the answers count.
_AGREEING = Tolerance(min_cosine=0.0, max_abs_diff=1.0, min_invariance=0.99, min_agreement=0.97, max_loss=1.0)


# A smaller model is another model: what it must keep is which answer it gives, or which texts are alike.
_SMALLER = Tolerance(min_cosine=0.0, max_abs_diff=2.0, min_invariance=0.99, min_agreement=0.8, max_loss=4.0)


def tolerance_of(task: str, precision: str, *, smaller: bool = False) -> Tolerance:
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


@dataclass(frozen=True)
class Evidence:
    """The measured figures of one version.

    Attributes:
        task: what it is for.
        precision: which tolerance applies.
        size_bytes: of the ONNX file, or of the engine.
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
        metric, score, reference_score: name of the figure, and it x100 for the version and the original, on
            the user's labelled data; None without them.
        cases: [batch size, tokens] pairs that were compared; 0 tokens: it has none.
        notes: what the precision had to decide, e.g. which nodes were left out.
        raw: its answers to raw inputs; None: they were not compared.
        cpus: threads the speed was measured with.
    """

    task: str
    precision: str
    size_bytes: int
    max_abs_diff: float
    min_cosine: float
    mean_cosine: float
    agreement: float | None
    batch_invariance: float
    latency_ms: float
    throughput: float
    metric: str | None = None
    score: float | None = None
    reference_score: float | None = None
    cases: tuple[tuple[int, int], ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    cpus: int = field(default_factory=available_cpus)
    raw: RawEvidence | None = None

    @property
    def smaller(self) -> bool:
        """Whether the model was pruned."""
        return "compression" in self.notes

    @property
    def failures(self) -> list[str]:
        """What misses the tolerance, as figures; empty: proven. A NaN misses."""
        tolerance = tolerance_of(self.task, self.precision, smaller=self.smaller)
        checks = [
            (
                self.min_cosine >= tolerance.min_cosine,
                f"cosine {self.min_cosine:.5f} < {tolerance.min_cosine}",
            ),
            (
                self.max_abs_diff <= tolerance.max_abs_diff,
                f"difference {self.max_abs_diff:.2g} > {tolerance.max_abs_diff:g}",
            ),
            (
                self.batch_invariance >= tolerance.min_invariance,
                f"batch invariance {self.batch_invariance:.5f} < {tolerance.min_invariance}",
            ),
        ]
        # Of a smaller model labelled data, where there are some, say more than any likeness.
        if self.agreement is not None and not (self.smaller and self.score is not None):
            text = f"agreement {self.agreement:.1%} < {tolerance.min_agreement:.0%}"
            checks.append((self.agreement >= tolerance.min_agreement, text))
        if self.score is not None and self.reference_score is not None:
            loss = self.reference_score - self.score
            checks.append(
                (loss <= tolerance.max_loss, f"{self.metric} loses {loss:.2f} > {tolerance.max_loss}")
            )
        missed = [text for passed, text in checks if not passed]
        return [*(self.raw.failures if self.raw else ()), *missed]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types, with the verdict."""
        return asdict(self) | {
            "cases": [list(case) for case in self.cases],
            "raw": self.raw.to_dict() if self.raw else None,
            "failures": self.failures,
            "proven": not self.failures,
        }


class Provable(Protocol):
    """Evidence of any task."""

    @property
    def precision(self) -> str: ...
    @property
    def failures(self) -> list[str]: ...
    @property
    def raw(self) -> RawEvidence | None: ...
    def to_dict(self) -> dict[str, Any]: ...


class Verified:
    """An exported graph whose evidence meets its tolerance, its answers to raw inputs among it.

    Raises:
        NotProven: it does not; the message holds the figures.
    """

    def __init__(self, exported: Exported, evidence: Provable) -> None:
        if evidence.raw is None:
            raise NotProven(f"{evidence.precision} is not published: no answer to a raw input was compared")
        if evidence.failures:
            raise NotProven(f"{evidence.precision} is not published: {'; '.join(evidence.failures)}")
        self.exported = exported
        self.evidence = evidence


def verified(candidates: Mapping[str, Exported], evidence: Mapping[str, Provable]) -> list[Verified]:
    """Those candidates that are proven, in their order. The others are made from the fp32 graph: where that
    misses its tolerance it is wrong, however wide theirs are.

    Raises:
        NotProven: none is; the message holds the figures.
    """
    exact = evidence.get("fp32")
    proven = [
        Verified(graph, evidence[precision])
        for precision, graph in candidates.items()
        if not evidence[precision].failures and not (exact and exact.failures)
    ]
    if not proven:
        reasons = "; ".join(
            f"{name}: {', '.join(entry.failures) or 'made from the same graph'}"
            for name, entry in evidence.items()
        )
        raise NotProven(f"nothing is published, no precision is within tolerance ({reasons})")
    return proven
