"""Each task's student learns by the loss that the documents name, and it helps.

Values are computed by torch and transformers alone, from texts that transformers' own tokenizer encodes, one
by one and without padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer

from export.checkpoint.source import find_checkpoint
from export.encoder.compress.apply import compress, network_feed
from export.encoder.compress.distill import Distillation, _rise_and_fall, distill
from export.encoder.compress.importance import measure_importance
from export.encoder.compress.losses import Distance
from export.encoder.compress.prune import prune
from export.encoder.prepare import prepare
from export.encoder.recipe import EncoderRecipe
from export.encoder.tasks.heads import Head
from shoal import corpus
from shoal.errors import ExportError, UsageError
from shoal.progress import Silent
from tests import tiny
from tests.export.encoder.test_tasks import CHECKPOINTS as TASKS

TEXTS = [text[:200] for text in corpus.passages()[:5]]
MAX_TOKENS = 40
RANKER = {"num_labels": 1, "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}
CHECKPOINTS = TASKS | {
    "plain ranker": ("BertForSequenceClassification", RANKER, "text-ranking"),
    "vectors": ("BertModel", {}, "sentence-similarity"),
}
Pairs = list[tuple[Tensor, Tensor]]  # a student's and its teacher's values


class Pair:
    """A teacher, a student of one layer, and both as transformers loads them."""

    def __init__(self, name: str, folder: Path) -> None:
        architecture, config, task = CHECKPOINTS[name]
        path = tiny.make(folder / "teacher", architecture, **config)
        recipe = EncoderRecipe(source=str(path), name="x", task=task)
        self.source = prepare(recipe, find_checkpoint(str(path)), folder)
        self.teacher: Head = self.source.head
        self.student, _ = prune(self.teacher, [self.feed(TEXTS)], layers=1)
        self.student.backbone.save_pretrained(folder / "student")
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        kind = getattr(transformers, self.source.task.auto)
        self.originals = [kind.from_pretrained(folder / each).eval() for each in ("student", "teacher")]

    def feed(self, texts: list[str], max_length: int = MAX_TOKENS) -> dict[str, Any]:
        rows = [self.source.task.row(text, 0, self.source.opened) for text in texts]
        return network_feed(self.source.encode(rows, max_length=max_length), self.source.inputs)

    def values(self, attribute: str, *texts: Any, **options: Any) -> Pairs:
        """What the student and the teacher give for each window of a text or a pair of texts, unpadded."""
        options = {"truncation": True, "max_length": MAX_TOKENS, **options}
        overflow = "stride" in options
        encoded = self.tokenizer(*texts, return_overflowing_tokens=overflow, **options)
        windows = range(len(encoded["input_ids"]) if overflow else 1)
        names = self.tokenizer.model_input_names
        found: Pairs = []
        for window in windows:
            inputs = {
                name: torch.tensor([encoded[name][window] if overflow else encoded[name]]) for name in names
            }
            with torch.no_grad():
                found.append(tuple(getattr(m(**inputs), attribute)[0] for m in self.originals))
        return found

    def distance(self, temperature: float = 2.0) -> tuple[Tensor, Tensor]:
        return Distance(self.teacher, self.student, temperature)(self.feed(TEXTS))


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    yield Pair(request.param, tmp_path)


def kl_of_softmax(pairs: Pairs, temperature: float) -> float:
    """Mean over the pairs."""
    found = [
        functional.kl_div(
            functional.log_softmax(student / temperature, -1),
            functional.softmax(teacher / temperature, -1),
            reduction="sum",
        )
        for student, teacher in pairs
    ]
    return float(torch.stack(found).mean()) * temperature**2


def kl_of_sigmoid(pairs: Pairs, temperature: float) -> float:
    """Cross-entropy less the teacher's entropy: summed over the labels, mean over the pairs."""
    total = 0.0
    for student, teacher in pairs:
        wanted = (teacher / temperature).sigmoid()
        cross, entropy = (
            functional.binary_cross_entropy_with_logits(logits / temperature, wanted, reduction="sum")
            for logits in (student, teacher)
        )
        total += float(cross - entropy)
    return total / len(pairs) * temperature**2


def relative(pairs: Pairs, temperature: float = 1.0) -> float:
    """Squared distance in units of the teacher's square."""
    student, teacher = (torch.stack(list(values)) for values in zip(*pairs, strict=True))
    return float(
        functional.mse_loss(student, teacher) / functional.mse_loss(teacher, torch.zeros_like(teacher))
    )


LOSSES = [
    ("mood", kl_of_softmax),
    ("topics", kl_of_sigmoid),
    ("grade", relative),
]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize(("pair", "loss"), LOSSES, indirect=["pair"])
def test_classifiers_and_regressions(pair: Pair, loss: Any, temperature: float) -> None:
    expected = [each for text in TEXTS for each in pair.values("logits", text)]
    assert pair.distance(temperature)[0].item() == pytest.approx(loss(expected, temperature), rel=1e-4)


@pytest.mark.parametrize(
    ("pair", "loss"), [("ranker", kl_of_sigmoid), ("plain ranker", relative)], indirect=["pair"]
)
def test_ranking(pair: Pair, loss: Any) -> None:
    """By the activation that its checkpoint states: a sigmoid, or none, which is a regression."""
    rows = [(" ".join(text.split()[:5]), text) for text in TEXTS]
    expected = [each for query, text in rows for each in pair.values("logits", query, text)]
    assert pair.distance(3.0)[0].item() == pytest.approx(loss(expected, 3.0), rel=1e-4)


@pytest.mark.parametrize("pair", ["names"], indirect=True)
def test_token_classification_token_by_token(pair: Pair) -> None:
    expected = [
        tokens
        for text in TEXTS
        for student, teacher in pair.values("logits", text)
        for tokens in zip(student, teacher, strict=True)
    ]
    assert pair.distance(3.0)[0].item() == pytest.approx(kl_of_softmax(expected, 3.0), rel=1e-4)


@pytest.mark.parametrize("pair", ["squad"], indirect=True)
def test_question_answering_over_the_tokens_of_each_window(pair: Pair) -> None:
    rows = [(f"What is {text.split(maxsplit=1)[0][:12]}?", text) for text in TEXTS]
    starts, ends = (
        [
            each
            for question, text in rows
            for each in pair.values(name, question, text, truncation="only_second", stride=MAX_TOKENS // 2)
        ]
        for name in ("start_logits", "end_logits")
    )
    assert len(starts) > len(TEXTS)  # some have several windows, none is counted twice
    expected = kl_of_softmax(starts, 3.0) + kl_of_softmax(ends, 3.0)
    assert pair.distance(3.0)[0].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("pair", ["nli"], indirect=True)
def test_zero_shot_among_labels_and_each_by_itself(pair: Pair) -> None:
    among: Pairs = []
    alone: Pairs = []
    for text in TEXTS:
        found = [
            pair.values("logits", text, f"This example is {label}.", truncation="only_first")[0]
            for label in ("a definition", "an example", "a warning")
        ]
        student, teacher = (torch.stack(list(values)) for values in zip(*found, strict=True))
        among.append((student[:, 2], teacher[:, 2]))  # entailment
        alone += zip(student[:, [0, 2]], teacher[:, [0, 2]], strict=True)
    expected = kl_of_softmax(among, 3.0) + kl_of_softmax(alone, 3.0)
    assert pair.distance(3.0)[0].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("pair", ["cloze"], indirect=True)
def test_fill_mask_over_the_vocabulary(pair: Pair) -> None:
    masked = [f"<mask> {text}" for text in TEXTS]
    expected = [
        (student[1], teacher[1]) for text in masked for student, teacher in pair.values("logits", text)
    ]
    assert pair.distance(3.0)[0].item() == pytest.approx(kl_of_softmax(expected, 3.0), rel=1e-4)


@pytest.mark.parametrize("pair", ["vectors"], indirect=True)
def test_embeddings_and_hidden_states(pair: Pair) -> None:
    hidden = [pair.values("last_hidden_state", text)[0] for text in TEXTS]
    means = [(student.mean(0), teacher.mean(0)) for student, teacher in hidden]
    outputs, states = pair.distance()
    assert outputs.item() == pytest.approx(relative(means), rel=1e-4)
    tokens = [each for both in hidden for each in zip(*both, strict=True)]
    assert states.item() == pytest.approx(relative(tokens), rel=1e-4)


@pytest.mark.parametrize("pair", ["squad"], indirect=True)
def test_hidden_states_of_windows_are_those_of_real_tokens(pair: Pair) -> None:
    for original in pair.originals:
        original.config.output_hidden_states = True
    expected: Pairs = []
    for text in TEXTS:
        question = f"What is {text.split(maxsplit=1)[0][:12]}?"
        options = {"truncation": "only_second", "stride": MAX_TOKENS // 2, "max_length": MAX_TOKENS}
        encoded = pair.tokenizer(question, text, return_overflowing_tokens=True, **options)
        for ids in encoded["input_ids"]:
            with torch.no_grad():
                last = [m(torch.tensor([ids])).hidden_states[-1][0] for m in pair.originals]
            expected += zip(*last, strict=True)
    assert pair.distance()[1].item() == pytest.approx(relative(expected), rel=1e-4)


@pytest.mark.parametrize("pair", ["mood", "topics"], indirect=True)
def test_the_gradient_is_that_of_hinton(pair: Pair) -> None:
    """Of the bias behind the logits: T times the mean difference of probabilities (section 2.1 there)."""
    *_, bias = pair.student.parameters()
    found = {}
    for temperature in (1.0, 4.0):
        outputs, _ = pair.distance(temperature)
        (gradient,) = torch.autograd.grad(outputs, bias)
        values = [each for text in TEXTS for each in pair.values("logits", text)]
        activation = pair.student.activation
        given, wanted = (
            getattr(torch.stack(list(each)) / temperature, activation)(
                **({"dim": -1} if activation == "softmax" else {})
            )
            for each in zip(*values, strict=True)
        )
        torch.testing.assert_close(gradient, temperature * (given - wanted).mean(0), atol=1e-5, rtol=1e-3)
        found[temperature] = gradient
    assert functional.cosine_similarity(found[1.0], found[4.0], dim=0) < 0.9999


@pytest.mark.parametrize("pair", ["nli", "squad"], indirect=True)
def test_heads_of_rows_of_several_sequences_leave_by_how_much_the_output_moves(pair: Pair) -> None:
    """Its importance is how far the output moves when a head closes by a hundredth, times 100 squared."""
    feed = pair.feed(TEXTS)
    real = torch.from_numpy(feed["attention_mask"])
    attention = pair.teacher.backbone.base_model.encoder.layer

    def outputs() -> Tensor:
        with torch.no_grad():
            made = pair.teacher(**{name: torch.from_numpy(array) for name, array in feed.items()})
        return torch.cat([(value * real if value.ndim > 2 else value).flatten() for value in made.values()])

    expected = outputs()
    measured = []
    for layer in attention:
        weight = layer.attention.output.dense.weight
        for head in range(4):
            columns = slice(8 * head, 8 * head + 8)
            kept = weight[:, columns].detach().clone()
            with torch.no_grad():
                weight[:, columns] = kept * (1 - 1e-2)
                measured.append(float((outputs() - expected).square().sum() / expected.square().sum()) * 1e4)
                weight[:, columns] = kept
    scores = np.concatenate(measure_importance(pair.teacher, [feed] * 32).heads)
    np.testing.assert_allclose(scores, measured, rtol=0.35)
    assert np.corrcoef(scores, measured)[0, 1] > 0.98
    _, report = prune(pair.teacher, [feed], heads=0.5, ffn=0.5)
    assert report["heads"]["kept"] == 4


def test_a_vision_transformer_is_refused_by_name(tmp_path: Path) -> None:
    path = tiny.make_vit(tmp_path / "vit", num_labels=3)
    recipe = EncoderRecipe(source=str(path), name="x", layers=1, distill_steps=1)
    source = prepare(recipe, find_checkpoint(str(path)), tmp_path)
    with pytest.raises(ExportError, match="the architecture vit cannot be made smaller"):
        compress(source, Silent())


def test_a_text_that_cannot_be_a_row_is_told(tmp_path: Path) -> None:
    path = tiny.make(tmp_path / "cloze", "BertForMaskedLM")
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"The text {number} has a [MASK] of its own.\n" for number in range(30)))
    recipe = EncoderRecipe(source=str(path), name="x", layers=1, distill_steps=1, distill_text=texts)
    source = prepare(recipe, find_checkpoint(str(path)), tmp_path)
    with pytest.raises(UsageError, match="text to learn from cannot be: text 0 has 2 times"):
        compress(source, Silent())
    with pytest.raises(UsageError, match="none.txt cannot be read"):
        missing = msgspec.structs.replace(recipe, distill_text=tmp_path / "none.txt")
        compress(replace(source, recipe=missing), Silent())


def _tensors(feed: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in feed.items()}


def test_a_pruned_classifier_answers_like_its_teacher_again(tmp_path: Path) -> None:
    """The teacher has learned a rule of three classes; the student sees its probabilities and no label."""
    path = tiny.make(tmp_path / "rule", "BertForSequenceClassification", num_labels=3, num_hidden_layers=3)
    source = prepare(EncoderRecipe(source=str(path), name="x"), find_checkpoint(str(path)), tmp_path)
    teacher = source.head

    def feed(texts: list[str], max_length: int = 48) -> dict[str, Any]:
        return network_feed(
            source.encode([{"text": [t]} for t in texts], max_length=max_length), source.inputs
        )

    def rule(text: str) -> int:
        return 0 if "class" in text.lower() else 1 if "the" in text.split() else 2

    def answers(model: Head) -> Tensor:
        with torch.no_grad():
            return model.logits(_tensors(feed(held_out)))[0].argmax(1)

    texts = [text[:200] for text in corpus.passages()[:1800]]
    texts, held_out = texts[:1500], texts[1500:]
    chance = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(teacher.parameters(), 2e-3)
    for _ in range(100):
        batch = [texts[index] for index in chance.integers(0, len(texts), 32)]
        logits = teacher.logits(_tensors(feed(batch)))[0]
        loss = functional.cross_entropy(logits, torch.tensor([rule(text) for text in batch]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    student, _ = prune(teacher, [feed(texts[:32])], layers=1, ffn=0.5)
    expected = answers(teacher)
    assert torch.bincount(expected, minlength=3).min() > 20  # no class is forgotten
    before = float((answers(student) == expected).float().mean())
    settings = Distillation(steps=60, learning_rate=3e-3, max_tokens=48)
    report = distill(teacher, student, texts, feed, settings=settings, folder=tmp_path / "state")
    after = float((answers(student) == expected).float().mean())
    assert report["loss"] == "KL divergence"
    assert report["held_out"]["after"] < 0.6 * report["held_out"]["before"]
    assert after > before + 0.2, (before, after)


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [_rise_and_fall(step, 300) for step in range(300)]
    assert max(rates) == rates[29] == pytest.approx(0.9, abs=0.01)
    assert np.allclose(np.diff(rates[29:]), -1 / 300)
    assert rates[0] == pytest.approx(1 / 30)
    assert rates[-1] == pytest.approx(1 / 300)
