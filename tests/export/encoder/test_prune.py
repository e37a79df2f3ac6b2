"""Pruning on tiny encoders: what leaves, and what stays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2Model,
)

from export.encoder.compress.architecture import TransformerEncoder
from export.encoder.compress.distill import distill
from export.encoder.compress.importance import least_needed_layers, measure_importance
from export.encoder.compress.prune import prune
from export.encoder.optimize import fuse_around_matmuls
from export.encoder.tasks.heads import Classification, Embedding
from export.encoder.to_onnx import to_onnx
from shoal.errors import ExportError, UsageError
from tests.export.encoder.small import FAST, FEEDS, KINDS, MEAN, SIZES, TEXTS, embedder, encode

WITH_HEADS = sorted(set(KINDS) - {"mpnet"})


def _run(module: torch.nn.Module, feed: Mapping[str, NDArray[np.int64]] = FEEDS[0]) -> torch.Tensor:
    with torch.no_grad():
        (output,) = module(**{name: torch.from_numpy(array) for name, array in feed.items()}).values()
    return output


def _size(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_matrices_shrink_and_the_config_says_so(kind: str, tmp_path: Path) -> None:
    module = embedder(kind)
    before = _run(module).clone()
    small, report = prune(module, FEEDS, layers=2, heads=0.6 if kind in WITH_HEADS else None, ffn=0.5)
    encoder = TransformerEncoder(small.backbone)
    assert len(encoder.layers) == len(report["layers"]["kept"]) == 2
    assert [encoder.down(layer).in_features for layer in encoder.layers] == [32, 32]
    if kind in WITH_HEADS:
        kept = [encoder.context(layer).in_features // 8 for layer in encoder.layers]
        assert sum(kept) == report["heads"]["kept"] == 5
        assert kept == [len(encoder.heads(layer)) for layer in encoder.layers]
    assert _size(small) < _size(module)
    small.backbone.save_pretrained(tmp_path)
    again = Embedding(AutoModel.from_pretrained(tmp_path), MEAN).eval()
    assert torch.equal(_run(again), _run(small))
    # The original is untouched.
    assert torch.equal(_run(module), before)
    assert module.backbone.config.num_hidden_layers == 3


def test_a_pruned_checkpoint_can_be_pruned_again(tmp_path: Path) -> None:
    once, _ = prune(embedder(), FEEDS, layers=2, heads=0.5)
    twice, report = prune(once, FEEDS, layers=1, heads=0.5)
    (layer,) = TransformerEncoder(twice.backbone).layers
    left = TransformerEncoder(twice.backbone).heads(layer)
    assert len(left) == report["heads"]["kept"]
    # Heads are numbered as in the checkpoint before any pruning, so that it can be loaded.
    encoder = TransformerEncoder(once.backbone)
    assert set(left) <= set(encoder.heads(encoder.layers[report["layers"]["kept"][0]]))
    twice.backbone.save_pretrained(tmp_path)
    again = Embedding(AutoModel.from_pretrained(tmp_path), MEAN).eval()
    assert torch.equal(_run(again), _run(twice))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_keeping_everything_changes_nothing(kind: str) -> None:
    module = embedder(kind)
    same, report = prune(module, FEEDS, layers=3, heads=1.0, ffn=1.0)
    assert torch.equal(_run(same), _run(module))
    assert report["layers"]["removed"] == []
    assert all(layer["removed"] == [] for layer in report["heads"]["layers"].values())
    assert all(layer["removed"] == "" for layer in report["ffn"]["layers"].values())


@pytest.mark.parametrize("kind", WITH_HEADS)
def test_heads_and_columns_that_nobody_reads_leave_first(kind: str) -> None:
    module = embedder(kind)
    encoder = TransformerEncoder(module.backbone)
    read = {0: 2, 1: 0, 2: 3}
    with torch.no_grad():
        for number, layer in enumerate(encoder.layers):
            head = read[number]
            context, down = encoder.context(layer).weight, encoder.down(layer).weight
            context[:, : 8 * head] = 0
            context[:, 8 * (head + 1) :] = 0
            down[:, ::2] = 0
    small, report = prune(module, FEEDS, heads=3 / 12, ffn=0.5)
    left = [
        TransformerEncoder(small.backbone).heads(layer) for layer in TransformerEncoder(small.backbone).layers
    ]
    assert left == [[read[0]], [read[1]], [read[2]]]
    for number, layer in report["heads"]["layers"].items():
        assert [h for h, score in layer["importance"].items() if score > 0] == [str(read[int(number)])]
    assert all(layer["removed_importance"] == 0 for layer in report["ffn"]["layers"].values())
    assert all(layer["removed"].startswith("0,2,4,6,") for layer in report["ffn"]["layers"].values())
    torch.testing.assert_close(_run(small), _run(module), atol=1e-6, rtol=0)


def test_the_layer_that_does_nothing_leaves_first() -> None:
    module = embedder()
    layer = module.backbone.encoder.layer[1]
    with torch.no_grad():
        for linear in (layer.attention.output.dense, layer.output.dense):
            linear.weight.zero_()
            linear.bias.zero_()
    assert least_needed_layers(module, FEEDS, 1)[0][0] == 1
    small, report = prune(module, FEEDS, layers=2)
    assert report["layers"]["kept"] == [0, 2]
    torch.testing.assert_close(_run(small), _run(module), atol=1e-5, rtol=0)


def test_importance_is_the_change_of_the_output() -> None:
    """Near 1 a gate is as important as the output moves when it closes by a hundredth, times 100 squared."""
    module = embedder()
    many = FEEDS * 16  # the same texts again, in other random directions
    scores = np.concatenate(measure_importance(module, many).heads)
    expected = [_run(module, feed) for feed in FEEDS]
    squares = sum(float(output.square().sum()) for output in expected)
    measured = []
    encoder = TransformerEncoder(module.backbone)
    for layer in encoder.layers:
        weight = encoder.context(layer).weight
        for head in range(4):
            columns = slice(8 * head, 8 * head + 8)
            kept = weight[:, columns].detach().clone()
            with torch.no_grad():
                weight[:, columns] = kept * (1 - 1e-2)
                pairs = zip([_run(module, feed) for feed in FEEDS], expected, strict=True)
                measured.append(sum(float((a - b).square().sum()) for a, b in pairs) / squares * 1e4)
                weight[:, columns] = kept
    assert np.corrcoef(scores, measured)[0, 1] > 0.99
    assert scores.sum() == pytest.approx(sum(measured), rel=0.1)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_a_pruned_model_goes_through_onnx(kind: str, tmp_path: Path) -> None:
    small, _ = prune(embedder(kind), FEEDS, layers=2, heads=0.6, ffn=0.5)
    plain = to_onnx(small, tmp_path / "plain.onnx", FEEDS[0])
    fused = fuse_around_matmuls(plain, tmp_path / "fused.onnx", small.config, ())
    kinds = [node.op_type for node in onnx.load(fused.path).graph.node]
    assert kinds.count("MultiHeadAttention") == 2
    got = onnxruntime.InferenceSession(str(fused.path)).run(None, FEEDS[0])[0]
    np.testing.assert_allclose(got, _run(small).numpy(), atol=1e-5)


def test_other_heads_keep_their_output() -> None:
    torch.manual_seed(0)
    classifier = Classification(BertForSequenceClassification(BertConfig(**SIZES, num_labels=3)), "softmax")
    small, _ = prune(classifier.eval(), FEEDS, layers=2, heads=0.5, ffn=0.5)
    assert _run(small).shape == (8, 3)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "nothing to prune"),
        ({"layers": 0}, "0 layers cannot be kept"),
        ({"layers": 4}, "4 layers cannot be kept"),
        ({"heads": 0.0}, "heads 0 is not a part to keep"),
        ({"ffn": 1.5}, "ffn 1.5 is not a part to keep"),
        ({"ffn": float("nan")}, "ffn nan is not a part to keep"),
    ],
)
def test_bad_fractions_are_refused(asked: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prune(embedder(), FEEDS, **asked)


def test_pruning_needs_text() -> None:
    with pytest.raises(UsageError, match="needs calibration texts"):
        prune(embedder(), [], layers=2)


def test_what_cannot_be_pruned_is_refused_by_name() -> None:
    with pytest.raises(ExportError, match="heads of mpnet cannot be pruned"):
        prune(embedder("mpnet"), FEEDS, heads=0.5)
    config = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1, n_positions=8)
    decoder = Embedding(GPT2Model(config), MEAN)
    with pytest.raises(ExportError, match="architecture gpt2 cannot be made smaller"):
        prune(decoder, FEEDS, layers=1)
    with pytest.raises(ExportError, match="architecture gpt2 cannot be made smaller"):
        distill(decoder, decoder, TEXTS, encode, settings=FAST, folder=Path("unused"))
