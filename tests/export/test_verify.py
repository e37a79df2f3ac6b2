"""Without evidence within tolerance there is no `Verified`, so nothing to publish."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from export.encoder.evidence import EncoderEvidence
from export.evidence import Verified, verified
from export.exported import Exported
from export.outcome import Outcome
from export.raw.evidence import RawEvidence, RawTolerance
from shoal.errors import NotProven

RAW = RawEvidence(
    original="sentence-transformers 5.7.0: SentenceTransformer.encode",
    inputs=100,
    agreement=1.0,
    largest=0.1,
    tokens=1.0,
    failed=0,
    refused=0,
    worst=None,
    tolerance=RawTolerance(0.2, share=0.97),
)
GOOD = EncoderEvidence(
    task="sentence-similarity",
    precision="int8",
    size_bytes=1,
    max_abs_diff=0.01,
    min_cosine=0.99,
    mean_cosine=0.999,
    agreement=None,
    batch_invariance=1.0,
    latency_ms=1.0,
    throughput=1.0,
    metric="spearman",
    score=86.5,
    reference_score=86.7,
    raw=RAW,
)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"min_cosine": 0.98}, "cosine 0.98000 < 0.985"),
        ({"min_cosine": float("nan")}, "cosine nan"),
        ({"max_abs_diff": 0.2}, "difference 0.2 > 0.1"),
        ({"batch_invariance": 0.99}, "batch invariance 0.99000 < 0.9999"),
        ({"score": 86.1}, "spearman loses 0.60 > 0.5"),
        ({"task": "text-classification", "agreement": 0.95}, "agreement 95.0% < 97.0%"),
        ({"precision": "fp32"}, "cosine 0.99000 < 0.9999; difference 0.01 > 0.0001"),
        ({"raw": None}, "no answer to a raw input was compared"),
        ({"raw": dataclasses.replace(RAW, agreement=0.9)}, "raw inputs agree 90.0% < 97%"),
        ({"raw": dataclasses.replace(RAW, agreement=float("nan"))}, "raw inputs agree nan% < 97%"),
        ({"raw": dataclasses.replace(RAW, tokens=0.99)}, "token ids agree on 99.0% of the raw inputs"),
        ({"raw": dataclasses.replace(RAW, refused=20)}, "20 raw inputs are refused"),
        ({"raw": dataclasses.replace(RAW, inputs=0)}, "answers none of the raw inputs"),
    ],
)
def test_refuses(repository: Path, changes: dict[str, Any], said: str) -> None:
    exported = Exported.read(repository / "minilm_encoder" / "1" / "model.onnx")
    assert Verified(exported, GOOD).evidence is GOOD
    with pytest.raises(NotProven, match=said.replace("|", r"\|")):
        Verified(exported, dataclasses.replace(GOOD, **changes))


def test_both_precisions_of_the_default_model_are_proven(exported: tuple[Path, Outcome]) -> None:
    evidence = {entry.precision: entry for entry in exported[1].evidence}
    assert list(evidence) == ["fp32", "int8"]
    assert evidence["fp32"].min_cosine > 0.9999
    assert evidence["int8"].min_cosine > 0.985
    for entry in evidence.values():
        assert entry.batch_invariance > 0.9999
        assert entry.raw is not None
        assert entry.raw.agreement == entry.raw.tokens == 1.0
        assert entry.raw.inputs > 15
        assert not entry.failures
    assert evidence["int8"].size_bytes < evidence["fp32"].size_bytes


def test_nothing_is_published_of_a_wrong_graph(repository: Path) -> None:
    """INT8's tolerance is wide enough for a graph that is a little wrong before it is quantized."""
    graph = Exported.read(repository / "minilm_encoder" / "1" / "model.onnx")
    wrong = dataclasses.replace(GOOD, precision="fp32", max_abs_diff=0.01)
    assert verified({"int8": graph}, {"int8": GOOD})
    with pytest.raises(NotProven, match="fp32: .*difference 0.01 > 0.0001; int8: made from the same graph"):
        verified({"fp32": graph, "int8": graph}, {"fp32": wrong, "int8": GOOD})
