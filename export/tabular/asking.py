"""Ask the original of rows, and compare its answers with others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export.tabular.columns import Rows
from export.tabular.estimator import Estimator
from export.tabular.original import Answers


class Asker:
    """Asks the original of rows, in the form in which its users have them."""

    def __init__(self, estimator: Estimator) -> None:
        self._estimator = estimator

    def __call__(self, rows: Rows) -> Answers:
        """Its answers.

        Raises:
            Exception: it refuses one of the rows; whatever its library raises.
        """
        original, parts = self._estimator.original, self._estimator.shape.of(rows)
        return Answers.gathered([(places, original.answers(raw)) for places, raw in parts], len(rows))

    def accepted(self, rows: Rows) -> NDArray[np.bool_]:
        """Which rows it answers [rows]: halves of what it refuses are tried until single rows are left."""
        found = np.zeros(len(rows), dtype=bool)
        pending = [np.arange(len(rows))] if len(rows) else []
        while pending:
            places = pending.pop()
            try:
                for _, raw in self._estimator.shape.of(rows.take(places)):
                    self._estimator.original.scores(raw)
            except Exception:  # noqa: BLE001 - each library raises what it likes
                if len(places) > 1:
                    pending += np.array_split(places, 2)
            else:
                found[places] = True
        return found


def scale_of(ordinary: Answers) -> NDArray[np.float64]:
    """How large the predictions of a regressor are [outputs], over rows that are nothing special; of classes
    their scores are between 0 and 1, and so 1."""
    if ordinary.labels is not None:
        return np.ones(1)
    sizes = np.median(np.abs(np.where(np.isfinite(ordinary.scores), ordinary.scores, 0.0)), axis=0)
    return np.asarray(np.where(sizes > 0.0, sizes, 1.0))


def differences(got: Answers, expected: Answers, scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest difference of each row [rows]: of probabilities; of predictions relative to the larger of
    their own size and `scale`."""
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(got.scores - expected.scores)
        # A prediction that float32 does not hold arrives as infinity.
        near = expected.scores.astype(np.float32)
    same = (got.scores == near) | (np.isnan(got.scores) & np.isnan(expected.scores))
    apart = np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))
    if expected.labels is None:
        sizes = np.abs(expected.scores)
        apart = apart / np.maximum(np.where(np.isfinite(sizes), sizes, 0.0), scale)
    return np.asarray(apart.max(axis=1))
