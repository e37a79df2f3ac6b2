"""What the tests of TensorRT share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from export.tensorrt.shapes import Profile, Shape, from_buckets

rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


PROFILES = from_buckets(64, (16, 256), best_batch=8)


ONE = (Profile(Shape(1, 1), Shape(4, 8), Shape(8, 16)),)


def embed(path: Path, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    # The graph as it stands: ONNX Runtime would take casts out that TensorRT obeys.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


def tokens(batch: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(0).integers(1000, 20_000, (batch, tokens))
    mask = np.ones_like(ids)
    mask[0, tokens // 2 :] = 0
    return ids, mask
