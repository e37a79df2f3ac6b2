"""Token scores to entities with their places: the last step of token classification.

Follows transformers' `TokenClassificationPipeline`, and agrees with it on labels, scores and offsets. The
word of an entity is the text between its offsets, as it was written.

Parameters in config.pbtxt: `labels` (JSON list, by class) and `aggregation_strategy`: `none` (each token),
`simple` (tokens of one kind that follow one another), `first`, `average`, `max` (a word has one label: of
its first token, of its mean scores, of its surest token).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving import heartbeat
from serving.models.responses import answers, inputs
from serving.parameters import parameters_of

STRATEGIES = ("none", "simple", "first", "average", "max")
OUTSIDE = "O"


@dataclass(frozen=True)
class Entity:
    """A labelled part of a text, `start` and `end` in characters."""

    label: str
    score: float
    start: int
    end: int


def entities(
    scores: NDArray[np.float32],
    offsets: NDArray[np.int32],
    special: NDArray[np.bool_],
    subword: NDArray[np.bool_],
    labels: Sequence[str],
    strategy: str = "simple",
) -> list[Entity]:
    """The entities of one text.

    Args:
        scores: probabilities [tokens, classes].
        offsets: [tokens, 2], characters.
        special: [tokens], true for special tokens and padding.
        subword: [tokens], true where a token goes on the word before it.
        labels: of the classes.
        strategy: one of `STRATEGIES`.
    """
    tokens = np.flatnonzero(~special)
    if strategy in ("none", "simple"):
        words = [[token] for token in tokens]
    else:
        begins = [index for index, token in enumerate(tokens) if index == 0 or not subword[token]]
        words = [list(tokens[a:b]) for a, b in pairwise([*begins, len(tokens)])]
    found = [
        _word(scores[word], int(offsets[word[0], 0]), int(offsets[word[-1], 1]), labels, strategy)
        for word in words
    ]
    if strategy != "none":
        found = _grouped(found)
    return [entity for entity in found if entity.label != OUTSIDE]


def _word(scores: NDArray[np.float32], start: int, end: int, labels: Sequence[str], strategy: str) -> Entity:
    """One label for the tokens of a word, scores [tokens, classes]."""
    if strategy == "average":
        chosen = scores.mean(axis=0)
    elif strategy == "max":
        chosen = scores[scores.max(axis=1).argmax()]
    else:
        chosen = scores[0]
    best = int(chosen.argmax())
    return Entity(labels[best], float(chosen[best]), start, end)


def _grouped(found: Sequence[Entity]) -> list[Entity]:
    """Join neighbours of one kind; a label that begins with `B-` begins a new one."""
    groups: list[list[Entity]] = []
    for entity in found:
        joins = groups and not entity.label.startswith("B-") and _kind(groups[-1][-1]) == _kind(entity)
        if joins:
            groups[-1].append(entity)
        else:
            groups.append([entity])
    return [
        Entity(_kind(group[0]), float(np.mean([e.score for e in group])), group[0].start, group[-1].end)
        for group in groups
    ]


def _kind(entity: Entity) -> str:
    return entity.label[2:] if entity.label.startswith(("B-", "I-")) else entity.label


def as_arrays(rows: Sequence[tuple[str, Sequence[Entity]]]) -> dict[str, NDArray]:
    """Texts with their entities as arrays [rows, most entities], at least one wide.

    A row with fewer ends in entries with the label "" and `start` -1.
    """
    shape = (len(rows), max(1, *(len(found) for _, found in rows)))
    label, word = np.full(shape, b"", object), np.full(shape, b"", object)
    score = np.zeros(shape, np.float32)
    start, end = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
    for row, (text, found) in enumerate(rows):
        for index, entity in enumerate(found):
            label[row, index] = entity.label.encode()
            word[row, index] = text[entity.start : entity.end].encode()
            score[row, index] = entity.score
            start[row, index], end[row, index] = entity.start, entity.end
    return {"label": label, "score": score, "word": word, "start": start, "end": end}


class TritonPythonModel:
    """Triton's interface: `probabilities` and what the tokenizer said of each token, to entities."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the parameters."""
        heartbeat.start()
        parameters = parameters_of(json.loads(args["model_config"]))
        self._labels = json.loads(parameters["labels"])
        self._strategy = parameters["aggregation_strategy"]
        if self._strategy not in STRATEGIES:
            raise ValueError(
                f"aggregation_strategy is {self._strategy!r}, it must be one of {', '.join(STRATEGIES)}"
            )

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, in order."""
        return answers(requests, self._answer)

    def _answer(self, request: Any) -> dict[str, NDArray]:
        names = ("text", "probabilities", "offsets", "special_tokens_mask", "subword")
        texts, scores, offsets, special, subword = inputs(request, *names)
        rows = zip(texts.reshape(-1), scores, offsets, special, subword, strict=True)
        return as_arrays(
            [
                (text.decode(), entities(row, places, unreal, goes_on, self._labels, self._strategy))
                for text, row, places, unreal, goes_on in rows
            ]
        )
