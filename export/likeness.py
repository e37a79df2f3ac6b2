"""How alike two arrays are, or two lists of answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

TIE = 1e-3  # two classes or tokens whose numbers are closer than this are equally right


def difference(found: NDArray, expected: NDArray) -> float:
    """Largest absolute difference, relative to the largest expected value where that is above 1."""
    return float(np.abs(found - expected).max() / max(1.0, float(np.abs(expected).max())))


def cosines(found: NDArray, expected: NDArray) -> NDArray[np.float32]:
    """Cosines of two arrays [vectors, width], row by row: float32 [vectors]."""
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return np.asarray((found * expected).sum(axis=1) / np.maximum(norms, np.finfo(np.float32).tiny))


def same_choice(found: NDArray, expected: NDArray, *, relative: bool = False) -> NDArray[np.bool_]:
    """Rows whose largest component is the expected one's largest, or as large as that up to a tie.

    Args:
        relative: a tie is relative to the row's largest magnitude where that is above 1, as of logits.
    """
    chosen = np.take_along_axis(expected, found.argmax(axis=1)[:, None], axis=1)[:, 0]
    scale = np.maximum(1.0, np.abs(expected).max(axis=1)) if relative else 1.0
    return np.asarray(expected.max(axis=1) - chosen <= TIE * scale)


def share_equal(found: Sequence[Any], expected: Sequence[Any]) -> float:
    """Share of answers that are equal, element by element."""
    return float(np.mean([tuple(a) == tuple(b) for a, b in zip(found, expected, strict=True)]))
