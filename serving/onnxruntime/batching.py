"""Rows of requests, grouped by their length, so that no row pays for a longer one beside it.

Triton joins the requests that wait, whatever their shapes, where a config says `allow_ragged_batch`. Each
comes as its own arrays, padded to its longest row. Here the rows of all of them are cut to their own length,
sorted, and run in a few groups. A run costs as much as `RUN_TOKENS` tokens besides those that it computes, so
a group is split where it would pad more than that. A config may have other limits, which an export measured.

sentence-transformers' `encode` sorts the texts of one call by length in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from serving.onnxruntime.options import Options
from serving.onnxruntime.sessions import Arrays, run_together
from serving.parameters import IDS, MASK

# What a run costs besides its tokens, as tokens. all-MiniLM-L6-v2 in INT8 takes 0.2 ms and 25 us a token on
# two cores of an AMD EPYC with AVX-512 VNNI (timed once by hand), and 1.9 ms and 101 us on an Intel Xeon (by
# the first table of docs/performance.md).
RUN_TOKENS = 16
# Of one run at most, padding included. It bounds the memory of a run, and larger runs leave the CPU's caches:
# on that EPYC a token costs 26 us in a run of 512 tokens, 29 in one of 2,048 and 34 in one of 4,096.
GROUP_TOKENS = 1024
STEP = 8  # lengths are multiples of it: fewer shapes, whose memory ONNX Runtime plans once


class Run(Protocol):
    """Runs the rows of several requests together."""

    def __call__(
        self, session: onnxruntime.InferenceSession, outputs: Sequence[str], requests: Sequence[Arrays], /
    ) -> list[list[NDArray]]:
        """For each request its outputs, in the order of `outputs`."""


class BadRows(ValueError):
    """A request whose inputs do not belong together."""


def run_of(asked: Options) -> Run:
    """How the requests of a model run together, as its config asks: by length, or as one batch."""
    if asked.row_padding is None:
        return run_together
    return partial(
        run_by_length,
        padding=asked.row_padding,
        run=asked.max_run_padding or RUN_TOKENS,
        most=asked.max_run_tokens or GROUP_TOKENS,
    )


def run_by_length(
    session: onnxruntime.InferenceSession,
    outputs: Sequence[str],
    requests: Sequence[Arrays],
    *,
    padding: int,
    run: int = RUN_TOKENS,
    most: int = GROUP_TOKENS,
) -> list[list[NDArray]]:
    """Run the rows of all requests in groups of about the same length.

    Args:
        outputs: names of the graph's outputs to compute; each has one value of a fixed shape for each row.
        requests: the inputs of each, int64 arrays [rows, tokens], one of them the attention mask.
        padding: the token id that fills rows up. Some networks look for it to find a row's last token.
        run, most: see `grouped`.

    Returns:
        For each request its outputs, in the order of `outputs`.

    Raises:
        BadRows: the inputs of a request have no tokens, or not the same shape.
    """
    for request in requests:
        shapes = {array.shape for array in request.values()}
        if len(shapes) > 1 or any(len(shape) != 2 or 0 in shape for shape in shapes):
            raise BadRows(f"inputs must have one shape [rows, tokens], not {sorted(shapes)}")
    lengths = [length for request in requests for length in _lengths(request[MASK])]
    places = [(number, row) for number, request in enumerate(requests) for row in range(len(request[MASK]))]
    results: list[NDArray] = []
    for group in grouped(lengths, run=run, most=most):
        chosen = [places[place] for place in group]
        # Wider than every request would be beyond what the network has positions for.
        widest = max(requests[number][MASK].shape[1] for number, _ in chosen)
        width = min(_rounded(lengths[group[0]]), widest)
        feed = {
            name: _together([requests[number][name][row] for number, row in chosen], width, fill)
            for name, fill in ((name, padding if name == IDS else 0) for name in requests[0])
        }
        found = session.run(list(outputs), feed)
        results = results or [np.empty((len(lengths), *part.shape[1:]), part.dtype) for part in found]
        for whole, part in zip(results, found, strict=True):
            whole[group] = part
    ends = np.cumsum([len(request[MASK]) for request in requests])[:-1]
    return [list(parts) for parts in zip(*(np.split(whole, ends) for whole in results), strict=True)]


def grouped(lengths: Sequence[int], *, run: int = RUN_TOKENS, most: int = GROUP_TOKENS) -> list[list[int]]:
    """Places of rows, in groups that cost least together.

    A group of n rows costs `run` and n times its longest row. The cheapest groups are consecutive in the
    order of length; dynamic programming over the different lengths finds them.

    Args:
        lengths: in tokens, of at least one row.
        run: what a group costs besides, in tokens.
        most: tokens of one group, its padding included; a longer row is a group by itself.

    Returns:
        Groups, the longest rows first, and so inside each.
    """
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    classes = [list(same) for _, same in groupby(order, key=lambda place: _rounded(lengths[place]))]
    best, begins = [0], [0]  # of the first n classes: their cost, and where the last group begins
    for end in range(1, len(classes) + 1):
        rows, cost, begin = 0, None, end
        for first in range(end - 1, -1, -1):
            rows += len(classes[first])
            tokens = rows * _rounded(lengths[classes[first][0]])
            if tokens > most and first < end - 1:
                break
            if cost is None or best[first] + run + tokens < cost:
                cost, begin = best[first] + run + tokens, first
        assert cost is not None  # noqa: S101 - the class alone is always possible
        best.append(cost)
        begins.append(begin)
    found: list[list[int]] = []
    end = len(classes)
    while end:
        rows_of_group = [place for same in classes[begins[end] : end] for place in same]
        fit = max(1, most // _rounded(lengths[rows_of_group[0]]))
        found[:0] = [rows_of_group[first : first + fit] for first in range(0, len(rows_of_group), fit)]
        end = begins[end]
    return found


def _lengths(mask: NDArray[np.int64]) -> list[int]:
    """Tokens of each row up to its last that counts; all, where none does."""
    return (mask.shape[1] - (mask[:, ::-1] != 0).argmax(axis=1)).tolist()


def _rounded(length: int) -> int:
    return -(-length // STEP) * STEP


def _together(rows: Sequence[NDArray], width: int, fill: int) -> NDArray:
    """Rows, cut or filled to one length."""
    made = np.full((len(rows), width), fill, rows[0].dtype)
    for place, row in enumerate(rows):
        kept = row[:width]
        made[place, : len(kept)] = kept
    return made
