"""Question answering over long contexts: a row of several windows beside rows of one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, pipeline

try:
    from transformers.pipelines import question_answering
except ImportError:  # transformers 5 has no such pipeline to compare with
    question_answering = None

from clients import GrpcClient
from export.checkpoint.source import find_checkpoint
from export.encoder import verify
from export.encoder.prepare import Source, prepare
from export.encoder.recipe import EncoderRecipe
from export.encoder.tasks.task import Feed, Outputs
from export.run import export
from serving.embedded import Server, running
from serving.models.layouts import Texts, Windows
from serving.models.sequences import Batch
from shoal import corpus
from shoal.errors import NotProven
from tests import tiny

WORDS = " ".join(corpus.passages()[:20]).split()
MIXED = "日本語の文章です。 👩‍👩‍👧 naïve cafe\u0301, İstanbul 한국어 🙂🙂 ﬁsh "
# One window or several, of 160 tokens that share 80.
ROWS = [
    ("What is Python?", "Guido van Rossum wrote Python, in Amsterdam."),
    ("Which statement?", " ".join(WORDS[:260])),
    ("  何ですか 🙂?", f" \n\t {MIXED * 6}"),
    ("é — ü?", "ß “ü”"),
    ("Where?", f"   {' '.join(WORDS[300:400])} {MIXED}{' '.join(WORDS[400:440])}"),
    ("Which class?", " ".join(WORDS[500:620])),
    ("Who?", "one"),
]
compares = pytest.mark.skipif(
    question_answering is None, reason="transformers 5 has no such pipeline to compare with"
)
MODELS = {"bytes": "RobertaForQuestionAnswering", "pieces": "BertForQuestionAnswering"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("windows")
    return {name: tiny.make(folder / name, architecture) for name, architecture in MODELS.items()}


@pytest.fixture(scope="module")
def served(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("served") / "model_repository"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "SPEED_ROUNDS", 1)
        for name, source in checkpoints.items():
            export(EncoderRecipe(source=str(source), name=name, precisions=("fp32",)), repository)
    with running(repository) as server:
        yield server


@pytest.fixture(scope="module")
def source(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Source:
    path = str(checkpoints["bytes"])
    recipe = EncoderRecipe(source=path, name="bytes")
    return prepare(recipe, find_checkpoint(path), tmp_path_factory.mktemp("prepared"))


def _counting_fillers(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Windows.encode

    def all_real(self: Windows, texts: Texts) -> Batch:
        return replace(encode(self, texts), real=None)

    monkeypatch.setattr(Windows, "encode", all_real)


def test_windows_that_fill_a_row_up_are_not_counted(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """With them the same words would be found twice, and be twice as likely."""
    subject = source.subject
    assert verify.batch_invariance(subject.reference, subject) > 0.9999
    _counting_fillers(monkeypatch)
    assert verify.batch_invariance(subject.reference, subject) < 0.9


def test_answers_are_compared_and_not_only_logits(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, task = source.subject, source.task
    question, context = ROWS[0]
    rows: list[Any] = [{"question": [question], "context": [text]} for text in (context, ROWS[1][1])]

    def answered() -> list[dict[str, float]]:
        found = []
        for asked in (rows[:1], rows):
            feed = subject.feed(asked)
            outputs = {name: array[:1] for name, array in subject.reference(feed).items()}
            one = {name: array[:1] for name, array in feed.items()}
            found.append(dict(task.answered(outputs, one, rows[0], source.opened)))
        return found

    alone, beside = answered()
    assert list(alone) == list(beside)
    assert list(alone.values()) == pytest.approx(list(beside.values()), abs=1e-5)
    _counting_fillers(monkeypatch)
    alone, beside = answered()
    best = next(iter(alone))
    assert beside[best] > 2 * alone[best]
    # Evidence sees that where the logits of each window are equal.
    monkeypatch.setattr(type(task), "compared", lambda self, outputs, feed: np.zeros((1, 1)))
    assert verify.batch_invariance(subject.reference, subject) < 0.9


def test_a_network_that_mixes_the_windows_of_rows_is_refused(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = verify.open_network

    def leaking(exported: Any, precision: str) -> verify.Model:
        model = opened(exported, precision)

        def run(feed: Feed) -> Outputs:
            outputs = model(feed)
            logits = outputs["start_logits"]
            shifted = logits + 0.1 * np.roll(logits, 1, axis=2) * (logits.shape[0] > 1)
            return {**outputs, "start_logits": shifted}

        return run

    monkeypatch.setattr(verify, "SPEED_ROUNDS", 1)
    monkeypatch.setattr(verify, "open_network", leaking)
    recipe = EncoderRecipe(source=str(checkpoints["bytes"]), name="leaks", precisions=("fp32",))
    with pytest.raises(NotProven, match=r"batch invariance 0\.\d+ < 0.9999"):
        export(recipe, tmp_path / "repository")


@compares
@pytest.mark.parametrize("model", MODELS)
def test_rows_of_one_request_are_answered_as_transformers_answers_each(
    served: Server, checkpoints: dict[str, Path], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []  # how likely transformers finds no answer, window by window

    def select(*arguments: Any, **options: Any) -> Any:
        found = original(*arguments, **options)
        told.append(found[3])
        return found

    original = question_answering.select_starts_ends
    monkeypatch.setattr(question_answering, "select_starts_ends", select)
    names = ("answer", "score", "start", "end", "no_answer_score")
    given = {
        name: np.array([[row[index].encode()] for row in ROWS], object)
        for index, name in enumerate(("question", "context"))
    }
    with GrpcClient(served.grpc) as client:
        got = client.infer(model, given)
    ask = pipeline("question-answering", model=str(checkpoints[model]), device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[model])
    windows, holding, nothing = [], [], []
    for index, (question, context) in enumerate(ROWS):
        expected = ask(question=question, context=context)
        answer, score, start, end, none = (got[name][index, 0] for name in names)
        assert (answer.decode(), start, end) == (expected["answer"], expected["start"], expected["end"])
        assert score == pytest.approx(expected["score"], abs=1e-3)
        maybe = ask(question=question, context=context, handle_impossible_answer=True)
        assert none == pytest.approx(told[-1], abs=1e-3)
        assert (none > score) == (maybe["answer"] == "")
        nothing.append(maybe["answer"] == "")
        places = _windows(tokenizer, question, context)
        windows.append(len(places))
        holding.append(sum(first <= start and end <= last for first, last in places))
    # Rows of one window and of several, an answer that stands in two of them, and one that is none.
    assert min(windows) == 1 and max(windows) > 2
    assert max(holding) > 1
    assert any(nothing)


def _windows(tokenizer: Any, question: str, context: str) -> list[tuple[int, int]]:
    """Which characters of the context each window holds, by transformers' tokenizer."""
    encoded = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=160,
        stride=80,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    found = []
    for index, offsets in enumerate(encoded["offset_mapping"]):
        own = [o for o, s in zip(offsets, encoded.sequence_ids(index), strict=True) if s == 1]
        found.append((own[0][0], own[-1][1]))
    return found
