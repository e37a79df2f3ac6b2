"""Greedy and beam search over many texts at once: all policy, no ONNX Runtime and no Triton.

Both are those of transformers 4.57 (`GenerationMixin._sample` without sampling, `_beam_search`), so that a
model answers as its own library would have it. A row that is done leaves the batch, and the rows that go on
do not wait for it or pay for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serving.text2text import rules
from serving.text2text.settings import Search

_UNLIKELY = np.float32(-1e9)  # of the beams that begin as copies of the first


class Stepper(Protocol):
    """A model in the midst of a batch; see `serving.text2text.runner.Running`."""

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Add a token to each row; the logits of the next, [rows, vocabulary]."""

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Let row i of what follows be row `rows[i]` of what was."""


def answer(stepper: Stepper, search: Search, limits: Sequence[int]) -> list[list[int]]:
    """Generate an answer to each text.

    Args:
        stepper: with a row for each text, and nothing generated.
        limits: of each text the most tokens of its answer, at least 1.

    Returns:
        Token ids of each answer without its start, the end included where it was reached.
    """
    find = greedy if search.num_beams == 1 else beams
    return find(stepper, search, limits)


def greedy(stepper: Stepper, search: Search, limits: Sequence[int]) -> list[list[int]]:
    """The likeliest token, one at a time; see `answer`."""
    answers = [[search.start] for _ in limits]
    active = list(range(len(limits)))
    while active:
        scores = stepper.step(np.array([answers[row][-1] for row in active], np.int64))
        rules.apply(search, scores, [answers[row] for row in active], [limits[row] for row in active])
        for row, token in zip(active, scores.argmax(axis=1).tolist(), strict=True):
            answers[row].append(token)
        going = [
            index
            for index, row in enumerate(active)
            if answers[row][-1] not in search.ends and len(answers[row]) <= limits[row]
        ]
        if going and len(going) < len(active):
            stepper.keep(np.array(going, np.int64))
        active = [active[index] for index in going]
    return [tokens[1:] for tokens in answers]


def beams(stepper: Stepper, search: Search, limits: Sequence[int]) -> list[list[int]]:
    """The likeliest of the answers that `search.num_beams` beams find; see `answer`."""
    count = search.num_beams
    texts = [_Text.starting(search, limit) for limit in limits]
    stepper.keep(np.repeat(np.arange(len(texts)), count))
    active = list(texts)
    while active:
        running = [tokens for text in active for tokens in text.beams]
        scores = _log_softmax(stepper.step(np.array([tokens[-1] for tokens in running], np.int64)))
        rules.apply(search, scores, running, [text.limit for text in active for _ in text.beams])
        scores = scores.reshape(len(active), count, -1)
        parents = [text.advance(scores[index]) for index, text in enumerate(active)]
        going = [index for index, text in enumerate(active) if not text.done]
        if going:
            stepper.keep(np.concatenate([index * count + parents[index] for index in going]))
        active = [active[index] for index in going]
    return [text.finished[0][1][1:] for text in texts]


@dataclass
class _Text:
    """The beams of one text.

    Attributes:
        limit: most tokens of an answer, the start not counted.
        beams: token ids of each beam, the start included.
        scores: their log probabilities, float32 [beams]; the likeliest comes first.
        finished: score and tokens of answers that have ended, the best first; at most as many as beams.
    """

    search: Search
    limit: int
    beams: list[list[int]]
    scores: NDArray[np.float32]
    finished: list[tuple[float, list[int]]] = field(default_factory=list)
    done: bool = False

    @classmethod
    def starting(cls, search: Search, limit: int) -> _Text:
        """Start with equal beams, of which the first alone counts."""
        scores = np.full(search.num_beams, _UNLIKELY, np.float32)
        scores[0] = 0
        return cls(search, limit, [[search.start] for _ in scores], scores)

    def advance(self, following: NDArray[np.float32]) -> NDArray[np.int64]:
        """Add a token to each beam.

        Args:
            following: log probabilities of the next token, [beams, vocabulary].

        Returns:
            Which of the beams each of the new ones goes on from, int64 [beams].
        """
        count, vocabulary = following.shape
        totals = (following + self.scores[:, None]).reshape(-1)
        # As many that go on as there are beams, even where each beam's likeliest tokens are ends.
        wanted = min(len(totals), count * max(2, 1 + len(self.search.ends)))
        found = np.argpartition(-totals, wanted - 1)[:wanted]
        found = found[np.argsort(-totals[found], kind="stable")]
        parents, tokens = np.divmod(found, vocabulary)
        made = len(self.beams[0])  # tokens of the candidates, the start not counted
        ended = np.isin(tokens, self.search.ends) | (made >= self.limit)
        scores = totals[found]
        for index in np.flatnonzero(ended[:count]):
            sequence = [*self.beams[parents[index]], int(tokens[index])]
            self.finished.append((float(scores[index] / made**self.search.length_penalty), sequence))
        self.finished.sort(key=lambda entry: -entry[0])
        del self.finished[count:]
        chosen = np.concatenate([np.flatnonzero(~ended), np.flatnonzero(ended)])[:count]
        self.beams = [[*self.beams[parents[index]], int(tokens[index])] for index in chosen]
        self.scores = np.where(ended, scores + _UNLIKELY, scores)[chosen]
        self.done = made >= self.limit or not self._can_improve(made)
        return np.asarray(parents[chosen], np.int64)

    def _can_improve(self, made: int) -> bool:
        """Whether it is worth to go on, by the rule that `early_stopping` names."""
        if len(self.finished) < len(self.beams):
            return True
        stopping, penalty = self.search.early_stopping, self.search.length_penalty
        if stopping is True:
            return False
        length = self.limit if stopping == "never" and penalty > 0 else made
        return bool(self.scores[0] / length**penalty > self.finished[-1][0])


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.asarray(shifted, np.float32)
