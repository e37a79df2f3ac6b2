"""Whether two versions of a model answered a request alike.

`export.raw.agreement` compares a version with the original library, by task and nearly to the last digit.
Here a version may have been trained anew, its task is not known, and no exporter is installed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferResult, service_pb2

LABEL = "label"
LONG = 8  # values: rows of so many are vectors, whose direction counts
LEAST_COSINE = 0.99
MOST_APART, NEAR_ZERO = 0.01, 0.001  # of other numbers: as a share of the larger one, or plainly


def agree(old: service_pb2.ModelInferResponse, new: service_pb2.ModelInferResponse) -> bool:
    """Whether both say the same.

    Where an answer has texts or labels, these must be the same (of a row's list the first, which is the
    choice), and its numbers do not count. Else vectors must have a cosine of 0.99, other numbers must lie
    within 1 % of each other, and whole numbers must be equal.
    """
    sides = [_outputs(answer) for answer in (old, new)]
    if sides[0].keys() != sides[1].keys():
        return False
    said = [name for name, values in sides[0].items() if values.dtype == object or name == LABEL]
    return all(_alike(sides[0][name], sides[1][name]) for name in said or sides[0])


def _outputs(answer: service_pb2.ModelInferResponse) -> dict[str, NDArray[np.generic]]:
    result = InferResult(answer)
    return {output.name: result.as_numpy(output.name) for output in answer.outputs}


def _alike(old: NDArray[np.generic], new: NDArray[np.generic]) -> bool:
    if old.shape != new.shape or old.dtype != new.dtype:
        return False
    if not old.size:
        return True
    rows = [values.reshape(len(values), -1) if values.ndim else values.reshape(1, 1) for values in (old, new)]
    if old.dtype == object:
        return bool((rows[0][:, 0] == rows[1][:, 0]).all())
    if not np.issubdtype(old.dtype, np.floating):
        return bool((rows[0] == rows[1]).all())
    first, second = (values.astype(np.float64) for values in rows)
    if first.shape[1] < LONG:
        return bool(np.isclose(first, second, rtol=MOST_APART, atol=NEAR_ZERO, equal_nan=True).all())
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = (first * second).sum(axis=1) / lengths
    return bool(((cosines >= LEAST_COSINE) | (first == second).all(axis=1)).all())
