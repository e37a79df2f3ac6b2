"""Whether two answers to one raw input are the same, for each kind of answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.likeness import TIE
from shoal import tasks

_BEGINNING = 3  # characters of a text that tell whether its first token is the original's
OTHER = float("inf")  # another answer altogether


@dataclass(frozen=True)
class Apart:
    """How far two answers are apart.

    Attributes:
        distance: of their numbers: the largest difference of a score, relative where scores exceed 1; of
            vectors the length of the difference relative to the original's; infinite where the answers
            cannot be compared by numbers.
        chosen: whether both choose the same: the first label, the place of an answer, the text; of single
            numbers and vectors, which choose nothing, True.
    """

    distance: float
    chosen: bool = True


Outputs = Mapping[str, list[Any]]


def vectors(original: Any, got: Outputs) -> Apart:
    """Two embeddings."""
    expected, found = np.asarray(original, np.float64), np.asarray(got["embedding"], np.float64)
    if expected.shape != found.shape:
        return Apart(OTHER, chosen=False)
    length = max(float(np.linalg.norm(expected)), 1e-12)
    return Apart(float(np.linalg.norm(found - expected)) / length)


def numbers(original: float, got: Outputs) -> Apart:
    """Two scores of a pair."""
    return Apart(_difference(original, got["score"][0]))


def labels(original: Mapping[str, float], got: Outputs) -> Apart:
    """Scores of labels; of ours the likeliest are known."""
    found = dict(zip(got["label"], got["score"], strict=True))
    if not found or not set(found) <= set(original):
        return Apart(OTHER, chosen=False)
    ranked = sorted(original.values(), reverse=True)
    same_label = max(_difference(original[name], score) for name, score in found.items())
    same_rank = max(_difference(a, b) for a, b in zip(ranked, found.values(), strict=False))
    return Apart(max(same_label, same_rank), original[next(iter(found))] >= ranked[0] - TIE)


def zero_shot(original: Mapping[str, tuple[float, float]], got: Outputs) -> Apart:
    """Scores of candidate labels, among all and alone."""
    found = dict(zip(got["label"], zip(got["score"], got["independent_score"], strict=True), strict=True))
    if set(found) != set(original):
        return Apart(OTHER, chosen=False)
    pairs = ((a, b) for name in original for a, b in zip(original[name], found[name], strict=True))
    best = max(among for among, _ in original.values())
    return Apart(max(_difference(a, b) for a, b in pairs), original[next(iter(found))][0] >= best - TIE)


def masked(original: list[tuple[str, float]], got: Outputs) -> Apart:
    """The likeliest tokens: by rank, since two may read alike."""
    found = list(zip(got["label"], got["score"], strict=True))
    distance = max(_difference(a, b) for (_, a), (_, b) in zip(original, found, strict=False))
    first = found[0][0]
    return Apart(distance, any(token == first and score >= original[0][1] - TIE for token, score in original))


def entities(original: list[tuple[str, int, int, float]], got: Outputs) -> Apart:
    """Labelled parts of a text."""
    rows = zip(got["label"], got["start"], got["end"], got["score"], strict=True)
    found = [row for row in rows if row[1] >= 0]  # a row is filled up
    same = [entity[:3] for entity in original] == [tuple(entity[:3]) for entity in found]
    if not same:
        return Apart(OTHER, chosen=False)
    pairs = zip(original, found, strict=True)
    return Apart(max((_difference(a[3], b[3]) for a, b in pairs), default=0.0))


def spans(original: Mapping[str, Any], got: Outputs) -> Apart:
    """An answer in a context. Two places with one score are equally right."""
    distance = _difference(original["score"], got["score"][0])
    same_place = (original["start"], original["end"]) == (got["start"][0], got["end"][0])
    return Apart(distance, same_place or distance <= TIE / 10)


def texts(original: str, got: Outputs) -> Apart:
    """Generated texts: the share that comes after the first difference, and whether they begin alike."""
    found = str(got["text"][0])
    if original == found:
        return Apart(0.0)
    same = next((i for i, (a, b) in enumerate(zip(original, found, strict=False)) if a != b), None)
    same = min(len(original), len(found)) if same is None else same
    return Apart(1.0 - same / max(1, len(original), len(found)), original[:_BEGINNING] == found[:_BEGINNING])


def _difference(a: float, b: float) -> float:
    if np.isnan(a) or np.isnan(b):
        return 0.0 if np.isnan(a) and np.isnan(b) else OTHER
    return abs(float(a) - float(b)) / max(1.0, abs(float(a)))


COMPARE: Mapping[str, Callable[[Any, Outputs], Apart]] = {
    tasks.EMBEDDING: vectors,
    tasks.RANKING: numbers,
    tasks.CLASSIFICATION: labels,
    "image-classification": labels,
    "zero-shot-classification": zero_shot,
    "fill-mask": masked,
    "token-classification": entities,
    "question-answering": spans,
}
