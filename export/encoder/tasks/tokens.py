"""Tasks over the tokens of a text: entities, answers in a context, the word behind a mask."""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from transformers import PreTrainedModel

from export.checkpoint.opened import Opened
from export.encoder.tasks import heads, labels
from export.encoder.tasks.task import NO_ANSWER, Feed, Outputs, Row, Task
from export.encoder.tasks.text import accuracy, in_order, read_csv
from serving.models.entities import entities
from serving.models.spans import Span, best_spans
from shoal import tasks
from shoal.errors import ExportError, UsageError

MAX_ANSWER_LENGTH = 15  # tokens, as in transformers' pipeline
STRIDE = 128  # tokens that two windows share, at most


class TokenClassification(Task):
    """A text to entities with their places. `--eval-data`: JSON lines with `text` and `entities`, each with
    `start`, `end` (characters) and `label`; F1 of whole entities."""

    name = tasks.ENTITIES
    auto = "AutoModelForTokenClassification"
    metric = "f1"

    def head(self, backbone: PreTrainedModel, opened: Opened) -> heads.Head:
        return heads.TokenClassification(backbone)

    def output_model(self, opened: Opened) -> tuple[str, dict[str, str]]:
        return "entities", {
            "labels": json.dumps(opened.labels),
            "aggregation_strategy": "simple",
        }

    def compared(self, outputs: Outputs, feed: Feed) -> NDArray[np.float32]:
        return outputs["probabilities"][feed["attention_mask"].astype(bool)]

    def score(self, answers: Any, eval_data: Path, opened: Opened) -> float:
        names = opened.labels
        right = found = wanted = 0
        for entry in _read_entities(eval_data):
            outputs, feed = answers([{"text": [entry["text"]]}])
            told = (feed["offsets"][0], feed["special_tokens_mask"][0], feed["subword"][0])
            got = {(e.start, e.end, e.label) for e in entities(outputs["probabilities"][0], *told, names)}
            asked = {(e["start"], e["end"], e["label"]) for e in entry["entities"]}
            right, found, wanted = right + len(got & asked), found + len(got), wanted + len(asked)
        return 200 * right / max(1, found + wanted)


class QuestionAnswering(Task):
    """A question and a context to an answer with its place. `--eval-data`: CSV of question,context,answer;
    SQuAD's F1 of words."""

    name = tasks.QUESTIONS
    auto = "AutoModelForQuestionAnswering"
    pairs = True
    longest = 384  # as in transformers' pipeline: what is longer is read in windows
    lengths = (64, 128, 256)
    max_batch_size = 8
    metric = "f1"

    def head(self, backbone: PreTrainedModel, opened: Opened) -> heads.Head:
        return heads.QuestionAnswering(backbone)

    def layout_options(self, opened: Opened, max_length: int) -> dict[str, str]:
        return {"stride": str(STRIDE)}

    def output_model(self, opened: Opened) -> tuple[str, dict[str, str]]:
        null = str(_begins_with_special(opened)).lower()
        return "spans", {"max_answer_length": str(MAX_ANSWER_LENGTH), "null_token": null}

    def row(self, passage: str, index: int, opened: Opened) -> Row:
        return {"question": [f"What is {passage.split(maxsplit=1)[0][:12]}?"], "context": [passage]}

    def compared(self, outputs: Outputs, feed: Feed) -> NDArray[np.float32]:
        asked = feed["context_mask"].any(axis=-1)  # not the windows that only fill a row up
        real = feed["attention_mask"].astype(bool)[asked]
        rows = []
        for name in ("start_logits", "end_logits"):
            logits = np.where(real, outputs[name][asked], -np.inf)
            powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
            rows.append((powers / powers.sum(axis=-1, keepdims=True)).reshape(-1, logits.shape[-1]))
        return np.concatenate(rows)

    def answered(self, outputs: Outputs, feed: Feed, row: Row, opened: Opened) -> Mapping[str, float]:
        (context,) = row["context"]
        found = self._spans(outputs, feed, context, opened)
        scores = {context[span.start : span.end].lower(): span.score for span in found}
        return scores | {NO_ANSWER: found[0].no_answer}

    def _spans(self, outputs: Outputs, feed: Feed, context: str, opened: Opened) -> list[Span]:
        """The answers to one row, as they are served."""
        return best_spans(
            outputs["start_logits"][0],
            outputs["end_logits"][0],
            feed["context_mask"][0],
            feed["word_offsets"][0],
            context,
            max_answer_length=MAX_ANSWER_LENGTH,
            null_token=_begins_with_special(opened),
        )

    def score(self, answers: Any, eval_data: Path, opened: Opened) -> float:
        scores = []
        for question, context, wanted in read_csv(eval_data, ("question", "context", "answer")):
            outputs, feed = answers([{"question": [question], "context": [context]}])
            span = self._spans(outputs, feed, context, opened)[0]
            scores.append(_word_f1(context[span.start : span.end], wanted))
        return 100 * float(np.mean(scores))


class FillMask(Task):
    """A text with one mask to the tokens that may stand there. `--eval-data`: CSV of text,token."""

    name = tasks.MASKS
    auto = "AutoModelForMaskedLM"

    def head(self, backbone: PreTrainedModel, opened: Opened) -> heads.Head:
        return heads.FillMask(
            backbone, int(opened.tokenizer.backend_tokenizer.token_to_id(_mask_token(opened)))
        )

    def finish(self, model: onnx.ModelProto, head: heads.Head, opened: Opened, top_k: int) -> None:
        words = [opened.tokenizer.decode([index]) for index in range(int(head.config.vocab_size))]
        labels.name_classes(model, words, top=top_k)

    def layout_options(self, opened: Opened, max_length: int) -> dict[str, str]:
        return {"mask_token": _mask_token(opened)}

    def row(self, passage: str, index: int, opened: Opened) -> Row:
        return {"text": [f"{_mask_token(opened)} {passage}"]}

    def score(self, answers: Any, eval_data: Path, opened: Opened) -> float:
        rows = read_csv(eval_data, ("text", "token"))
        asked: list[Row] = [{"text": [text]} for text, _ in rows]
        best = in_order(answers, asked, lambda out, _: out["probabilities"].argmax(1))
        found = [opened.tokenizer.decode([int(index)]).strip() for index in best]
        return accuracy(found, [token for _, token in rows])


def _mask_token(opened: Opened) -> str:
    """What stands for a masked word.

    Raises:
        ExportError: the tokenizer has no such token.
    """
    if opened.tokenizer.mask_token is None:
        raise ExportError(
            f"the tokenizer of {opened.checkpoint.id} has no mask token", hint="choose another --task"
        )
    return str(opened.tokenizer.mask_token)


def _begins_with_special(opened: Opened) -> bool:
    """Whether sequences begin with a token (CLS) that can stand for "no answer"."""
    return bool(opened.tokenizer.backend_tokenizer.encode("a", "b").special_tokens_mask[0])


def _read_entities(path: Path) -> list[dict[str, Any]]:
    hint = 'JSON lines: {"text": "...", "entities": [{"start": 0, "end": 3, "label": "PER"}]}'
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        for entry in entries:
            entry["text"].strip(), [(e["start"], e["end"], e["label"]) for e in entry["entities"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"evaluation data {path} cannot be read: {error}", hint=hint) from error
    if len(entries) < 10:
        raise UsageError(f"evaluation data {path} has {len(entries)} texts, at least 10 are needed")
    return entries


def _word_f1(found: str, wanted: str) -> float:
    """F1 as SQuAD's evaluation has it: of words without case, punctuation and articles (Rajpurkar et al.
    2016)."""
    a, b = (
        [
            word
            for word in "".join(c for c in text.lower() if c not in string.punctuation).split()
            if word not in ("a", "an", "the")
        ]
        for text in (found, wanted)
    )
    if not a or not b:
        return float(a == b)
    common = sum((Counter(a) & Counter(b)).values())
    return 2 * common / (len(a) + len(b))
