"""Fuse an exported transformer into the operators that ONNX Runtime runs fast, on a CPU and on a GPU.

The fusions are ONNX Runtime's own offline ones (`onnxruntime.transformers.optimizer`). None of them
depends on the machine they are made on, so that one file serves everywhere.
"""

from __future__ import annotations

import io
import logging
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from onnxruntime.transformers import optimizer
from onnxruntime.transformers.fusion_options import FusionOptions

from export.exported import Exported


def fuse(exported: Exported, path: Path, config: Any) -> Exported:
    """The fp32 version: one Attention operator a layer, projections inside it.

    Args:
        config: the transformers config.
    """
    return _run(exported, path, config, FusionOptions("bert"))


def fuse_around_matmuls(exported: Exported, path: Path, config: Any) -> Exported:
    """The form that quantization starts from: attention fused, every projection left a plain MatMul."""
    options = FusionOptions("bert")
    options.use_multi_head_attention = True
    options.enable_skip_layer_norm = False
    options.enable_bias_skip_layer_norm = False
    options.enable_bias_gelu = False
    return _run(exported, path, config, options)


def _run(exported: Exported, path: Path, config: Any, options: FusionOptions) -> Exported:
    for name in ("onnxruntime.transformers", "fusion_attention", "fusion_base", "fusion_skiplayernorm"):
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
        # A fusion that takes another exporter's graph for optimum's leaves nodes without their inputs. Less
        # is fused then: a session fuses at load what it can by itself.
        shutil.copyfile(exported.path, path)
        return Exported.read(path)
    model.save_model_to_file(str(path))
    return Exported.read(path)


def _attention_sizes(config: Any) -> tuple[int, int]:
    """Heads and width of every attention; zeros where there is none or they differ: the graph then tells."""
    own = getattr(config, "vision_config", config)
    heads, width = (getattr(own, name, 0) for name in ("num_attention_heads", "hidden_size"))
    known = isinstance(heads, int) and isinstance(width, int) and heads > 0 and width % heads == 0
    return (heads, width) if known else (0, 0)
