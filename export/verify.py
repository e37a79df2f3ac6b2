"""Evidence: an exported graph against the PyTorch original, on real text, before anybody may serve it.

`verify` is the only way to a `Verified`, and `repository.write` takes nothing else: a model without
evidence, or with evidence that misses its tolerance, cannot be published.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from export.exported import Exported
from export.tokenization import Encoder
from shoal import corpus
from shoal.errors import NotProven, UsageError
from shoal.machine import available_cpus
from shoal.progress import Silent

Feed = Mapping[str, NDArray[np.int64]]
Model = Callable[[Feed], NDArray[np.float32]]

BATCH_SIZES = (1, 5, 32)
LENGTHS = (8, 16, 64, 128, 256)
INVARIANCE_TEXTS = 32
SPEED_TOKENS = 16
SPEED_BATCH = 32
SPEED_ROUNDS = 7
MAX_SPEARMAN_LOSS = 0.5


@dataclass(frozen=True)
class Tolerance:
    """What a precision must reach: cosine and largest absolute difference against the original."""

    min_cosine: float
    max_abs_diff: float
    min_invariance: float = 0.9999


# Embeddings have length one, so the differences are absolute and relative at once.
TOLERANCES = {
    "fp32": Tolerance(min_cosine=0.9999, max_abs_diff=1e-4),
    "int8": Tolerance(min_cosine=0.985, max_abs_diff=0.1),
    # Not a precision one can ask for: what `make bench-int8` compares ours with, held to the same.
    "dynamic": Tolerance(min_cosine=0.985, max_abs_diff=0.1),
}


@dataclass(frozen=True)
class Evidence:
    """The measured figures of one version.

    Attributes:
        precision: which tolerance applies.
        size_bytes: of the ONNX file.
        max_abs_diff: largest absolute difference of a component, against the original.
        min_cosine, mean_cosine: of an embedding against the original's, over `cases`.
        batch_invariance: least cosine between a text's embedding alone and inside a batch.
        latency_ms: median of one text of 16 tokens, milliseconds, in process.
        throughput: texts per second at 32 texts of 16 tokens, in process.
        spearman, reference_spearman: x100, on the user's labelled pairs; None without them.
        cases: [batch size, tokens] pairs that were compared.
        cpus: threads the speed was measured with.
    """

    precision: str
    size_bytes: int
    max_abs_diff: float
    min_cosine: float
    mean_cosine: float
    batch_invariance: float
    latency_ms: float
    throughput: float
    spearman: float | None = None
    reference_spearman: float | None = None
    cases: tuple[tuple[int, int], ...] = ()
    cpus: int = field(default_factory=available_cpus)

    @property
    def failures(self) -> list[str]:
        """What misses the tolerance, as figures; empty: proven. A NaN misses."""
        tolerance = TOLERANCES[self.precision]
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
        if self.spearman is not None and self.reference_spearman is not None:
            loss = self.reference_spearman - self.spearman
            checks.append((loss <= MAX_SPEARMAN_LOSS, f"Spearman loses {loss:.2f} > {MAX_SPEARMAN_LOSS}"))
        return [text for passed, text in checks if not passed]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types, with the verdict."""
        cases = [list(case) for case in self.cases]
        return asdict(self) | {"cases": cases, "failures": self.failures, "proven": not self.failures}


class Provable(Protocol):
    """Evidence of any task."""

    @property
    def precision(self) -> str: ...
    @property
    def failures(self) -> list[str]: ...
    def to_dict(self) -> dict[str, Any]: ...


class Verified:
    """An exported graph whose evidence meets its tolerance.

    Raises:
        NotProven: it does not; the message holds the figures.
    """

    def __init__(self, exported: Exported, evidence: Provable) -> None:
        if evidence.failures:
            raise NotProven(f"{evidence.precision} is not published: {'; '.join(evidence.failures)}")
        self.exported = exported
        self.evidence = evidence


def verified(candidates: Mapping[str, Exported], evidence: Mapping[str, Provable]) -> list[Verified]:
    """Those candidates that are proven, in their order.

    Raises:
        NotProven: none is; the message holds the figures.
    """
    proven = [
        Verified(graph, evidence[precision])
        for precision, graph in candidates.items()
        if not evidence[precision].failures
    ]
    if not proven:
        reasons = "; ".join(f"{name}: {', '.join(entry.failures)}" for name, entry in evidence.items())
        raise NotProven(f"nothing is published, no precision is within tolerance ({reasons})")
    return proven


def open_session(path: Path) -> Model:
    """An ONNX graph as a function of its inputs, on the CPUs this process may use."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cpus()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, dict(feed))[0]


def measure(
    reference: Model,
    candidates: Mapping[str, Exported],
    encode: Encoder,
    *,
    eval_data: Path | None = None,
    progress: Silent | None = None,
) -> dict[str, Evidence]:
    """Measure every candidate against the reference; speeds are taken in turn, so that they compare.

    Args:
        reference: the original framework's model.
        candidates: precision -> exported graph.
        encode: the tokenizer that will be served.
        eval_data: CSV of `sentence1,sentence2,score` without a header line.

    Raises:
        UsageError: `eval_data` cannot be read.
    """
    progress = progress or Silent()
    pairs = _read_pairs(eval_data) if eval_data is not None else []
    models = {precision: open_session(exported.path) for precision, exported in candidates.items()}
    cases = _cases(encode)
    parity: dict[str, list[tuple[float, NDArray[np.float32]]]] = {precision: [] for precision in models}
    with progress.step("Compare with the PyTorch original", total=len(cases)) as advance:
        for feed in cases.values():
            expected = reference(feed)
            for precision, model in models.items():
                got = model(feed)
                parity[precision].append((float(np.abs(got - expected).max()), _cosine(got, expected)))
            advance()
    with progress.step("Compare each text alone and in a batch", total=len(models)) as advance:
        invariance = {}
        for precision, model in models.items():
            invariance[precision] = batch_invariance(model, encode)
            advance()
    speeds = _speeds(models, encode, progress)
    spearman: dict[str, float] = {}
    if pairs:
        with progress.step("Score the labelled pairs", total=len(models) + 1) as advance:
            for name, model in {"reference": reference, **models}.items():
                spearman[name] = _spearman(model, encode, pairs)
                advance()
    return {
        precision: Evidence(
            precision=precision,
            size_bytes=exported.path.stat().st_size,
            max_abs_diff=max(difference for difference, _ in parity[precision]),
            min_cosine=float(min(cosine.min() for _, cosine in parity[precision])),
            mean_cosine=float(np.concatenate([cosine for _, cosine in parity[precision]]).mean()),
            batch_invariance=invariance[precision],
            latency_ms=speeds[precision][0],
            throughput=speeds[precision][1],
            spearman=spearman.get(precision),
            reference_spearman=spearman.get("reference"),
            cases=tuple(cases),
        )
        for precision, exported in candidates.items()
    }


def _cases(encode: Encoder) -> dict[tuple[int, int], Feed]:
    """Real text at every batch size and length; inside a batch lengths differ, so padding is covered."""
    passages = sorted(corpus.passages(), key=len, reverse=True)  # long ones first, to fill the lengths
    lengths = sorted({min(length, encode.max_length) for length in LENGTHS})
    cases: dict[tuple[int, int], Feed] = {}
    for length in lengths:
        for batch in BATCH_SIZES:
            texts = passages[length : length + batch]
            # Every other text is short: a batch of one length only would never see a mask.
            texts = [text[: length * 2] if row % 2 else text for row, text in enumerate(texts)]
            cases[batch, length] = encode(texts, max_length=length, pad_to=length)
    return cases


def batch_invariance(model: Model, encode: Encoder) -> float:
    """Least cosine between a text's embedding alone, unpadded, and in a batch with other, longer texts."""
    texts = corpus.texts(INVARIANCE_TEXTS, seed=1)
    together = model(encode(texts))
    alone = np.concatenate([model(encode([text])) for text in texts])
    return float(_cosine(alone, together).min())


def _speeds(models: Mapping[str, Model], encode: Encoder, progress: Silent) -> dict[str, tuple[float, float]]:
    """Median latency of one text in ms, and texts per second at a full batch, models taken in turn."""
    passages = list(corpus.passages()[: 8 * SPEED_BATCH])
    full = [text for text in passages if encode([text])["input_ids"].shape[1] >= SPEED_TOKENS][:SPEED_BATCH]
    one, many = (encode(texts, max_length=SPEED_TOKENS) for texts in (full[:1], full))
    seconds: dict[str, tuple[list[float], list[float]]] = {precision: ([], []) for precision in models}
    with progress.step("Measure speed", total=SPEED_ROUNDS) as advance:
        for feed in (one, many):
            for model in models.values():
                model(feed)
        for _ in range(SPEED_ROUNDS):
            for precision, model in models.items():
                for samples, feed, repeats in zip(seconds[precision], (one, many), (12, 4), strict=True):
                    for _ in range(repeats):
                        start = time.perf_counter()
                        model(feed)
                        samples.append(time.perf_counter() - start)
            advance()
    return {
        precision: (1e3 * statistics.median(alone), len(full) / statistics.median(batched))
        for precision, (alone, batched) in seconds.items()
    }


def _read_pairs(path: Path) -> list[tuple[str, str, float]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            pairs = [(first, second, float(score)) for first, second, score in csv.reader(file)]
    except (OSError, ValueError) as error:
        hint = "three columns without a header: sentence1,sentence2,score"
        raise UsageError(f"evaluation data {path} cannot be read: {error}", hint=hint) from error
    if len(pairs) < 10:
        raise UsageError(f"evaluation data {path} has {len(pairs)} pairs, at least 10 are needed")
    return pairs


def _spearman(model: Model, encode: Encoder, pairs: Sequence[tuple[str, str, float]]) -> float:
    """Spearman's rank correlation x100 between cosine similarity and the labels."""
    from scipy.stats import spearmanr  # noqa: PLC0415 - slow to import, rarely needed

    texts = [text for first, second, _ in pairs for text in (first, second)]
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    vectors: dict[int, NDArray[np.float32]] = {}
    for start in range(0, len(order), SPEED_BATCH):
        rows = order[start : start + SPEED_BATCH]
        vectors.update(zip(rows, model(encode([texts[row] for row in rows])), strict=True))
    similarity = [float(vectors[2 * i] @ vectors[2 * i + 1]) for i in range(len(pairs))]
    return float(spearmanr(similarity, [score for *_, score in pairs]).statistic) * 100


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Row by row; rows have length one in theory and are normalized here all the same."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / norms
