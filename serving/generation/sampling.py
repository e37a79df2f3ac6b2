"""From logits to tokens. numpy over the vocabulary; the only Python loop is over requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from serving.generation.params import SamplingParams, Unmet

Logits = NDArray[np.float32]
# A nucleus is sought among so many of the likeliest tokens before the whole vocabulary is sorted.
NUCLEUS = 512


@dataclass(frozen=True)
class TokenLogprob:
    """One token's log probability (natural), before penalties, temperature and filters, and its rank."""

    token: int
    logprob: float
    rank: int


class Sampler:
    """Chooses the tokens of one request.

    Args:
        params: of the request.
        prompt: its token ids.
        ends: tokens that may not come before `min_tokens`.
        matcher: what keeps to a structure (see `serving.generation.structure`), or None.
        bad: token ids of texts that must not be completed, each at least one.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        ends: Sequence[int],
        matcher: Any = None,
        bad: Sequence[Sequence[int]] = (),
    ) -> None:
        self._params = params
        self._prompt = np.unique(np.asarray(prompt, np.int64))
        self._ends = np.asarray(sorted(ends), np.int64)
        self._matcher = matcher
        self._bad = [list(tokens) for tokens in bad]
        self._biased = np.asarray([token for token, _ in params.logit_bias], np.int64)
        self._biases = np.asarray([bias for _, bias in params.logit_bias], np.float32)
        self._allowed = None if params.allowed_token_ids is None else np.asarray(params.allowed_token_ids)
        self._masked = matcher is not None or self._allowed is not None or bool(bad)
        self._plain = params.greedy and not params.penalizes and not self._masked and not params.logit_bias
        self._chance = None if params.greedy else np.random.default_rng(_entropy(params.seed))

    def choose(self, logits: Logits, output: Sequence[int], likeliest: int) -> int:
        """The next token.

        Args:
            logits: float32 [vocabulary]; not changed.
            output: tokens of the answer so far.
            likeliest: the token of the largest logit, which is found for all rows at once.

        Raises:
            Unmet: what was asked for leaves no token.
        """
        if self._plain and not len(self._barred(logits, output)):
            return likeliest
        logits = self._adjusted(logits, output)
        if self._chance is None:
            return int(logits.argmax())
        return _sample(logits, self._params, float(self._chance.random()))

    def _barred(self, logits: Logits, output: Sequence[int]) -> NDArray[np.int64]:
        """Tokens that come too early."""
        early = len(output) < self._params.min_tokens
        return self._ends[self._ends < len(logits)] if early else self._ends[:0]

    def _adjusted(self, logits: Logits, output: Sequence[int]) -> Logits:
        """The logits after all that is not chance: as in vLLM, what is added comes before penalties.

        Raises:
            Unmet: no token is left.
        """
        logits = logits.copy()
        logits[self._biased] += self._biases
        if self._params.penalizes:
            logits = self._penalized(logits, output)
        if self._allowed is not None:
            allowed = logits[self._allowed]
            logits[:] = -np.inf
            logits[self._allowed] = allowed
        for tokens in self._bad:
            if list(output[len(output) - len(tokens) + 1 :]) == tokens[:-1]:
                logits[tokens[-1]] = -np.inf
        if self._matcher is not None:
            logits[~self._matcher.allowed()] = -np.inf
        if self._masked and logits.max() == -np.inf:
            raise Unmet("structured_outputs, allowed_token_ids and bad_words together leave no token")
        if len(barred := self._barred(logits, output)):
            others = logits.copy()
            others[barred] = -np.inf
            if others.max() > -np.inf:  # a structure may leave nothing else
                return others
        return logits

    def _penalized(self, logits: Logits, output: Sequence[int]) -> Logits:
        tokens, counts = np.unique(np.asarray(output, np.int64), return_counts=True)
        if self._params.repetition_penalty != 1:
            seen = np.union1d(self._prompt, tokens)
            factor = self._params.repetition_penalty
            logits[seen] = np.where(logits[seen] > 0, logits[seen] / factor, logits[seen] * factor)
        logits[tokens] -= self._params.presence_penalty + self._params.frequency_penalty * counts
        return logits


def negative_log_likelihood(logits: Logits, tokens: ArrayLike) -> NDArray[np.float64]:
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
    """Invert the distribution's cumulative sum at `chance`."""
    tokens, weights = kept(logits, params)
    cumulated = weights.cumsum()
    place = int(np.searchsorted(cumulated, chance * cumulated[-1], side="right"))
    return int(tokens[min(place, len(tokens) - 1)])


def kept(logits: Logits, params: SamplingParams) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """What temperature, min-p, top-k and top-p leave, in this order, as in vLLM.

    Args:
        logits: float32 [vocabulary].

    Returns:
        Tokens that may be chosen, and how likely they are relative to each other.
    """
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
    weights = weights[order]
    if params.top_p < 1:
        nucleus = np.searchsorted(weights.cumsum(), params.top_p * total, side="left") + 1
        order, weights = order[:nucleus], weights[:nucleus]
    return order, weights


def _likeliest(weights: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The tokens of the `count` largest weights, largest first, ties by their number."""
    order = np.argpartition(weights, -count)[-count:]
    return order[np.lexsort((order, -weights[order]))]


def _entropy(seed: int | None) -> int | None:
    return None if seed is None else seed % 2**64
