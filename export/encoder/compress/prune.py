"""Structured pruning: layers, attention heads and feed-forward columns leave a model for good.

What leaves is what its output misses least on calibration text (`export.encoder.compress.importance`). The
matrices become smaller, so the model is faster everywhere and needs no sparse kernels. The config says
the same, so `save_pretrained` and `from_pretrained` keep working: transformers itself knows heads that
differ from layer to layer (`config.pruned_heads`), but one number of feed-forward columns for all
layers. Heads are therefore ranked over the whole model, columns layer by layer.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.encoder.compress.architecture import TransformerEncoder
from export.encoder.compress.importance import Feed, least_needed_layers, measure_importance
from shoal.errors import ExportError, UsageError
from shoal.progress import Silent

# Matrix kernels work in blocks of columns: a width between two blocks costs as much as the wider one.
BLOCK = 16


def prune(
    module: torch.nn.Module,
    feeds: Sequence[Feed],
    *,
    layers: int | None = None,
    heads: float | None = None,
    ffn: float | None = None,
    seed: int = 0,
    progress: Silent | None = None,
) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A smaller copy of a model, and what went.

    Args:
        module: has the transformer as `backbone`; gives a dict of tensors [batch, ...].
        feeds: calibration rows, int64 [batch, tokens] or [batch, sequences, tokens] by input name, with an
            `attention_mask`.
        layers: how many are kept.
        heads: fraction of all attention heads that is kept; every layer keeps one at least.
        ffn: fraction of the feed-forward columns that is kept, the same number in every layer; where the
            width is a multiple of 16, so is what is left of it.

    Returns:
        The copy, in evaluation mode, and a report of plain JSON types. Layers are numbered as in `module`,
        an importance is a mean squared change of the output in units of the output's own mean square.

    Raises:
        UsageError: a number is out of range, or there is no calibration text.
        ExportError: the architecture is not known, or its heads cannot be pruned.
    """
    encoder = TransformerEncoder(module.backbone)
    _check(encoder, feeds, layers, heads, ffn)
    small = copy.deepcopy(module).eval()
    encoder = TransformerEncoder(small.backbone)
    kept = list(range(len(encoder.layers)))
    report: dict[str, Any] = {
        "calibration_rows": sum(len(feed["input_ids"]) for feed in feeds),
        "seed": seed,
    }
    if layers is not None:
        gone = least_needed_layers(small, feeds, len(kept) - layers, progress=progress)
        kept = sorted(set(kept) - {layer for layer, _ in gone})
        _keep_layers(encoder, kept)
        report["layers"] = {
            "kept": kept,
            "removed": [{"layer": layer, "change_so_far": change} for layer, change in gone],
        }
    if heads is None and ffn is None:
        return small, report
    importance = measure_importance(small, feeds, seed=seed, progress=progress)
    if ffn is not None:
        report["ffn"] = _prune_columns(encoder, importance.columns, ffn, kept)
    if heads is not None:
        report["heads"] = _prune_heads(encoder, importance.heads, heads, kept)
    return small, report


def _check(
    encoder: TransformerEncoder,
    feeds: Sequence[Feed],
    layers: int | None,
    heads: float | None,
    ffn: float | None,
) -> None:
    if layers is None and heads is None and ffn is None:
        raise UsageError(
            "nothing to prune", hint="say how many layers, or what part of heads or ffn, to keep"
        )
    count = len(encoder.layers)
    if layers is not None and not 1 <= layers <= count:
        raise UsageError(f"{layers} layers cannot be kept", hint=f"the model has {count}: 1 to {count}")
    for name, fraction in (("heads", heads), ("ffn", ffn)):
        if fraction is not None and not 0 < fraction <= 1:
            raise UsageError(f"{name} {fraction:g} is not a part to keep", hint="more than 0, at most 1")
    if heads is not None and heads < 1 and encoder.family.shared_bias:
        raise ExportError(
            f"heads of {encoder.config.model_type} cannot be pruned: its layers share one bias a head",
            hint="prune layers or ffn",
        )
    if not any(feed["input_ids"].size for feed in feeds):
        raise UsageError("pruning needs calibration texts", hint="give one text at least")


def _keep_layers(encoder: TransformerEncoder, kept: list[int]) -> None:
    every = encoder.layers
    encoder.layers = [every[index] for index in kept]
    encoder.config.num_hidden_layers = len(kept)
    before = encoder.config.pruned_heads
    encoder.config.pruned_heads = {new: before[old] for new, old in enumerate(kept) if before.get(old)}


def _prune_columns(
    encoder: TransformerEncoder, importance: list[NDArray[np.float64]], fraction: float, numbers: list[int]
) -> dict[str, Any]:
    width = len(importance[0])
    block = BLOCK if width % BLOCK == 0 else 1
    count = max(1, round(fraction * width / block)) * block
    kept = [sorted(np.argsort(-scores, kind="stable")[:count].tolist()) for scores in importance]
    removed = [sorted(set(range(width)) - set(columns)) for columns in kept]
    if count < width:
        encoder.keep_columns(kept)
    return {
        "kept": count,
        "of": width,
        "layers": {
            str(number): {
                "removed": _ranges(gone),
                "removed_importance": float(scores[gone].sum()),
                "importance": float(scores.sum()),
            }
            for number, scores, gone in zip(numbers, importance, removed, strict=True)
        },
    }


def _prune_heads(
    encoder: TransformerEncoder, importance: list[NDArray[np.float64]], fraction: float, numbers: list[int]
) -> dict[str, Any]:
    names = [encoder.heads(layer) for layer in encoder.layers]
    best = [int(np.argmax(scores)) for scores in importance]
    # The best of each layer stay: transformers cannot represent a layer without heads.
    ranked = sorted(
        ((layer, place) for layer, scores in enumerate(importance) for place in range(len(scores))),
        key=lambda at: (at[1] != best[at[0]], -importance[at[0]][at[1]]),
    )
    count = max(len(names), round(fraction * len(ranked)))
    removed: dict[int, list[int]] = {}
    for layer, place in ranked[count:]:
        removed.setdefault(layer, []).append(names[layer][place])
    if removed:
        encoder.backbone.prune_heads({layer: sorted(heads) for layer, heads in sorted(removed.items())})
    return {
        "kept": count,
        "of": len(ranked),
        "layers": {
            str(numbers[layer]): {
                "removed": sorted(removed.get(layer, [])),
                "importance": {str(n): float(s) for n, s in zip(names[layer], scores, strict=True)},
            }
            for layer, scores in enumerate(importance)
        },
    }


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5": thousands of columns in one line of JSON."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda at: at[1] - at[0])]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
