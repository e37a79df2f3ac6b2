"""Tasks over whole texts: embedding, classification, ranking, zero-shot classification."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from transformers import PreTrainedModel

from export.checkpoint.opened import Opened
from export.encoder.sentence import Sentence, score_activation
from export.encoder.tasks import heads, labels
from export.encoder.tasks.task import Feed, Outputs, Row, Task
from shoal import tasks
from shoal.errors import ExportError, UsageError

EVAL_BATCH = 32


class SentenceSimilarity(Task):
    """Text to a vector. `--eval-data`: CSV of sentence1,sentence2,score without a header; Spearman."""

    name = tasks.EMBEDDING
    auto = "AutoModel"
    metric = "spearman"

    def head(self, backbone: PreTrainedModel, opened: Opened) -> heads.Head:
        return heads.Embedding(backbone, Sentence.of(opened))

    def transformer(self, opened: Opened) -> str:
        return Sentence.of(opened).transformer

    def layout_options(self, opened: Opened, max_length: int) -> dict[str, str]:
        return {} if Sentence.of(opened).include_prompt else {"include_prompt": "false"}

    def compared(self, outputs: Outputs, feed: Feed) -> NDArray[np.float32]:
        return outputs["embedding"]

    def score(self, answers: Any, eval_data: Path, opened: Opened) -> float:
        pairs = read_csv(eval_data, ("sentence1", "sentence2", "score"), header=False)
        texts = [text for pair in pairs for text in pair[:2]]
        vectors = in_order(answers, [{"text": [text]} for text in texts], lambda out, _: out["embedding"])
        norms = np.linalg.norm(vectors, axis=1)
        similarity = (vectors[0::2] * vectors[1::2]).sum(axis=1) / (norms[0::2] * norms[1::2])
        return spearman(similarity, numbers([score for *_, score in pairs], eval_data))


class TextClassification(Task):
    """A text, or a pair of texts, to labels. `--eval-data`: CSV of text,label or text,text_pair,label."""

    name = tasks.CLASSIFICATION
    auto = "AutoModelForSequenceClassification"
    pairs = True

    def head(self, backbone: PreTrainedModel, opened: Opened) -> heads.Head:
        return heads.Classification(backbone, self.activation(opened))

    def activation(self, opened: Opened) -> str:
        """The function from logits to scores, as transformers' pipeline chooses it."""
        problem = opened.config.problem_type
        if problem == "regression":
            return "none"
        single = problem != "multi_label_classification" and opened.config.num_labels > 1
        return "softmax" if single else "sigmoid"

    def finish(self, model: onnx.ModelProto, head: heads.Head, opened: Opened, top_k: int) -> None:
        labels.name_classes(model, opened.labels, top=top_k)

    def score(self, answers: Any, eval_data: Path, opened: Opened) -> float:
        rows = read_csv(eval_data, ("text", "label"), ("text", "text_pair", "label"))
        found = in_order(answers, [{"text": row[:-1]} for row in rows], lambda out, _: out["probabilities"])
        wanted = [row[-1] for row in rows]
        if found.shape[1] == 1 or opened.config.problem_type == "regression":
            return spearman(found[:, 0], numbers(wanted, eval_data))
        return accuracy([opened.labels[index] for index in found.argmax(1)], wanted)


class TextRanking(Task):
    """How well a text answers a query. `--eval-data`: CSV of query,text,score; Spearman."""

    name = tasks.RANKING
    auto = "AutoModelForSequenceClassification"
    pairs = True
    metric = "spearman"

    def head(self, backbone: PreTrainedModel, opened: Opened) -> heads.Head:
        if backbone.config.num_labels != 1:
            raise ExportError(
                f"{opened.checkpoint.id} has {backbone.config.num_labels} classes, a reranker has one",
                hint="--task text-classification",
            )
        return heads.Score(backbone, score_activation(opened))

    def row(self, passage: str, index: int, opened: Opened) -> Row:
        return {"query": [" ".join(passage.split()[:5])], "text": [passage]}

    def compared(self, outputs: Outputs, feed: Feed) -> NDArray[np.float32]:
        return outputs["score"]

    def score(self, answers: Any, eval_data: Path, opened: Opened) -> float:
        rows = read_csv(eval_data, ("query", "text", "score"))
        asked: list[Row] = [{"query": [query], "text": [text]} for query, text, _ in rows]
        found = in_order(answers, asked, lambda out, _: out["score"])[:, 0]
        return spearman(found, numbers([row[-1] for row in rows], eval_data))


class ZeroShotClassification(Task):
    """A text to labels that are named in the request. `--eval-data`: CSV of text,label; the candidates are
    all labels in the file."""

    name = tasks.ZERO_SHOT
    auto = "AutoModelForSequenceClassification"
    network_inputs = ("candidate_labels",)
    pairs = True
    lengths = (32, 64, 128)
    max_batch_size = 8
    template = "This example is {}."

    def head(self, backbone: PreTrainedModel, opened: Opened) -> heads.Head:
        names = {str(name).lower(): index for name, index in (opened.config.label2id or {}).items()}
        entailment = next((index for name, index in names.items() if name.startswith("entail")), None)
        if entailment is None:
            if not names:
                raise ExportError(
                    f"the config of {opened.checkpoint.id} has no label2id, which names the class entailment",
                    hint='add it to config.json: "label2id": {"entailment": 0, ...}',
                )
            raise ExportError(
                f"{opened.checkpoint.id} has no class named entailment, only {', '.join(names)}",
                hint="zero-shot classification needs a model of natural language inference",
            )
        return heads.ZeroShot(backbone, entailment, contradiction=-1 if entailment == 0 else 0)

    def finish(self, model: onnx.ModelProto, head: heads.Head, opened: Opened, top_k: int) -> None:
        labels.order_candidates(
            model, "candidate_labels", along="independent", sorted_along="independent_score"
        )

    def layout_options(self, opened: Opened, max_length: int) -> dict[str, str]:
        return {"hypothesis_template": self.template}

    def row(self, passage: str, index: int, opened: Opened) -> Row:
        return {"text": [passage], "candidate_labels": ["a definition", "an example", "a warning"]}

    def score(self, answers: Any, eval_data: Path, opened: Opened) -> float:
        rows = read_csv(eval_data, ("text", "label"))
        candidates = sorted({label for _, label in rows})
        asked: list[Row] = [{"text": [text], "candidate_labels": candidates} for text, _ in rows]
        found = in_order(answers, asked, lambda out, _: out["probabilities"])
        return accuracy([candidates[index] for index in found.argmax(1)], [label for _, label in rows])


def read_csv(path: Path, *columns: Sequence[str], header: bool = True) -> list[list[str]]:
    """The rows of a labelled file.

    Args:
        columns: the headers that are understood.

    Raises:
        UsageError: it cannot be read, has other columns, or fewer than 10 rows.
    """
    known = " or ".join(",".join(names) for names in columns)
    hint = f"a CSV file of {known}, {'with' if header else 'without'} that line at its top"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"evaluation data {path} cannot be read: {error}", hint=hint) from error
    if header and rows:
        first, *rows = rows
        columns = tuple(names for names in columns if list(names) == first)
    widths = {len(names) for names in columns}
    if not widths or any(len(row) not in widths for row in rows):
        raise UsageError(f"evaluation data {path} cannot be read: it has other columns", hint=hint)
    if len(rows) < 10:
        raise UsageError(f"evaluation data {path} has {len(rows)} rows, at least 10 are needed")
    return rows


def in_order(answers: Any, rows: Sequence[Row], chosen: Any) -> NDArray:
    """What is chosen of the head's outputs for each row, computed in batches of rows of like length."""
    order = sorted(range(len(rows)), key=lambda index: len(str(rows[index])))
    # Rows of one text do not mix with pairs, nor one number of candidates with another.
    order.sort(key=lambda index: [len(texts) for texts in rows[index].values()])
    found: dict[int, NDArray] = {}
    start = 0
    while start < len(order):
        shape = [len(texts) for texts in rows[order[start]].values()]
        part = [
            index
            for index in order[start : start + EVAL_BATCH]
            if [len(texts) for texts in rows[index].values()] == shape
        ]
        found.update(zip(part, chosen(*answers([rows[index] for index in part])), strict=True))
        start += len(part)
    return np.stack([found[index] for index in range(len(rows))])


def spearman(found: NDArray, wanted: Sequence[float] | NDArray) -> float:
    """Spearman's rank correlation x100."""
    from scipy.stats import spearmanr  # noqa: PLC0415 - slow to import, rarely needed

    return float(spearmanr(found, wanted).statistic) * 100


def accuracy(found: Sequence[str], wanted: Sequence[str]) -> float:
    """Share of labels that are right, x100."""
    return 100 * sum(a == b for a, b in zip(found, wanted, strict=True)) / len(wanted)


def numbers(texts: Sequence[str], path: Path) -> list[float]:
    """Texts as numbers.

    Raises:
        UsageError: one is none.
    """
    try:
        return [float(text) for text in texts]
    except ValueError as error:
        raise UsageError(f"evaluation data {path} cannot be read: {error}") from error
