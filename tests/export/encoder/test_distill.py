"""Distillation of tiny encoders: it helps, and a run that is broken off goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
)

from export.encoder import evidence, verify
from export.encoder import raw as encoder
from export.encoder.compress import state
from export.encoder.compress.architecture import TransformerEncoder
from export.encoder.compress.distill import Distillation, distill
from export.encoder.compress.losses import softmax_divergence, squared
from export.encoder.compress.prune import prune
from export.encoder.compress.texts import batch, read_texts, sentences, split
from export.encoder.recipe import EncoderRecipe
from export.encoder.tasks.heads import Embedding
from export.raw.evidence import RawTolerance
from export.run import export
from shoal.errors import ExportError, NotProven, UsageError
from shoal.manifest import manifests
from shoal.progress import Advance, Silent
from tests import tiny
from tests.conftest import ROOT
from tests.export.encoder.small import FAST, FEEDS, MEAN, SIZES, TEXTS, embedder, encode


def _pair(kind: str = "bert") -> tuple[torch.nn.Module, torch.nn.Module]:
    teacher = embedder(kind)
    return teacher, prune(teacher, FEEDS, layers=1, ffn=0.5)[0]


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_distillation_lowers_the_distance_on_held_out_text(kind: str, tmp_path: Path) -> None:
    teacher, student = _pair(kind)
    tables = TransformerEncoder(student.backbone).embeddings
    before = [weight.clone() for weight in tables.parameters()]
    settings = Distillation(steps=60, batch=16, learning_rate=3e-3, max_words=8, max_tokens=16)
    report = distill(teacher, student, TEXTS, encode, settings=settings, folder=tmp_path)
    assert report["held_out"]["texts"] == 10
    assert report["held_out"]["after"] < 0.7 * report["held_out"]["before"]
    assert all(torch.equal(a, b) for a, b in zip(before, tables.parameters(), strict=True))
    assert all(weight.requires_grad for weight in student.parameters())
    assert json.loads(json.dumps(report)) == report


def test_losses_are_zero_only_for_the_same_and_blind_to_padding() -> None:
    chance = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    a, b = (torch.randn(2, 3, 5, generator=chance) for _ in range(2))
    padded = b.clone()
    padded[~mask.bool()] = 100.0
    for loss in (squared, lambda x, y, m: softmax_divergence(x, y, m, 2.0)):
        assert float(loss(a, a, mask)) == pytest.approx(0, abs=1e-6)
        assert float(loss(a, b, mask)) > 0.1
        assert float(loss(a, b, mask)) == float(loss(a, padded, mask))
    unit = [torch.nn.functional.normalize(x[:, 0], dim=1) for x in (a, b)]
    cosine = torch.nn.functional.cosine_similarity(*unit).mean()
    assert float(squared(*unit, mask)) == pytest.approx(float(2 - 2 * cosine), abs=1e-5)


class StopAfter(Silent):
    """Breaks a run off, as a user's Ctrl-C does."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    @contextmanager
    def step(self, description: str, total: int | None = None) -> Iterator[Advance]:
        def advance() -> None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

        yield advance


def _weights(student: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in student.state_dict().items()}


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_run_broken_off_goes_on_bit_by_bit(stop: int, tmp_path: Path) -> None:
    teacher, student = _pair()
    whole = distill(teacher, student, TEXTS, encode, settings=FAST, folder=tmp_path / "whole")
    expected = _weights(student)
    _, student = _pair()
    with pytest.raises(KeyboardInterrupt):
        distill(
            teacher, student, TEXTS, encode, settings=FAST, folder=tmp_path / "b", progress=StopAfter(stop)
        )
    _, student = _pair()
    report = distill(teacher, student, TEXTS, encode, settings=FAST, folder=tmp_path / "b")
    got = _weights(student)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert report["held_out"] == whole["held_out"]
    assert json.loads((tmp_path / "b" / "state.json").read_text())["step"] == FAST.steps


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from export.encoder.compress import state

folder = Path(sys.argv[1])
state.load(folder, {})
state.save(folder, {}, state.State(4, {"a": torch.ones(3)}, {}))
replace = Path.replace

def die(self, target):
    if target.name == "state.json":
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)

Path.replace = die
state.save(folder, {}, state.State(8, {"a": torch.zeros(3)}, {}))
"""


def test_a_process_killed_while_it_saves_leaves_the_last_state(tmp_path: Path) -> None:
    """SIGKILL in the second save, when its tensors are in place and `state.json` is not."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "step-000008.safetensors").exists()
    found = state.load(tmp_path, {})
    assert found is not None
    assert found.step == 4
    assert torch.equal(found.tensors["a"], torch.ones(3))
    # The next save leaves nothing of the broken one.
    state.save(tmp_path, {}, state.State(6, {"a": torch.zeros(3)}, {}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.json", "step-000006.safetensors"]


def test_a_finished_run_is_loaded_and_not_repeated(tmp_path: Path) -> None:
    teacher, student = _pair()
    first = distill(teacher, student, TEXTS, encode, settings=FAST, folder=tmp_path)
    expected = _weights(student)
    _, student = _pair()
    second = distill(teacher, student, TEXTS, encode, settings=FAST, folder=tmp_path)
    assert second == first
    assert all(torch.equal(value, expected[name]) for name, value in _weights(student).items())


def test_another_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    teacher, student = _pair()
    distill(teacher, student, TEXTS, encode, settings=FAST, folder=tmp_path)
    other = Distillation(**{**vars(FAST), "steps": 13, "seed": 1})
    _, student = _pair()
    with pytest.raises(UsageError, match="seed 0 instead of 1, steps 12 instead of 13") as refused:
        distill(teacher, student, TEXTS, encode, settings=other, folder=tmp_path)
    assert "delete" in refused.value.hint
    with pytest.raises(UsageError, match="texts_sha256"):
        distill(teacher, student, TEXTS[1:], encode, settings=FAST, folder=tmp_path)


@pytest.mark.parametrize("damage", ["{", "{}", '{"run": {}, "step": "x", "figures": {}}'])
def test_a_damaged_state_is_refused(damage: str, tmp_path: Path) -> None:
    teacher, student = _pair()
    (tmp_path / "state.json").write_text(damage)
    with pytest.raises(UsageError, match="cannot be read"):
        distill(teacher, student, TEXTS, encode, settings=FAST, folder=tmp_path)


def test_damaged_tensors_are_refused(tmp_path: Path) -> None:
    teacher, student = _pair()
    distill(teacher, student, TEXTS, encode, settings=FAST, folder=tmp_path)
    (tmp_path / "step-000012.safetensors").write_bytes(b"not tensors")
    with pytest.raises(UsageError, match="cannot be read"):
        distill(teacher, student, TEXTS, encode, settings=FAST, folder=tmp_path)


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file cannot be made a folder"):
        state.load(tmp_path / "file", {})
    with pytest.raises(UsageError, match="cannot be saved in .*/none"):
        state.save(tmp_path / "none", {}, state.State(1, {"a": torch.ones(1)}, {}))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("steps", 0),
        ("batch", 0),
        ("save_every", 0),
        ("max_words", 1),
        ("max_tokens", 1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("temperature", -1.0),
        ("hidden_weight", -0.1),
    ],
)
def test_bad_settings_are_refused(setting: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{setting} is"):
        Distillation(**{setting: value})


def test_a_student_of_another_width_is_refused(tmp_path: Path) -> None:
    narrow = BertModel(BertConfig(**{**SIZES, "hidden_size": 16}))
    student = Embedding(narrow, MEAN)
    with pytest.raises(ExportError, match="hidden size 16 cannot learn from a teacher of 32"):
        distill(embedder(), student, TEXTS, encode, settings=FAST, folder=tmp_path)


def test_a_run_that_goes_astray_says_so(tmp_path: Path) -> None:
    teacher, student = _pair()
    settings = Distillation(**{**vars(FAST), "learning_rate": 1e30})
    with pytest.raises(ExportError, match="went astray at step"):
        distill(teacher, student, TEXTS, encode, settings=settings, folder=tmp_path)


def test_texts_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(f" line {n} " for n in range(25)), encoding="utf-8")
    assert read_texts(path) == [f"line {n}" for n in range(25)]
    path.write_text("one\ntwo\n")
    with pytest.raises(UsageError, match="2 texts are too few"):
        read_texts(path)
    path.write_text("one\ntwo\n" * 20)  # nothing would be left beside those that are held out
    with pytest.raises(UsageError, match="2 texts are too few"):
        read_texts(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read"):
        read_texts(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_texts(tmp_path / "none.txt")


def test_spans_are_pieces_of_the_texts_and_follow_from_seed_and_step() -> None:
    def spans(step: int, seed: int = 0) -> list[str]:
        return batch(TEXTS, step, size=32, max_words=16, seed=seed)

    assert spans(3) == spans(3)
    assert spans(3) != spans(4)
    assert spans(3) != spans(3, seed=1)
    joined = [" ".join(text.split()) for text in TEXTS]
    assert all(any(span in text for text in joined) for span in spans(5))
    longest = [max(len(span.split()) for span in spans(step)) for step in range(50)]
    assert min(longest) == 4
    assert max(longest) > 12
    assert max(longest) <= 16


def test_held_out_texts_are_not_learned_from() -> None:
    teaching, held_out = split([*TEXTS, *TEXTS], seed=0)
    assert len(held_out) == 10
    assert set(teaching) == {piece for text in set(TEXTS) - set(held_out) for piece in sentences(text)}


def test_sentences() -> None:
    text = "One two three four. No! Is version 3.12 meant here, then?  Five six seven eight"
    assert sentences(text) == [
        "One two three four.",
        "Is version 3.12 meant here, then?",
        "Five six seven eight",
    ]
    assert sentences("Too short. Yes.") == ["Too short. Yes."]


def test_a_recipe_makes_a_smaller_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the recipe to the manifest; and as random models go, it is refused where nothing is forgiven."""
    source = tiny.make(tmp_path / "tiny", "BertForSequenceClassification", num_labels=3)
    recipe = EncoderRecipe(
        source=str(source), name="small", precisions=("fp32",), layers=1, ffn=0.5, distill_steps=2
    )
    monkeypatch.setattr(verify, "SPEED_ROUNDS", 1)
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encoder, "_SMALLER", {"": RawTolerance(1.0, share=0.0, choice=True)})
    forgiving = {"min_cosine": -1.0, "max_abs_diff": 2.0, "batch_invariance": 0.9}
    monkeypatch.setattr(evidence, "_SMALLER", forgiving | {"agreement": 1.1})
    with pytest.raises(NotProven, match="agreement .* < 110.0%"):
        export(recipe, tmp_path / "repository")
    monkeypatch.setattr(evidence, "_SMALLER", forgiving)
    (published,) = export(recipe, tmp_path / "repository").published
    (manifest,) = manifests(tmp_path / "repository", "small")
    notes = manifest.evidence["notes"]["compression"]
    assert published.new
    assert notes["parameters"][1] < notes["parameters"][0]
    assert notes["distilled"]["steps"] == 2
    assert EncoderRecipe.from_dict(manifest.recipe) == recipe


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"layers": 0}, "layers is 0: expected `int` >= 1"),
        ({"heads": 1.5}, "heads is 1.5: expected `float` <= 1.0"),
        ({"distill_steps": 5}, "nothing is to be smaller"),
        ({"layers": 1, "distill_text": "texts.txt"}, "distill_text is given and distill_steps is not"),
    ],
)
def test_a_recipe_that_cannot_work(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        EncoderRecipe.from_dict(values)
