"""From logits to tokens. numpy over the vocabulary; the only Python loop is over requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from serving.generation.params import SamplingParams

Logits = NDArray[np.float32]
# A nucleus is sought among so many of the likeliest tokens before the whole vocabulary is sorted.
NUCLEUS = 512


@dataclass(frozen=True)
class TokenLogprob:
    """One token's log probability (natural), before penalties, temperature and filters, and its rank."""

    token: int
    logprob: float
    rank: int


class Chooser:
    """Chooses the tokens of one request.

    Args:
        params: of the request.
        prompt: its token ids.
        ends: tokens that may not come before `min_tokens`.
        matcher: what keeps to a structure (see `serving.generation.structure`), or None.
    """

    def __init__(
        self, params: SamplingParams, prompt: Sequence[int], ends: Sequence[int], matcher: Any = None
    ) -> None:
        self._params = params
        self._prompt = np.unique(np.asarray(prompt, np.int64))
        self._ends = np.asarray(sorted(ends), np.int64)
        self._matcher = matcher
        self._plain = params.greedy and not params.penalizes and matcher is None
        self._chance = None if params.greedy else np.random.default_rng(_entropy(params.seed))

    def choose(self, logits: Logits, output: Sequence[int], likeliest: int) -> int:
        """The next token.

        Args:
            logits: float32 [vocabulary]; not changed.
            output: tokens of the answer so far.
            likeliest: the token of the largest logit, which is found for all rows at once.
        """
        ends = self._ends[self._ends < len(logits)]
        barred = len(output) < self._params.min_tokens and len(ends) > 0
        if self._plain and not barred:
            return likeliest
        if self._params.penalizes:
            logits = self._penalized(logits, output)
        if self._matcher is not None:
            logits = np.where(self._matcher.allowed(), logits, -np.inf)
        if barred:
            others = logits.copy()
            others[ends] = -np.inf
            if others.max() > -np.inf:  # a structure may leave nothing else
                logits = others
        if self._chance is None:
            return int(logits.argmax())
        return _sample(logits, self._params, float(self._chance.random()))

    def _penalized(self, logits: Logits, output: Sequence[int]) -> Logits:
        logits = logits.copy()
        tokens, counts = np.unique(np.asarray(output, np.int64), return_counts=True)
        if self._params.repetition_penalty != 1:
            seen = np.union1d(self._prompt, tokens)
            factor = self._params.repetition_penalty
            logits[seen] = np.where(logits[seen] > 0, logits[seen] / factor, logits[seen] * factor)
        logits[tokens] -= self._params.presence_penalty + self._params.frequency_penalty * counts
        return logits


def surprise(logits: Logits, tokens: ArrayLike) -> NDArray[np.float64]:
    """Negative log likelihood (natural) of the token that came at each position.

    The exponential of its mean is the perplexity.

    Args:
        logits: float32 [positions, vocabulary]; they are overwritten.
        tokens: what came, [positions].
    """
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(logits)), np.asarray(tokens, np.int64)].astype(np.float64)
    return np.asarray(np.log(np.exp(logits, out=logits).sum(axis=1, dtype=np.float64)) - chosen)


def top_logprobs(logits: Logits, chosen: int, count: int) -> list[TokenLogprob]:
    """The chosen token first, then the `count` likeliest, likeliest first."""
    shifted = logits - logits.max()
    normalized = shifted - np.log(np.exp(shifted).sum())
    best = np.argpartition(normalized, -count)[-count:] if count else np.empty(0, np.int64)
    best = best[np.argsort(-normalized[best], kind="stable")]
    found = {int(token): int((normalized > normalized[token]).sum()) + 1 for token in best}
    rank = int((normalized > normalized[chosen]).sum()) + 1
    entries = [TokenLogprob(chosen, float(normalized[chosen]), rank)]
    entries += [TokenLogprob(t, float(normalized[t]), r) for t, r in found.items() if t != chosen]
    return entries


def _sample(logits: Logits, params: SamplingParams, chance: float) -> int:
    """Invert the distribution's cumulative sum at `chance`; temperature, min-p, top-k, top-p, as in vLLM."""
    weights = np.exp((logits - logits.max()).astype(np.float64) / params.temperature)
    weights[weights < params.min_p] = 0.0  # the likeliest weighs 1
    possible = int(np.count_nonzero(weights))
    total = weights.sum()
    if 0 < params.top_k < possible:
        order = _likeliest(weights, params.top_k)
        total = weights[order].sum()  # what top-k leaves out does not count for the nucleus
    elif params.top_p < 1:
        order = _likeliest(weights, min(NUCLEUS, possible))
        while len(order) < possible and weights[order].sum() < params.top_p * total:
            order = _likeliest(weights, min(8 * len(order), possible))
    elif params.min_p > 0:
        order = _likeliest(weights, possible)
    else:
        order = np.arange(len(weights))
    cumulated = weights[order].cumsum()
    if params.top_p < 1:
        cumulated = cumulated[: np.searchsorted(cumulated, params.top_p * total, side="left") + 1]
    place = int(np.searchsorted(cumulated, chance * cumulated[-1], side="right"))
    return int(order[min(place, len(cumulated) - 1)])


def _likeliest(weights: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The tokens of the `count` largest weights, largest first, ties by their number."""
    order = np.argpartition(weights, -count)[-count:]
    return order[np.lexsort((order, -weights[order]))]


def _entropy(seed: int | None) -> int | None:
    return None if seed is None else seed % 2**64
