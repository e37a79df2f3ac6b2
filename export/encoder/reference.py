"""Statistics of rows and answers, kept with a version so that drift can be seen; see docs/drift.md."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.encoder.rows import TextEncoder
from export.encoder.tasks.task import Feed, Outputs, Row
from export.encoder.verify import Model, Subject
from serving.drift.statistics import ReferenceStatistics, Value, Vocabulary, answer_features, centroid_of
from shoal import corpus

ROWS = 512
_BATCH = 32


def reference_rows(subject: Subject, labelled: Sequence[Row]) -> list[Row]:
    """What statistics are taken of: the user's own rows, a sample of them, or text that comes with Python.

    Args:
        labelled: the rows of the evaluation data; none: there are no such data.
    """
    if labelled:
        return random.Random(0).sample(list(labelled), min(ROWS, len(labelled)))  # noqa: S311 - a sample
    return subject.rows(corpus.texts(ROWS, seed=4))


def take_reference(
    subject: Subject, model: Model, rows: Sequence[Row], *, labelled: bool
) -> dict[str, Any] | None:
    """Statistics for a manifest; None: of what is no text there are none.

    Of a row that makes several sequences the first is taken, as the tokenizer does live.

    Args:
        model: the graph that will be served.
        rows: at least one.
        labelled: whether they are the user's own.
    """
    if not isinstance(subject.encode, TextEncoder):
        return None
    features, centroid = described(subject, subject.encode, model, rows)
    return ReferenceStatistics.of("eval_data" if labelled else "sample", features, centroid).to_dict()


def described(
    subject: Subject,
    encode: TextEncoder,
    model: Model,
    rows: Sequence[Row],
    centroid: NDArray[np.float32] | None = None,
) -> tuple[list[dict[str, Value]], NDArray[np.float32] | None]:
    """What is known of each row and of its answer, in another order, as a monitor sees them.

    Args:
        encode: that of the subject.
        rows: at least one.
        centroid: what embeddings are compared with, float32 [width]; None: with the mean of theirs.

    Returns:
        A dict for each row, and the centroid; None: there are no embeddings.
    """
    vocabulary = Vocabulary.read(encode.path)
    features: list[dict[str, Value]] = []
    outputs: list[Outputs] = []
    for feed in _feeds(subject, rows):
        features += [vocabulary.features(ids) for ids in _first_sequences(feed)]
        if not encode.grouped:
            outputs.append(model(feed))
    answered = {name: np.concatenate([part[name] for part in outputs]) for name in _read(outputs)}
    if centroid is None and "embedding" in answered:
        centroid = centroid_of(answered["embedding"])
    for row, more in zip(features, answer_features(answered, centroid), strict=False):
        row.update(more)
    return features, centroid


def _read(outputs: Sequence[Outputs]) -> list[str]:
    """Those outputs of a network, of one vector a row, that there are statistics of."""
    first = outputs[0] if outputs else {}
    return [name for name in ("embedding", "label", "score") if name in first and first[name].ndim == 2]


def _feeds(subject: Subject, rows: Sequence[Row]) -> list[Feed]:
    """Batches of rows of one shape and like lengths."""

    def shape(row: Row) -> list[int]:
        return [len(texts) for texts in row.values()]

    ordered = sorted(rows, key=lambda row: (shape(row), len(str(row))))
    groups = [list(group) for _, group in groupby(ordered, shape)]
    return [
        subject.feed(group[start : start + _BATCH])
        for group in groups
        for start in range(0, len(group), _BATCH)
    ]


def _first_sequences(feed: Feed) -> list[NDArray[np.int64]]:
    """Token ids of the first sequence of each row, without padding."""
    ids, mask = feed["input_ids"], feed["attention_mask"]
    if ids.ndim == 3:
        ids, mask = ids[:, 0], mask[:, 0]
    return [row[kept == 1] for row, kept in zip(ids, mask, strict=True)]
