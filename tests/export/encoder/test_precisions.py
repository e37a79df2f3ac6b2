"""Every precision of a small encoder: made from one checkpoint, measured, and only then published."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import pytest

from export.device import CUDA
from export.encoder.precisions import MAKERS
from export.encoder.recipe import EncoderRecipe
from export.encoder.verify import open_session
from export.outcome import Outcome
from export.run import export
from shoal.errors import ExportError
from shoal.machine import gpus
from shoal.manifest import manifests
from tests.tiny import make

ON_CPU = tuple(name for name in EncoderRecipe.PRECISIONS if name not in EncoderRecipe.ON_GPU)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("precisions")
    source = make(folder / "tiny", "BertForSequenceClassification", num_labels=3, num_hidden_layers=1)
    recipe = EncoderRecipe(source=str(source), name="tiny", precisions=ON_CPU)
    return folder / "repository", export(recipe, folder / "repository")


def test_every_precision_has_a_maker() -> None:
    assert tuple(MAKERS) == EncoderRecipe.PRECISIONS


def test_each_has_evidence_and_what_is_proven_is_published(made: tuple[Path, Outcome]) -> None:
    repository, outcome = made
    assert [entry.precision for entry in outcome.evidence] == list(ON_CPU)
    proven = [entry.precision for entry in outcome.evidence if not entry.failures]
    assert "fp32" in proven and len(proven) > 1
    assert [manifest.precision for manifest in manifests(repository, "tiny")] == proven


def test_the_notes_of_static_int8_are_part_of_its_evidence(made: tuple[Path, Outcome]) -> None:
    entries = {entry.precision: entry.to_dict() for entry in made[1].evidence}
    notes = entries["int8-static"]["notes"]
    assert set(notes) == {"calibration", "errors", "excluded", "failures"}
    assert entries["fp32"]["notes"] == {}


def test_each_is_another_kind_of_product(made: tuple[Path, Outcome]) -> None:
    kinds, static = {}, 0
    for manifest in manifests(made[0], "tiny"):
        model = onnx.load(made[0] / manifest.network / str(manifest.version) / "model.onnx")
        kinds[manifest.precision] = Counter(node.op_type for node in model.graph.node)
        if manifest.precision == "int8-static":
            dequantized = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
            static = sum(n.op_type == "MatMul" and n.input[1] in dequantized for n in model.graph.node)
            assert static == 6 - len(manifest.evidence["notes"]["excluded"])
    wanted = {"int8": "MatMulIntegerToFloat", "int8-dynamic": "MatMulIntegerToFloat", "int4": "MatMulNBits"}
    for precision in kinds.keys() & wanted.keys():
        assert kinds[precision][wanted[precision]] == 6, precision
    assert static


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime has CUDA"
)
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_gpus_session_never_falls_back_to_the_cpu(made: tuple[Path, Outcome]) -> None:
    with pytest.raises(ExportError, match="must be measured on an NVIDIA GPU: .*cannot use CUDA"):
        open_session(made[0] / "tiny_encoder" / "1" / "model.onnx", CUDA)


@pytest.mark.skipif(bool(gpus()), reason="there is a GPU to measure on")
def test_what_cannot_be_measured_here_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="^fp16 must be measured on an NVIDIA GPU; th"):
        export(EncoderRecipe(precisions=("fp32", "fp16")), tmp_path / "r")
    assert not (tmp_path / "r").exists()
