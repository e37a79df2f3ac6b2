"""What is counted of rows and answers, what an export keeps of it, and how far apart two counts are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from export.checkpoint.source import find_checkpoint
from export.encoder.prepare import prepare
from export.encoder.recipe import EncoderRecipe
from export.encoder.reference import reference_rows, take_reference
from export.run import export
from loadtest import bench_drift
from serving.drift.monitor import watched_in
from serving.drift.statistics import (
    Histogram,
    ReferenceStatistics,
    Vocabulary,
    answer_features,
    distance,
    noise,
)
from shoal import corpus
from shoal.errors import RepositoryError
from shoal.manifest import manifests
from tests import tiny
from tests.conftest import ROOT
from tests.serving.drift.watching import ALERT, GERMAN


def test_wordpiece_tells_words_from_what_goes_on_them(tokenizer: Tokenizer, tokenizer_file: Path) -> None:
    vocabulary = Vocabulary.read(tokenizer_file)
    encoding = tokenizer.encode("the unfathomable shoal ☃")
    continued = sum(token.startswith("##") for token in encoding.tokens)
    own = len(encoding.tokens) - 2
    assert continued > 1
    assert encoding.tokens.count("[UNK]") == 1
    features = vocabulary.features(encoding.ids)
    assert features == {"length": own + 2.0, "pieces": continued / own, "unknown": 1 / own}


def test_byte_level_and_sentencepiece_mark_beginnings(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(tiny.byte_level())
    tokenizer = Tokenizer.from_file(str(path))
    encoding = tokenizer.encode(" shoals of zebrafish")
    begun = sum(token.startswith("Ġ") for token in encoding.tokens)
    own = [token for token in encoding.tokens if token not in ("<s>", "</s>")]
    assert Vocabulary.read(path).features(encoding.ids)["pieces"] == pytest.approx(1 - begun / len(own))
    pieces = [["<unk>", 0.0], ["▁fish", -1.0], ["es", -2.0]]
    added = [{"id": 0, "content": "<unk>", "special": True}]
    path.write_text(
        json.dumps({"model": {"type": "Unigram", "unk_id": 0, "vocab": pieces}, "added_tokens": added})
    )
    features = Vocabulary.read(path).features([1, 2, 1, 0])
    assert features == {"length": 4.0, "pieces": 0.25, "unknown": 0.25}


def test_an_empty_or_foreign_row_is_no_accident(tokenizer_file: Path) -> None:
    vocabulary = Vocabulary.read(tokenizer_file)
    assert vocabulary.features([101, 102]) == {"length": 2.0, "pieces": 0.0, "unknown": 0.0}
    assert vocabulary.features([101, 102], 5000)["length"] == 5000.0
    with pytest.raises(IndexError):
        vocabulary.features([10_000_000])


def test_bins() -> None:
    lengths = Histogram.of("length", [3.0, 4.0, 5.0, 9000.0])
    assert (lengths.counts[0], lengths.counts[1], lengths.counts[-1]) == (1, 2, 1)
    labels = Histogram.of("label", ["good", "bad", "good"])
    assert (labels.names, labels.counts) == (("bad", "good"), (1, 2, 0))
    assert labels.bin("never seen") == 2
    many = Histogram.of("label", [f"class {number % 77}" for number in range(1000)])
    assert len(many.counts) == 12
    assert sum(many.counts) == 1000
    assert noise(12, 100, 512) < 0.2
    scores = Histogram.of("confidence", list(np.linspace(0, 1, 800)))
    assert set(scores.counts) == {100}
    assert Histogram.of("confidence", [1.0] * 9).counts == (0, 9)  # a score that never changes


def test_a_reference_survives_its_manifest() -> None:
    rows = [{"length": 5.0, "label": "a"}, {"length": 6.0, "label": "b"}]
    reference = ReferenceStatistics.of("sample", rows, np.array([0.6, 0.8], np.float32))
    again = ReferenceStatistics.from_dict(json.loads(json.dumps(reference.to_dict())))
    assert again.features == reference.features
    np.testing.assert_allclose(again.centroid, reference.centroid, atol=1e-6)


def test_distance_is_bounded_and_defined_where_bins_are_empty() -> None:
    assert distance([5, 0, 5], [50, 0, 50]) == 0.0
    assert distance([9, 0], [0, 4]) == pytest.approx(1.0)
    chance = np.random.default_rng(0)
    for _ in range(200):
        counts = chance.integers(1, 9, size=7)
        assert 0.0 <= distance(counts, counts * 3) < 1e-6


def test_noise_is_about_what_equal_distributions_show() -> None:
    chance = np.random.default_rng(0)
    share = chance.dirichlet([3.0] * 8)
    draws = [distance(chance.multinomial(100, share), chance.multinomial(512, share)) for _ in range(300)]
    assert np.mean(draws) == pytest.approx(noise(8, 100, 512), rel=0.1)
    assert max(draws) < 0.25 < ALERT


def test_answers_of_embeddings_and_classifiers() -> None:
    vectors = np.array([[3.0, 4.0], [-3.0, -4.0]], np.float32)
    features = answer_features({"embedding": vectors}, np.array([0.6, 0.8], np.float32))
    assert [row["similarity"] for row in features] == pytest.approx([1.0, -1.0])
    labels = np.array([[b"good", b"bad"]], object)
    assert answer_features({"label": labels, "score": np.array([[0.75, 0.25]], np.float32)}) == [
        {"label": "good", "confidence": 0.75}
    ]


# What the export keeps.


def test_every_version_has_its_reference(repository: Path) -> None:
    for manifest in manifests(repository):
        assert manifest.reference is not None
        reference = ReferenceStatistics.from_dict(manifest.reference)
        assert reference.features.keys() == {"length", "pieces", "unknown", "similarity"}
        assert all(sum(histogram.counts) == 512 for histogram in reference.features.values())
        assert reference.centroid is not None
        assert reference.centroid.shape == (384,)
        assert "text" not in json.dumps(manifest.reference).replace('"texts": "sample"', "")


def test_a_repository_without_references_says_so(own_repository: Path) -> None:
    for path in own_repository.glob("*/*/manifest.json"):
        values = json.loads(path.read_text())
        del values["reference"]  # as older exports wrote it
        path.write_text(json.dumps(values))
    with pytest.raises(RepositoryError, match="no version with reference statistics"):
        watched_in(own_repository)


def test_a_classifier_keeps_its_class_balance_of_the_users_own_texts(tmp_path: Path) -> None:
    names = {0: "bad", 1: "fair", 2: "good"}
    tiny.make(tmp_path / "mood", "BertForSequenceClassification", num_labels=3, id2label=names)
    labelled = tmp_path / "eval.csv"
    lines = [f'"{text.replace(chr(34), "")}",good' for text in corpus.texts(40, seed=9)]
    labelled.write_text("\n".join(["text,label", *lines]))
    recipe = EncoderRecipe(str(tmp_path / "mood"), precisions=("fp32",), eval_data=labelled)
    export(recipe, tmp_path / "repository")
    (manifest,) = manifests(tmp_path / "repository")
    assert manifest.reference is not None
    reference = ReferenceStatistics.from_dict(manifest.reference)
    assert reference.texts == "eval_data"
    assert reference.features.keys() == {"length", "pieces", "unknown", "label", "confidence"}
    assert set(reference.features["label"].names) <= set(names.values())
    assert sum(reference.features["label"].counts) == 40


def test_of_rows_that_make_several_sequences_the_first_is_taken(tmp_path: Path) -> None:
    names = ["contradiction", "neutral", "entailment"]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    tiny.make(tmp_path / "nli", "BertForSequenceClassification", num_labels=3, **labels)
    recipe = EncoderRecipe(str(tmp_path / "nli"), task="zero-shot-classification")
    subject = prepare(recipe, find_checkpoint(recipe.source), tmp_path).subject
    rows = reference_rows(subject, [])[:20]
    kept = take_reference(subject, subject.reference, rows, labelled=False)
    assert kept is not None
    assert kept["features"].keys() == {"length", "pieces", "unknown"}
    assert sum(kept["features"]["length"]["counts"]) == 20


# The figures of docs/drift.md.


def test_the_table_of_distances(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From texts to the last line, compared with scipy's distances of what transformers tokenizes."""
    source = tiny.make(tmp_path / "vectors", "BertModel")
    monkeypatch.setattr(bench_drift, "DRAWS", 5)
    monkeypatch.setattr(bench_drift, "POOL", 1000)
    monkeypatch.setattr(sys, "argv", ["bench", "--source", str(source)])
    bench_drift.main()
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    lines = {(line["rows"], line["count"]): line for line in printed["lines"]}
    tokenizer = AutoTokenizer.from_pretrained(source)

    def counts(texts: list[str]) -> NDArray:
        lengths = [len(ids) for ids in tokenizer(texts, truncation=True).input_ids]
        edges = [0, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 10**6]
        return np.histogram(lengths, edges)[0]

    expected = jensenshannon(counts(GERMAN), counts(corpus.texts(512, seed=4)), base=2)
    assert lines["German", 125]["distances"]["length"] == pytest.approx([expected] * 3)
    same, whole = (lines["the same", count]["distances"] for count in (100, 1000))
    # All rows of the pool at once: no draw differs from another.
    assert all(least == pytest.approx(largest) for _, least, largest in whole.values())
    mean, least, largest = same["length"]
    assert whole["length"][0] < mean and least < mean < largest
    expected = jensenshannon(counts(corpus.texts(1000, seed=77)), counts(corpus.texts(512, seed=4)), base=2)
    assert whole["length"][0] == pytest.approx(expected)
    mixed = [lines[rows, 100]["distances"]["pieces"][0] for rows in ("one in 10 German", "one in 5 German")]
    assert same["pieces"][0] < mixed[0] < mixed[1] < lines["German", 125]["distances"]["pieces"][0]
    for entry in printed["noise"]:
        assert entry["mean"] == pytest.approx(entry["predicted"], rel=0.05)


def test_the_table_says_what_it_cannot_do(tmp_path: Path) -> None:
    source = tiny.make(tmp_path / "squad", "BertForQuestionAnswering")
    command = [sys.executable, "-m", "loadtest.bench_drift", "--source", str(source)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: " in done.stderr and "reads more than one text" in done.stderr
