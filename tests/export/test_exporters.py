"""optimum and PyTorch's own exporter: which is used when, and what the latter makes of families it can do.

Holds with transformers 4 and 5 alike: `make test`, `make test-transformers5`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from export import run
from export.checkpoint.opened import open_checkpoint
from export.checkpoint.source import find_checkpoint
from export.encoder import to_onnx
from export.encoder.backbone import load_head
from export.encoder.tasks import task_of
from export.exported import MAX_IR_VERSION, MAX_OPSET
from export.text2text import to_onnx as text2text
from export.text2text.recipe import Text2TextRecipe
from shoal.errors import ExportError
from shoal.manifest import manifests
from tests import tiny
from tests.export import matrix

# One each of absolute positions, of layer norms without a bias, and of pictures.
FAMILIES = ("BertModel", "ModernBertForTokenClassification", "ViTForImageClassification")


@pytest.mark.parametrize("architecture", ["BertModel", "ErnieModel"])
def test_optimum_exports_what_it_knows_where_it_is(tmp_path: Path, architecture: str) -> None:
    checkpoint = find_checkpoint(str(tiny.make(tmp_path / "checkpoint", architecture)))
    task = task_of(checkpoint)
    head = load_head(open_checkpoint(checkpoint, task.name), task)
    known = architecture == "BertModel" and find_spec("optimum") is not None
    assert to_onnx.exporters_of(head) == (("optimum", "dynamo") if known else ("dynamo",))


@pytest.mark.parametrize("case", [c for c in matrix.CASES if c.model in FAMILIES], ids=lambda case: case.id)
def test_dynamo_is_as_exact_and_the_official_container_loads_it(
    case: matrix.Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_onnx, "_optimum_config", lambda head: None)
    outcome = matrix.try_case(case, tmp_path, tmp_path / "repository", ("fp32",))
    assert not outcome.reason("fp32")
    (manifest,) = manifests(tmp_path / "repository")
    assert manifest.onnx["opset"] <= MAX_OPSET == 22
    assert manifest.onnx["ir_version"] <= MAX_IR_VERSION == 10


def test_an_encoder_decoder_without_optimum_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text2text, "find_spec", lambda name: None)
    source = tiny.make_encoder_decoder(tmp_path / "checkpoint", "T5ForConditionalGeneration")
    recipe = run.recipe_of({"source": str(source), "name": "writer"})
    assert isinstance(recipe, Text2TextRecipe)
    with pytest.raises(ExportError, match=r"optimum, which needs transformers 4 .*\.\[export\]"):
        run.export(recipe, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()
