"""What may not, or must, come next: transformers' logits processors that need nothing but what came before.

Each changes the scores [rows, vocabulary] in place; log probabilities in beam search and logits in greedy
search, as in transformers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serving.text2text.settings import Search

Tokens = Sequence[int]


def apply(
    search: Search, scores: NDArray[np.float32], answers: Sequence[Tokens], limits: Sequence[int]
) -> None:
    """All rules of a search.

    Args:
        answers: of each row what there is so far, the start included.
        limits: of each row the most tokens of its answer, the start not counted.
    """
    if search.repetition_penalty != 1.0:
        _penalize(scores, answers, search.repetition_penalty)
    if search.no_repeat_ngram_size:
        for row, answer in enumerate(answers):
            scores[row, _repeating(answer, search.no_repeat_ngram_size)] = -np.inf
    if search.suppressed:
        scores[:, list(search.suppressed)] = -np.inf
    for row, answer in enumerate(answers):
        made = len(answer) - 1
        if made < search.min_new_tokens:
            scores[row, list(search.ends)] = -np.inf
        if made == 0 and search.forced_bos >= 0:
            _force(scores[row], search.forced_bos)
        if made == limits[row] - 1 and search.forced_eos >= 0:
            _force(scores[row], search.forced_eos)


def _penalize(scores: NDArray[np.float32], answers: Sequence[Tokens], penalty: float) -> None:
    """Keskar et al. 2019, CTRL, arXiv:1909.05858."""
    for row, answer in enumerate(answers):
        came = np.unique(answer)
        values = scores[row, came]
        scores[row, came] = np.where(values < 0, values * penalty, values / penalty)


def _repeating(answer: Tokens, size: int) -> list[int]:
    """Ids that would end a run of `size` tokens which is there already."""
    begun = tuple(answer[len(answer) - size + 1 :])
    starts = range(len(answer) - size + 1)
    return [answer[n + size - 1] for n in starts if tuple(answer[n : n + size - 1]) == begun]


def _force(scores: NDArray[np.float32], token: int) -> None:
    scores[:] = -np.inf
    scores[token] = 0
