"""Evidence is taken here: an exported graph against the PyTorch original, on real input, and timed.

What the figures must reach: `export.encoder.evidence`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.checkpoint.opened import Opened
from export.device import provider_of
from export.encoder.evidence import EncoderEvidence
from export.encoder.recipe import EncoderRecipe
from export.encoder.rows import RowEncoder
from export.encoder.tasks.task import NO_ANSWER, Feed, Outputs, Row, Task
from export.encoder.tasks.text import SentenceSimilarity, spearman
from export.exported import Exported
from export.likeness import TIE, cosines, difference, same_choice
from export.speed import median_seconds
from export.tensorrt.engine import Engine
from serving.onnxruntime.options import BadConfig
from serving.onnxruntime.sessions import CPU, measured_session
from shoal import corpus
from shoal.errors import ExportError
from shoal.machine import available_cpus
from shoal.progress import Silent

Model = Callable[[Feed], Outputs]

BATCH_SIZES = (1, 5, 32)
INVARIANCE_ROWS = 32
WINDOW_TOKENS = 64  # of each, where rows of several windows are compared
LIKENESS_TEXTS = 64
SPEED_TOKENS = 16
SPEED_BATCH = 32
SPEED_ROUNDS = 7


def open_network(exported: Exported, precision: str) -> Model:
    """A version's network as a function of its inputs, on what will run it.

    Raises:
        ExportError: what is to run it is not here.
    """
    if not isinstance(exported, Engine):
        return open_session(exported.path, provider_of(precision, EncoderRecipe.ON_GPU))
    from export.tensorrt.run import open_engine  # noqa: PLC0415 - only with a GPU

    engine = open_engine(exported)
    tail = open_session(exported.tail.path) if exported.tail else None

    def run(feed: Feed) -> Outputs:
        computed = engine(feed)
        return computed | dict(tail({**feed, **computed})) if tail else computed

    return run


def open_session(path: Path, provider: str = CPU) -> Model:
    """An ONNX graph as a function of its inputs, on the CPUs this process may use, or on the first GPU.

    Inputs that the graph does not have are left out: features are for the models around it, too.

    Raises:
        ExportError: ONNX Runtime cannot use the GPU.
    """
    try:
        session = measured_session(path, threads=available_cpus(), provider=provider)
    except BadConfig as error:
        raise ExportError(f"{path.name} must be measured on an NVIDIA GPU: {error}") from None
    inputs = [value.name for value in session.get_inputs()]
    outputs = [value.name for value in session.get_outputs()]

    def run(feed: Feed) -> Outputs:
        results = session.run(outputs, {name: feed[name] for name in inputs})
        return dict(zip(outputs, results, strict=True))

    return run


@dataclass(frozen=True)
class Subject:
    """What is measured: a task of a checkpoint, and how its rows become inputs.

    Attributes:
        reference: the original framework's model.
        encode: the tokenizer, or the image processor, that will be served.
    """

    task: Task
    opened: Opened
    reference: Model
    encode: RowEncoder

    def rows(self, passages: Sequence[str]) -> list[Row]:
        """Sample rows made from paragraphs."""
        return [self.task.row(text, index, self.opened) for index, text in enumerate(passages)]

    def feed(self, rows: Sequence[Row], **options: int | None) -> dict[str, NDArray]:
        """Features of some rows, and those of their inputs that the network reads itself."""
        texts = {name: np.array([row[name] for row in rows], object) for name in self.task.network_inputs}
        return self.encode(rows, **options) | texts


def measure(
    subject: Subject,
    candidates: Mapping[str, Exported],
    *,
    eval_data: Path | None = None,
    notes: Mapping[str, Mapping[str, Any]] | None = None,
    on_labelled: Callable[[Sequence[Row]], None] = lambda rows: None,
    progress: Silent | None = None,
) -> dict[str, EncoderEvidence]:
    """Measure every candidate against the reference; speeds are taken in turn, so that they compare.

    Args:
        candidates: precision -> exported graph.
        eval_data: labelled data, see the task.
        notes: of a precision, for its evidence.
        on_labelled: called with the rows of `eval_data`, once each, as they are scored.

    Raises:
        UsageError: `eval_data` cannot be read.
    """
    progress = progress or Silent()
    task, reference = subject.task, subject.reference
    models = {precision: open_network(exported, precision) for precision, exported in candidates.items()}
    cases = _cases(subject)
    parity = {precision: Parity() for precision in models}
    for feed in progress.each("Compare with the PyTorch original", cases.values()):
        expected = task.compared(reference(feed), feed)
        for precision, model in models.items():
            parity[precision].add(task.compared(model(feed), feed), expected)
    invariance = {
        precision: batch_invariance(model, subject)
        for precision, model in progress.each("Compare each row alone and in a batch", models.items())
    }
    likeness = _likeness(reference, models, subject) if is_embedding(task) else {}
    speeds = _speeds(models, subject, progress)
    scores: dict[str, float] = {}
    if eval_data is not None:
        every = {"reference": reference, **models}
        for name, model in progress.each("Score the labelled data", every.items()):
            told = on_labelled if model is reference else None
            answer = partial(_answered, model, subject, told)
            scores[name] = task.score(answer, eval_data, subject.opened)
    return {
        precision: EncoderEvidence(
            task=task.name,
            precision=precision,
            size_bytes=exported.path.stat().st_size,
            **(parity[precision].figures() | ({"agreement": likeness[precision]} if likeness else {})),
            batch_invariance=invariance[precision],
            latency_ms=speeds[precision][0],
            throughput=speeds[precision][1],
            metric=task.metric if scores else None,
            score=scores.get(precision),
            reference_score=scores.get("reference"),
            cases=tuple(cases),
            notes=(notes or {}).get(precision, {}),
        )
        for precision, exported in candidates.items()
    }


class Parity:
    """Differences between vectors and those they should be, gathered over several inputs."""

    def __init__(self) -> None:
        self._difference = 0.0
        self._cosines: list[NDArray[np.float32]] = []
        self._agree: list[NDArray[np.bool_]] = []

    def add(self, got: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
        """Compare [vectors, width] with the original's."""
        self._difference = max(self._difference, difference(got, expected))
        self._cosines.append(cosines(got, expected))
        if expected.shape[1] > 1:
            self._agree.append(same_choice(got, expected))

    def figures(self) -> dict[str, Any]:
        """The figures of `EncoderEvidence`."""
        every = np.concatenate(self._cosines)
        return {
            "max_abs_diff": self._difference,
            "min_cosine": float(every.min()),
            "mean_cosine": float(every.mean()),
            "agreement": float(np.concatenate(self._agree).mean()) if self._agree else None,
        }


def _likeness(reference: Model, models: Mapping[str, Model], subject: Subject) -> dict[str, float]:
    """Spearman's correlation between how alike a model finds any two texts and how alike the original."""
    feed = subject.feed(subject.rows(corpus.texts(LIKENESS_TEXTS, seed=2)))
    pairs = np.triu_indices(LIKENESS_TEXTS, 1)

    def similarities(model: Model) -> NDArray[np.float32]:
        vectors = subject.task.compared(model(feed), feed)
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray((vectors @ vectors.T)[pairs])

    expected = similarities(reference)
    return {name: _ranked_alike(similarities(model), expected) for name, model in models.items()}


def _ranked_alike(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Spearman's correlation; of a model that finds all texts equally alike there is no order to keep."""
    if np.ptp(expected) < TIE:
        return 1.0 if np.ptp(got) < 2 * TIE else 0.0
    return spearman(got, expected) / 100


def is_embedding(task: Task) -> bool:
    """Whether the vectors that are compared are the answer itself, and not scores of answers."""
    return task.name == SentenceSimilarity.name


def _answered(
    model: Model, subject: Subject, on_rows: Callable[[Sequence[Row]], None] | None, rows: Sequence[Row]
) -> tuple[Outputs, Feed]:
    if on_rows is not None:
        on_rows(rows)
    feed = subject.feed(rows)
    return model(feed), feed


def _cases(subject: Subject) -> dict[tuple[int, int], Feed]:
    """Real text at every batch size and length; inside a batch lengths differ, so padding is covered."""
    passages = sorted(corpus.passages(), key=len, reverse=True)  # long ones first, to fill the lengths
    if not subject.encode.max_length:
        return {(batch, 0): subject.feed(subject.rows(passages[:batch])) for batch in BATCH_SIZES}
    batches = sorted({min(batch, subject.task.max_batch_size) for batch in BATCH_SIZES})
    lengths = sorted({min(length, subject.encode.max_length) for length in subject.task.lengths})
    cases: dict[tuple[int, int], Feed] = {}
    for length in lengths:
        for batch in batches:
            texts = passages[length : length + batch]
            # Every other text is short: a batch of one length only would never see a mask.
            texts = [text[: length * 2] if row % 2 else text for row, text in enumerate(texts)]
            if reads_windows(subject):
                texts = [text[: length * 6] for text in texts]  # a few windows each
            cases[batch, length] = subject.feed(subject.rows(texts), max_length=length, pad_to=length)
    return cases


def batch_invariance(model: Model, subject: Subject) -> float:
    """How equal a row is alone, unpadded, and in a batch with other, longer rows; see `EncoderEvidence`.

    Where a long context is read in windows, every other row has several and the others one.
    """
    task, opened = subject.task, subject.opened
    texts = corpus.texts(min(INVARIANCE_ROWS, task.max_batch_size), seed=1)
    length = None
    if reads_windows(subject):
        length = WINDOW_TOKENS
        texts = [text if row % 2 else " ".join([text, *texts]) for row, text in enumerate(texts)]
    rows = subject.rows(texts)
    embeds = is_embedding(task)
    worst = 1.0
    feed = subject.feed(rows, max_length=length)
    together = model(feed)
    for index, row in enumerate(rows):
        one = subject.feed([row], max_length=length)
        outputs = model(one)
        alone = task.compared(outputs, one)
        shared = {name: array[index : index + 1] for name, array in feed.items()}
        part = {name: array[index : index + 1] for name, array in together.items()}
        beside = task.compared(part, shared)
        size = tuple(min(a, b) for a, b in zip(alone.shape, beside.shape, strict=True))
        alone, beside = alone[: size[0], : size[1]], beside[: size[0], : size[1]]  # padding cut off
        equal = float(cosines(alone, beside).min()) if embeds else 1.0 - difference(beside, alone)
        answers = (task.answered(*each, row, opened) for each in ((outputs, one), (part, shared)))
        worst = min(worst, equal, 1.0 - _answers_differ(*answers))
    return worst


def reads_windows(subject: Subject) -> bool:
    """Whether a long text is read in several windows."""
    return "stride" in subject.task.layout_options(subject.opened, subject.encode.max_length)


def _answers_differ(alone: Mapping[str, float], beside: Mapping[str, float]) -> float:
    """Largest difference of a probability: of the likeliest answer of either, and of no answer."""
    compared = {NO_ANSWER, *(next(iter(answers)) for answers in (alone, beside) if answers)}
    return max(abs(alone.get(words, 0.0) - beside.get(words, 0.0)) for words in compared)


def _speeds(
    models: Mapping[str, Model], subject: Subject, progress: Silent
) -> dict[str, tuple[float, float]]:
    """Median latency of one row in ms, and rows per second at a full batch, models taken in turn."""
    batch = min(SPEED_BATCH, subject.task.max_batch_size)
    tokens = max(SPEED_TOKENS, subject.task.lengths[0]) if subject.encode.max_length else None
    passages = [text for text in corpus.passages()[: 8 * SPEED_BATCH] if len(text) >= 8 * (tokens or 0)]
    # Cut to what fits: a long context would be read in many windows.
    rows = subject.rows([text[: 8 * tokens] if tokens else text for text in passages[:batch]])
    one, many = (subject.feed(part, max_length=tokens, pad_to=tokens) for part in (rows[:1], rows))
    calls = {
        precision: {"one": (partial(model, one), 12), "many": (partial(model, many), 4)}
        for precision, model in models.items()
    }
    seconds = median_seconds(calls, SPEED_ROUNDS, progress)
    return {name: (1e3 * taken["one"], len(rows) / taken["many"]) for name, taken in seconds.items()}
