"""What evidence says of good and of bad versions, and labelled data, which are a part of it."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path

import onnx
import pytest
import torch

from export import run
from export.evidence import Verified, evidence_table
from export.quantization import int8 as quantize
from export.text2text import verify
from export.text2text.checkpoint import find_encoder_decoder, load_original, search_of
from export.text2text.labelled import chrf, read_pairs
from export.text2text.recipe import Text2TextRecipe
from export.text2text.to_onnx import to_onnx
from serving.models.text2text import Text2TextSettings
from shoal.cli.compare import compare
from shoal.errors import NotProven, UsageError
from shoal.manifest import manifests
from shoal.progress import Silent
from tests.export.raw.served import AGREED
from tests.export.text2text.originals import TAUGHT, original


def test_evidence(repository: Path) -> None:
    (manifest,) = manifests(repository, "bart-beams")
    evidence = manifest.evidence
    assert evidence["proven"]
    assert evidence["greedy_match"] == evidence["answer_match"] == evidence["batch_invariance"] == 1
    assert 0 < evidence["logits_max_abs_diff"] < 1e-4
    assert 0 < evidence["encoder_max_abs_diff"] < 1e-4
    assert len({tokens for tokens, _ in evidence["cases"]}) > 5
    folder = repository / "bart-beams" / "1"
    assert evidence["size_bytes"] == sum(path.stat().st_size for path in folder.glob("*.onnx"))
    assert set(manifest.files) == {
        f"bart-beams/1/{name}" for name in ("encoder.onnx", "decoder.onnx", "tokenizer.json", "model.py")
    }
    assert manifest.onnx["encoder"]["inputs"][0]["name"] == "input_ids"


def test_verify_published(repository: Path) -> None:
    outcome = run.verify("marian-greedy", repository)
    (evidence,) = outcome.evidence
    assert (outcome.task, evidence.failures) == ("text2text-generation", [])
    assert evidence_table([evidence], "marian").row_count == 1


@pytest.mark.parametrize("model", TAUGHT)
def test_evidence_of_int8(writers: Path, repository: Path, model: str) -> None:
    exact, small = (manifest.evidence for manifest in manifests(repository, model))
    assert small["proven"]
    assert small["agreement"] >= 0.97
    assert small["batch_invariance"] >= 0.9
    assert exact["logits_max_abs_diff"] < 1e-4 < small["logits_max_abs_diff"] < 0.15
    assert small["size_bytes"] < 0.6 * exact["size_bytes"]
    for graph in ("encoder", "decoder"):
        nodes = onnx.load(repository / model / "2" / f"{graph}.onnx").graph.node
        weights = {node.input[0] for node in nodes if node.op_type == "Gather"}
        assert "int8/tokens" in weights
        assert sum(node.op_type == "MatMulIntegerToFloat" for node in nodes) >= 8


def test_verify_scores_labelled_data(writers: Path, repository: Path, labelled: Path) -> None:
    outcome = run.verify("t5-taught", repository, eval_data=labelled)
    pairs = read_pairs(labelled)
    texts, targets = zip(*pairs, strict=True)
    expected = chrf([entry.text for entry in original(writers / "t5-taught", list(texts), ends=[2])], targets)
    assert 80 < expected < 100
    for evidence, manifest in zip(outcome.evidence, manifests(repository, "t5-taught"), strict=True):
        assert (evidence.precision, evidence.failures) == (manifest.precision, [])
        assert evidence.metric == manifest.evidence["metric"] == "chrF"
        assert evidence.reference_score == manifest.evidence["reference_score"] == pytest.approx(expected)
        assert evidence.score == pytest.approx(expected, abs=1)
        worse = dataclasses.replace(evidence, score=expected - 1.2)
        limit = {"fp32": "0.5", "int8": "1"}[evidence.precision]
        assert worse.failures == [f"chrF loses 1.20 > {limit}"]
    made = evidence_table(outcome.evidence, "t5")
    (column,) = [column for column in made.columns if column.header == "chrF"]
    assert all(str(cell).endswith(f" of {expected:.2f}") for cell in column.cells)


def test_a_bad_int8_is_refused(writers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "WEIGHT_MAX", 1)
    source = str(writers / "marian-taught")
    outcome = run.export(Text2TextRecipe(source, name="rough"), tmp_path / "repository")
    exact, rough = outcome.evidence
    assert not exact.failures
    assert any(failure.startswith("tokens agree 0.") for failure in rough.failures)
    assert [version.precision for version in outcome.published] == ["fp32"]


def test_labelled_files_are_read(tmp_path: Path) -> None:
    pairs = [(f'A "text", {number}', f"un texte\tnº {number}\n") for number in range(12)]
    rows = [("text", "target"), *pairs]
    for name, dialect in {"pairs.csv": "excel", "pairs.tsv": "excel-tab"}.items():
        with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, dialect).writerows(rows)
    lines = [json.dumps({"text": a, "target": b, "id": 7}, ensure_ascii=False) for a, b in pairs]
    (tmp_path / "pairs.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    for name in ("pairs.csv", "pairs.tsv", "pairs.jsonl"):
        assert read_pairs(tmp_path / name) == pairs


GOOD = "a,b\n" * 12


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.csv", "a,b\n", "line 1: it names other columns than text,target"),
        ("x.csv", "", "line 1: it names other columns than text,target"),
        ("x.csv", f"text,target\n{GOOD}a,b,c\n", "line 14: it has 3 columns, not 2"),
        ("x.csv", f'text,target\n"a\nb",c\n\n{GOOD}a,\n', "line 17: its target is empty"),
        ("x.csv", f'text,target\n{GOOD}a,"b\n{GOOD}', "line 14: it is not CSV: unexpected end of data"),
        ("x.tsv", f"text,target\n{GOOD}", "line 1: it names other columns than text,target"),
        ("x.csv", "text,target\na,b\n", "x.csv has 1 pairs, at least 10 are needed"),
        ("x.csv", b"text,target\na,b\ncaf\xe9,b\n", "line 3: it is not UTF-8"),
        ("x.jsonl", '{"text": "a", "target": "b"}\n\n{"text": "a"', "line 3: it is not JSON"),
        ("x.jsonl", '{"text": "a", "target": 7}', "line 1: it is not an object with the texts text and"),
        ("x.jsonl", '["a", "b"]', "line 1: it is not an object with the texts text and target"),
        ("x.jsonl", '{"text": " ", "target": "b"}', "line 1: its text is empty"),
        (".", "", "cannot be read: Is a directory"),
        ("nowhere.csv", None, "cannot be read: No such file or directory"),
    ],
)
def test_a_bad_labelled_file_is_told_before_anything_is_made(
    writers: Path, tmp_path: Path, name: str, content: str | bytes | None, said: str
) -> None:
    if content:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    elif name == "x.csv":
        (tmp_path / name).touch()
    recipe = Text2TextRecipe(str(writers / "t5-taught"), name="x", eval_data=tmp_path / name)
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        run.export(recipe, tmp_path / "repository")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "repository").exists()


def test_other_weights_are_not_proven(writers: Path, tmp_path: Path) -> None:
    """Evidence tells a graph of one model from another model, in each of its figures."""
    source = writers / "bart-beams"
    model = load_original(find_encoder_decoder(str(source)))
    graphs = to_onnx(model, tmp_path)
    shutil.copyfile(source / "tokenizer.json", tmp_path / "tokenizer.json")
    settings = Text2TextSettings(search_of(model, Text2TextRecipe(str(source))), 128, 1000)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    evidence = verify.measure(model, {"fp32": graphs}, settings, progress=Silent())["fp32"]
    failures = " ".join(evidence.failures)
    for said in (
        "encoder difference",
        "encoder cosine",
        "logits difference",
        "tokens",
        "greedy answers",
        "answers",
    ):
        assert said in failures
    with pytest.raises(NotProven, match="fp32 is not published: encoder difference"):
        Verified(graphs, dataclasses.replace(evidence, raw=AGREED))


def test_two_versions_are_compared_by_what_they_write(repository: Path) -> None:
    (manifest,) = manifests(repository, "t5-greedy")
    answers = compare(repository, manifest, manifest)["answers"]
    assert answers["same"] == 1
    assert len(answers["tokens"]) == 3
