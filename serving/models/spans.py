"""Start and end logits to an answer with its place: the last step of question answering.

Follows transformers' `QuestionAnsweringPipeline`: probabilities over the tokens of the context and the first
token, which stands for "no answer"; the likeliest span of at most `max_answer_length` tokens over all
windows, widened to whole words.

Parameters in config.pbtxt: `max_answer_length` in tokens, and `null_token`: whether sequences begin with a
token that stands for "no answer".
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from serving import heartbeat
from serving.models.responses import answers, inputs
from serving.parameters import parameters_of

CANDIDATES = 12  # spans of a window that are looked at, as in transformers for one answer


@dataclass(frozen=True)
class Span:
    """An answer, `start` and `end` in characters of the context.

    Attributes:
        score: probability of these words, summed over the spans that read so.
        no_answer: probability that there is none, the least over the windows; 0 where the model has no token
            for it.
    """

    start: int
    end: int
    score: float
    no_answer: float


def best_spans(
    starts: NDArray[np.float32],
    ends: NDArray[np.float32],
    allowed: NDArray[np.bool_],
    offsets: NDArray[np.int32],
    context: str,
    *,
    max_answer_length: int = 15,
    null_token: bool = True,
) -> list[Span]:
    """The likeliest answers in one context. Spans that are the same words, in whatever case, are one answer.

    Args:
        starts, ends: logits [windows, tokens].
        allowed: which tokens are the context's, [windows, tokens].
        offsets: of each token's word, [windows, tokens, 2], characters of the context.
        context: the text.
        max_answer_length: longest answer in tokens.
        null_token: the first token stands for "no answer".

    Returns:
        The likeliest first; where there is none at all, one of no words and of score 0.
    """
    no_answer = 1.0 if null_token else 0.0
    found: dict[str, Span] = {}
    for window in np.flatnonzero(allowed.any(axis=1)):
        counted = allowed[window].copy()
        counted[0] |= null_token
        begin, finish = _softmax(starts[window], counted), _softmax(ends[window], counted)
        if null_token:
            no_answer = min(no_answer, float(begin[0] * finish[0]))
        begin, finish = (np.where(allowed[window], chance, 0) for chance in (begin, finish))
        # By first token and length: tokens times tokens would be gigabytes of a long context.
        width = min(max_answer_length, len(finish))
        ends_of = sliding_window_view(np.append(finish, np.zeros(width - 1, finish.dtype)), width)
        scores = begin[:, None] * ends_of
        for place in np.argsort(-scores, axis=None, kind="stable")[:CANDIDATES]:
            first, more = np.unravel_index(place, scores.shape)
            if score := float(scores[first, more]):
                last = first + more
                start, end = int(offsets[window, first, 0]), int(offsets[window, last, 1])
                words = context[start:end].lower()
                before = found.get(words, Span(start, end, 0.0, 0.0))
                found[words] = replace(before, score=before.score + score)
    ranked = sorted(found.values(), key=lambda span: -span.score) or [Span(0, 0, 0.0, 0.0)]
    return [replace(span, no_answer=no_answer) for span in ranked]


def _softmax(logits: NDArray[np.float32], counted: NDArray[np.bool_]) -> NDArray[np.float32]:
    masked = np.where(counted, logits, -np.inf)
    powers = np.exp(masked - masked.max())
    return np.asarray(powers / powers.sum(), np.float32)


class TritonPythonModel:
    """Triton's interface: logits and what the tokenizer said of each token, to `answer` and its place."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the parameters."""
        heartbeat.start()
        parameters = parameters_of(json.loads(args["model_config"]))
        self._max_answer_length = int(parameters["max_answer_length"])
        self._null_token = parameters["null_token"] == "true"  # noqa: S105 - no secret

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, in order."""
        return answers(requests, self._answer)

    def _answer(self, request: Any) -> dict[str, NDArray]:
        names = ("context", "start_logits", "end_logits", "context_mask", "word_offsets")
        contexts, *features = inputs(request, *names)
        texts = [text.decode() for text in contexts.reshape(-1)]
        spans = [
            best_spans(*row, max_answer_length=self._max_answer_length, null_token=self._null_token)[0]
            for row in zip(*features, texts, strict=True)
        ]
        words = [text[span.start : span.end].encode() for text, span in zip(texts, spans, strict=True)]
        return {
            "answer": np.array(words, object).reshape(-1, 1),
            "score": np.array([[span.score] for span in spans], np.float32),
            "start": np.array([[span.start] for span in spans], np.int32),
            "end": np.array([[span.end] for span in spans], np.int32),
            "no_answer_score": np.array([[span.no_answer] for span in spans], np.float32),
        }
