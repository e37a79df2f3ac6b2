"""Rounds a matrix so that what the rounding of one row adds to the output, the next rows take away.

GPTQ (Frantar et al. 2022, arXiv:2210.17323): rows are rounded one after the other, and the error of each
is made up for by the rows still to come, weighed by how the channels occur together in sample text.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DAMPING = 0.1  # of the mean diagonal; more of it trusts the sample less
BLOCK = 64  # rows whose effect on the rest is applied in one product


def round_with_gram(
    weight: NDArray[np.float32], columns: NDArray[np.float32], most: int, gram: NDArray[np.float32]
) -> NDArray[np.int8]:
    """Integers in [-most, most] whose product with `columns` stands for `weight`.

    Args:
        weight: [channels, outputs].
        columns: the scale of each output, [outputs].
        gram: sum of x xT over sample activations x, [channels, channels].
    """
    count = len(weight)
    damped = gram.astype(np.float64)
    damped[np.diag_indices(count)] += DAMPING * (np.diag(damped).mean() or 1.0)
    order = np.argsort(-np.diag(damped))  # what matters most first, while many rows can still make up for it
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T.astype(np.float32)
    rest = weight[order]
    codes = np.empty(weight.shape, np.int8)
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        errors = np.empty((stop - start, weight.shape[1]), np.float32)
        for row in range(start, stop):
            rounded = np.clip(np.rint(rest[row] / columns), -most, most)
            codes[order[row]] = rounded
            error = (rest[row] - rounded * columns) / upper[row, row]
            rest[row + 1 : stop] -= upper[row, row + 1 : stop, None] * error
            errors[row - start] = error
        rest[stop:] -= upper[start:stop, stop:].T @ errors
    return codes
