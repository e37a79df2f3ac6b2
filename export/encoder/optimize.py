"""Fuse an exported transformer into the operators that ONNX Runtime runs fast, on a CPU and on a GPU.

The fusions are ONNX Runtime's own offline ones (`onnxruntime.transformers.optimizer`). None of them
depends on the machine they are made on, so that one file serves everywhere.
"""

from __future__ import annotations

import copy
import io
import logging
import shutil
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.transformers import optimizer
from onnxruntime.transformers.fusion_options import FusionOptions

from export.encoder.tasks.task import Feed, Outputs
from export.encoder.verify import open_session
from export.exported import Exported

_LAST = 2e-3  # of what is compared: sums in another order
_LOGGERS = (
    *("onnxruntime.transformers", "fusion_base", "fusion_attention"),
    *("fusion_skiplayernorm", "fusion_embedlayer"),
)


def fuse(exported: Exported, path: Path, config: Any, feeds: Sequence[Feed]) -> Exported:
    """The fp32 version: one Attention operator a layer, projections inside it.

    Args:
        config: the transformers config.
        feeds: inputs on which the fused graph must give what the plain one gives.
    """
    return _fused(exported, path, config, FusionOptions("bert"), feeds)


def fuse_around_matmuls(exported: Exported, path: Path, config: Any, feeds: Sequence[Feed]) -> Exported:
    """The form that quantization starts from: attention fused, every projection left a plain MatMul."""
    options = FusionOptions("bert")
    options.use_multi_head_attention = True
    options.enable_skip_layer_norm = False
    options.enable_bias_skip_layer_norm = False
    options.enable_bias_gelu = False
    # Inside of that operator the table of word vectors could not be quantized, nor the norm smoothed.
    options.enable_embed_layer_norm = False
    return _fused(exported, path, config, options, feeds)


def _fused(
    exported: Exported, path: Path, config: Any, options: FusionOptions, feeds: Sequence[Feed]
) -> Exported:
    """Fuse as much as leaves the answers what they are: a fusion may take one architecture for another.

    Known: the rotary embedding of Qwen3 and Mistral comes out wrong. What stays as it was exported, a session
    fuses at load as far as it can.
    """
    options_without_rotary = copy.copy(options)
    options_without_rotary.enable_rotary_embeddings = False
    plain = open_session(exported.path)
    expected = [plain(feed) for feed in feeds]
    for tried in (options, options_without_rotary):
        if _optimize(exported, path, config, tried) and _gives(path, feeds, expected):
            return Exported.read(path)
    shutil.copyfile(exported.path, path)
    return Exported.read(path)


def _optimize(exported: Exported, path: Path, config: Any, options: FusionOptions) -> bool:
    """Write a fused graph; whether that could be done."""
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    heads, width = _attention_sizes(config)
    try:
        with redirect_stdout(io.StringIO()):  # what it fails to infer of dynamo's graphs it prints
            model = optimizer.optimize_model(
                str(exported.path),
                model_type="bert",
                num_heads=heads,
                hidden_size=width,
                optimization_options=options,
                opt_level=0,  # no optimization by a session: that would bake in this machine
            )
    except (IndexError, RuntimeError):
        # A fusion that takes another exporter's graph for optimum's leaves nodes without their inputs.
        return False
    model.save_model_to_file(str(path))
    return True


def _gives(path: Path, feeds: Sequence[Feed], expected: Sequence[Outputs]) -> bool:
    """Whether a graph runs and gives what is expected, up to the last digits."""
    try:
        fused = open_session(path)
        found = [fused(feed) for feed in feeds]
    except Exception:  # noqa: BLE001 - onnxruntime raises its own classes, which share no base but this
        return False
    pairs = (
        (got[name], value) for got, row in zip(found, expected, strict=True) for name, value in row.items()
    )
    return all(a.shape == b.shape and np.allclose(a, b, rtol=_LAST, atol=_LAST) for a, b in pairs)


def _attention_sizes(config: Any) -> tuple[int, int]:
    """Heads and width of every attention; zeros where there is none or they differ: the graph then tells."""
    own = getattr(config, "vision_config", config)
    heads, width = (getattr(own, name, 0) for name in ("num_attention_heads", "hidden_size"))
    known = isinstance(heads, int) and isinstance(width, int) and heads > 0 and width % heads == 0
    return (heads, width) if known else (0, 0)
