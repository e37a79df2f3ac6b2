"""Evidence from the raw input: whatever goes wrong between a user's input and the answer, it is seen."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ImageOps
from transformers import PreTrainedTokenizerFast

from export import run
from export.checkpoint import tokenizer
from export.encoder import prepare
from export.encoder.recipe import EncoderRecipe
from export.encoder.tasks import heads
from export.originals.original import Failed
from export.raw import agreement, cases
from export.raw.evidence import RawEvidence, RawTolerance
from export.raw.measure import OriginalAnswers, compare
from export.raw.pictures import hard_pictures
from export.raw.texts import hard_texts, long_text, pairs
from serving.models import layouts
from shoal.errors import NotProven
from tests import tiny
from tests.export.raw.served import edit, evidence, served


def classifier(folder: Path, **config: Any) -> Path:
    return tiny.make(folder, "BertForSequenceClassification", **{"num_labels": 3, **config})


def test_originals_share_nothing_with_what_is_served() -> None:
    """Nor with the rest of the export: another reading of the same files must not come in by a side door."""
    script = (
        "import sys, export.originals.sentences, export.originals.pipelines, export.originals.texts\n"
        "ours = [m for m in sys.modules if m.split('.')[0] in ('export', 'serving', 'clients', 'shoal')]\n"
        "print([m for m in ours if m != 'export' and not m.startswith('export.originals')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_note_excuses_nothing_that_was_asked() -> None:
    asked = RawEvidence("transformers: x", 0, 0.0, 0.0, None, 3, 0, None, RawTolerance(1e-3), ("a note",))
    assert "answers none of the raw inputs" in asked.failures[0]
    assert dataclasses.replace(asked, failed=0).failures == []  # nobody was there to be asked
    assert dataclasses.replace(asked, failed=0, notes=()).failures


def test_the_inputs_are_the_same_each_time_and_hurt() -> None:
    texts = hard_texts()
    assert len(set(texts)) == len(texts) > 150
    assert all(text.strip() and text.encode() for text in texts)
    assert max(map(len, texts)) == 5000
    assert any("\ud83d" not in text and ord(max(text)) > 0xFFFF for text in texts)
    assert {"a", "\u200b", "I"} <= set(texts)
    assert len(long_text(300).split()) == 300
    assert len(pairs()) > 80 and len(hard_pictures()) > 35
    for task, make in cases._CASES.items():
        rows = make(cases.Limits(64, mask="[MASK]", prompts=("query",)))
        assert len(rows) >= 30, task


# By name: what is broken between a user and the network, and what the evidence says of it.
FAULTS: dict[str, tuple[Callable[[Path], None], Callable[[pytest.MonkeyPatch, Path], None], str]] = {
    "the folder's own tokenizer.json": (
        lambda f: edit(f / "tokenizer_config.json", tokenizer_class="BertTokenizer", do_lower_case=False),
        lambda patch, f: patch.setattr(
            prepare,
            "write_tokenizer",
            lambda library, work: Path(shutil.copy(f / "tokenizer.json", work)),
        ),
        r"token ids agree on .*: for .* the original gives .* this version .*\(normalizer, ",
    ),
    "the wrong side is cut": (
        lambda f: edit(f / "tokenizer_config.json", truncation_side="left", model_max_length=16),
        lambda patch, f: patch.setattr(prepare, "served_settings", lambda opened: {}),
        r"token ids agree on .*\(truncation \(model_max_length, truncation_side\)",
    ),
    "the wrong activation": (
        lambda f: edit(f / "config.json", problem_type="multi_label_classification"),
        lambda patch, f: patch.setattr(
            heads, "_activated", lambda logits, activation: torch.softmax(logits, -1)
        ),
        r"raw inputs agree 0.0% < 100%: for .* the original gives LABEL_",
    ),
    "texts are stripped": (
        lambda f: None,
        lambda patch, f: patch.setattr(
            layouts.OneText,
            "prompted",
            lambda self, texts, name: ([[text[:40] for text in row] for row in texts[name]], []),
        ),
        r"token ids agree on",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_on_the_way_is_refused_with_the_input_that_shows_it(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, breaks, said = FAULTS[fault]
    folder = classifier(tmp_path / "checkpoint")
    change(folder)
    with served(folder, tmp_path / "sound") as (source, caller):
        assert evidence(source, caller).failures == []
    with monkeypatch.context() as patch:
        breaks(patch, folder)
        with served(folder, tmp_path / "broken") as (source, caller):
            found = evidence(source, caller)
    (failure,) = found.failures
    assert re.search(said, failure), failure
    json.dumps(found.to_dict())


@pytest.mark.parametrize("recipe", [{"precisions": ["int8"]}, {"precisions": ["fp32"], "layers": 1}])
def test_what_a_coarse_or_smaller_version_may_lose_hides_no_fault(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first label stays the same under another activation: the whole model's exact graph shows it."""
    folder = classifier(tmp_path / "checkpoint", problem_type="multi_label_classification")
    monkeypatch.setattr(heads, "_activated", lambda logits, activation: torch.softmax(logits, -1))
    settings = EncoderRecipe.from_dict({"source": str(folder), "name": "m", **recipe})
    with pytest.raises(NotProven, match=r"the model is read wrongly \(raw inputs agree 0.0% < 100%"):
        run.export(settings, tmp_path / "repository")
    assert not list((tmp_path / "repository").glob("[!.]*"))


def test_a_picture_that_lies_on_its_side_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.make_vit(tmp_path / "checkpoint", num_labels=3)
    with served(folder, tmp_path / "sound") as (source, caller):
        sound = evidence(source, caller)
        assert sound.failures == [] and sound.inputs == len(hard_pictures())
        turned = ImageOps.exif_transpose

        def for_the_library_alone(image: Any, **options: Any) -> Any:
            ours = "serving" in sys._getframe(1).f_globals["__name__"]
            return image if ours else turned(image, **options)

        monkeypatch.setattr(ImageOps, "exif_transpose", for_the_library_alone)
        found = evidence(source, caller)
    assert "a file of" in found.failures[0] and 0.7 < found.agreement < 1


def test_what_the_original_does_not_answer_is_not_compared() -> None:
    class Silent:
        def infer(self, name: str, inputs: Any) -> Any:
            return {"score": np.array([[0.5]], np.float32)}

    rows = [{"query": ["a"], "text": [str(n)]} for n in range(4)]
    answers = [Failed(ValueError("no such token")), 0.5, 0.5004, 0.6]
    reference = OriginalAnswers("a library", rows, answers, agreement.numbers)
    found = compare(reference, Silent(), "m", RawTolerance(1e-3))
    assert (found.inputs, found.failed, found.refused) == (3, 1, 0)
    assert found.agreement == pytest.approx(2 / 3)
    assert found.worst is not None and "text: '3'" in found.worst["input"]
    nothing = compare(
        OriginalAnswers("a library", rows[:1], answers[:1], agreement.numbers), Silent(), "m", RawTolerance(1)
    )
    assert nothing.failures == ["a library answers none of the raw inputs: no such token"]


APART: list[tuple[Callable[..., agreement.Apart], Any, dict[str, list[Any]], float, bool]] = [
    (agreement.vectors, np.array([3.0, 4.0]), {"embedding": [3.0, 4.5]}, 0.1, True),
    (agreement.vectors, np.array([3.0, 4.0]), {"embedding": [3.0]}, float("inf"), False),
    (agreement.numbers, 10.0, {"score": [11.0]}, 0.1, True),
    (agreement.numbers, float("nan"), {"score": [1.0]}, float("inf"), True),
    (agreement.labels, {"a": 0.7, "b": 0.3}, {"label": ["a", "b"], "score": [0.7, 0.3]}, 0.0, True),
    (agreement.labels, {"a": 0.7, "b": 0.3}, {"label": ["b", "a"], "score": [0.7, 0.3]}, 0.4, False),
    (agreement.labels, {"a": 0.5, "b": 0.5}, {"label": ["b", "a"], "score": [0.5, 0.5]}, 0.0, True),
    # The labels that we know are right, and one above them is left out.
    (agreement.labels, {"a": 0.6, "b": 0.4}, {"label": ["b"], "score": [0.4]}, 0.2, False),
    (agreement.labels, {"a": 1.0}, {"label": ["x"], "score": [1.0]}, float("inf"), False),
    (agreement.masked, [("x", 0.6), ("y", 0.4)], {"label": ["x", "y"], "score": [0.6, 0.3]}, 0.1, True),
    (agreement.masked, [("x", 0.6), ("y", 0.4)], {"label": ["y", "x"], "score": [0.6, 0.4]}, 0.0, False),
    (
        agreement.entities,
        [("PER", 0, 3, 0.9)],
        {"label": ["PER", ""], "start": [0, -1], "end": [3, -1], "score": [0.8, 0.0]},
        0.1,
        True,
    ),
    (
        agreement.entities,
        [("PER", 0, 3, 0.9)],
        {"label": ["PER"], "start": [0], "end": [4], "score": [0.9]},
        float("inf"),
        False,
    ),
    (agreement.texts, "Hello there", {"text": ["Hello there"]}, 0.0, True),
    (agreement.texts, "Hello there", {"text": ["Hello world"]}, 5 / 11, True),
    (agreement.texts, "Hello", {"text": ["Jello"]}, 1.0, False),
]


@pytest.mark.parametrize(("measure", "original", "got", "distance", "chosen"), APART)
def test_how_far_two_answers_are_apart(
    measure: Any, original: Any, got: Any, distance: float, chosen: bool
) -> None:
    apart = measure(original, got)
    assert apart.distance == pytest.approx(distance)
    assert apart.chosen is chosen


def test_no_tokenizer_is_changed_by_being_asked(tmp_path: Path) -> None:
    """The library's tokenizer keeps how it last padded and truncated; ours must not get that."""
    folder = classifier(tmp_path / "checkpoint")
    library = PreTrainedTokenizerFast.from_pretrained(folder)
    library("fish", truncation=True, max_length=3, padding="max_length")
    path = tokenizer.write_tokenizer(library, tmp_path)
    content = json.loads(path.read_text())
    assert content["truncation"] is None and content["padding"] is None
