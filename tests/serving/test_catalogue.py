"""What the catalogue says of each family of models, over repositories written by hand."""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest

from serving import catalogue as module
from serving.catalogue import Entry, Tensor, catalogue, tokenizer_of
from serving.embedded import Server
from serving.ports import Ports
from serving.supervisor.metrics import Metrics
from serving.supervisor.snapshot import ModelSpec, specs_in
from shoal.manifest import FILENAME, Manifest

CREATED = "2026-11-26T20:02:22+00:00"
CREATED_SECONDS = 1795723342  # by `date -d 2026-11-26T20:02:22Z +%s`
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}{% endfor %}"
ADDED = {"<|endoftext|>": 0, "<|im_start|>": 1}


def _parameters(**values: str) -> str:
    return "".join(
        f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(text)} }} }}\n"
        for key, text in values.items()
    )


def _ensemble(*steps: str) -> str:
    named = "".join(f'step {{ model_name: "{step}" model_version: -1 }}\n' for step in steps)
    return f'platform: "ensemble"\nmax_batch_size: 64\nensemble_scheduling {{ {named} }}\n'


def _tensor(kind: str, name: str, dtype: str, *dims: int, more: str = "") -> str:
    sizes = " ".join(f"dims: {size}" for size in dims)
    return f'{kind} {{ name: "{name}" data_type: TYPE_{dtype} {sizes} {more} }}\n'


def _version(number: int) -> str:
    return f"version_policy {{ specific {{ versions: {number} }} }}\n"


def _model(repository: Path, name: str, config: str, *versions: int) -> Path:
    """A model's folder; that of its last version."""
    for version in versions:
        (repository / name / str(version)).mkdir(parents=True, exist_ok=True)
    (repository / name).mkdir(exist_ok=True)
    (repository / name / "config.pbtxt").write_text(config)
    return repository / name / str(versions[-1] if versions else 1)


def _manifest(repository: Path, model: str, network: str, version: int, **changes: Any) -> Path:
    entry: dict[str, Any] = {
        **{key: {} for key in ("recipe", "configs", "onnx", "tools", "machine", "evidence")},
        **{"model": model, "network": network, "version": version, "precision": "int8", "schema": 2},
        **{"source": {"id": "the-source", "kind": "package"}, "created": CREATED},
        **{"files": {f"{network}/{version}/model.onnx": "ab" * 32, f"{network}/{version}/a.json": "cd" * 32}},
    }
    path = repository / network / str(version) / FILENAME
    path.write_text(json.dumps(entry | changes))
    return path


def _decoder(repository: Path) -> Path:
    config = (
        'backend: "python"\nmodel_transaction_policy { decoupled: true }\n'
        + _version(2)
        + _tensor("input", "text_input", "STRING", 1)
        + _tensor("input", "stream", "BOOL", 1, more="optional: true")
        + _tensor("output", "text_output", "STRING", -1)
        + _parameters(
            max_num_seqs="32",
            max_model_len="2048",
            max_queue_size="256",
            chat_template=TEMPLATE,
            special_tokens=json.dumps({"eos_token": "<|im_end|>"}),
        )
    )
    folder = _model(repository, "smollm2", config, 1, 2)
    added = [{"id": number, "content": text, "special": True} for text, number in ADDED.items()]
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "model": {"vocab": {"fish": 2}, "merges": [["f", "i"]]},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    evidence = {
        **{"size_bytes": 1000, "perplexity": 27.8, "reference_perplexity": 26.25, "batch_invariance": 1.0},
        **{"metric": None, "score": None, "proven": True, "text": "pydoc_data.topics"},
    }
    _manifest(repository, "smollm2", "smollm2", 2, evidence=evidence)
    return folder


def _encoder(repository: Path) -> Path:
    prompts = {"query": "query: ", "document": "passage: "}
    ensemble = (
        _ensemble("minilm_tokenizer", "minilm_encoder")
        + _tensor("input", "text", "STRING", 1)
        + _tensor("output", "embedding", "FP32", 384)
        + _parameters(task="sentence-similarity", prompts=json.dumps(prompts))
    )
    _model(repository, "minilm", ensemble, 1)
    tokenizer = _parameters(layout="text", max_length="256", max_queue_size="128", default_prompt="query")
    _model(repository, "minilm_tokenizer", 'backend: "python"\n' + _version(1) + tokenizer, 1)
    network = 'backend: "onnxruntime"\n' + _version(3) + _tensor("output", "embedding", "FP32", 384)
    folder = _model(repository, "minilm_encoder", network, 1, 3)
    evidence = {
        "min_cosine": 0.99,
        "mean_cosine": 0.999,
        "metric": "accuracy",
        "score": 91.5,
        "cases": [[1, 8]],
    }
    _manifest(repository, "minilm", "minilm_encoder", 3, evidence=evidence)
    return folder


def _only(repository: Path) -> Entry:
    (entry,) = catalogue(repository, specs_in(repository))
    return entry


def test_a_decoder(tmp_path: Path) -> None:
    _decoder(tmp_path)
    assert _only(tmp_path) == Entry(
        name="smollm2",
        task="text-generation",
        version=2,
        precision="int8",
        sha256=hashlib.sha256(
            f"smollm2/2\nsmollm2/2/a.json {'cd' * 32}\nsmollm2/2/model.onnx {'ab' * 32}".encode()
        ).hexdigest()[:16],
        source="the-source",
        created=CREATED_SECONDS,
        max_model_len=2048,
        max_num_seqs=32,
        max_queue_size=256,
        chat_template=TEMPLATE,
        tool_format="hermes",
        special_tokens={"eos_token": "<|im_end|>"},
        control_tokens=ADDED,
        tokenizer=True,
        inputs={"text_input": Tensor("STRING", [1]), "stream": Tensor("BOOL", [1], True)},
        outputs={"text_output": Tensor("STRING", [-1])},
        evidence={
            **{"size_bytes": 1000, "perplexity": 27.8, "reference_perplexity": 26.25, "batch_invariance": 1.0}
        },
    )


def test_the_tool_format_is_that_of_the_template(tmp_path: Path) -> None:
    config = _parameters(chat_template="{{ '[TOOL_CALLS]' }}") + _version(1)
    _model(tmp_path, "mistral", config, 1)
    _model(tmp_path, "plain", _version(1), 1)
    mistral, plain = catalogue(tmp_path, specs_in(tmp_path))
    assert (mistral.tool_format, plain.tool_format) == ("mistral", "")


def test_an_encoder_is_one_entry_with_what_its_steps_say(tmp_path: Path) -> None:
    _encoder(tmp_path)
    entry = _only(tmp_path)
    assert (entry.name, entry.task, entry.version) == ("minilm", "sentence-similarity", 3)
    assert (entry.max_model_len, entry.max_batch_size, entry.max_queue_size) == (256, 64, 128)
    assert entry.prompts == {"query": "query: ", "document": "passage: "} and entry.default_prompt == "query"
    assert entry.inputs == {"text": Tensor("STRING", [1])}
    assert entry.outputs == {"embedding": Tensor("FP32", [384])}
    assert entry.evidence == {
        **{"min_cosine": 0.99, "mean_cosine": 0.999, "metric": "accuracy", "score": 91.5}
    }
    assert (entry.control_tokens, entry.chat_template, entry.max_num_seqs, entry.columns) == ({}, "", 0, [])


def test_labels_of_the_model_behind_the_network(tmp_path: Path) -> None:
    _model(
        tmp_path, "ner", _ensemble("ner_encoder", "ner_output") + _parameters(task="token-classification"), 1
    )
    _model(tmp_path, "ner_encoder", _version(1), 1)
    _model(tmp_path, "ner_output", _version(1) + _parameters(labels='["O", "B-PER", "I-PER"]'), 1)
    assert _only(tmp_path).labels == ["O", "B-PER", "I-PER"]


def test_an_encoder_decoder(tmp_path: Path) -> None:
    config = 'backend: "python"\nmax_batch_size: 32\n' + _version(1)
    config += _parameters(task="text2text-generation", max_length="512", max_queue_size="64")
    _model(tmp_path, "t5", config + _tensor("output", "generated_text", "STRING", 1), 1)
    _manifest(tmp_path, "t5", "t5", 1)
    entry = _only(tmp_path)
    assert (entry.task, entry.version, entry.max_model_len) == ("text2text-generation", 1, 512)
    assert (entry.max_queue_size, entry.max_batch_size, entry.control_tokens) == (64, 32, {})


def test_columns_of_a_table_are_its_inputs(tmp_path: Path) -> None:
    """A table of numbers alone has one input, in which no column has a name."""
    told = _parameters(task="tabular-regression")
    inputs = _tensor("input", "fare_paid", "FP32", 1) + _tensor("input", "sex", "STRING", 1)
    _model(tmp_path, "fares", _ensemble("fares_estimator") + told + inputs, 1)
    _model(tmp_path, "fares_estimator", _version(4), 4)
    evidence = {"metric": "r2", "value": 0.91, "reference_value": 0.92}
    _manifest(tmp_path, "fares", "fares_estimator", 4, evidence=evidence)
    _model(tmp_path, "numbers", told + _version(1) + _tensor("input", "features", "FP32", 30), 1)
    fares, numbers = catalogue(tmp_path, specs_in(tmp_path))
    assert (fares.task, fares.columns, fares.version) == ("tabular-regression", ["fare_paid", "sex"], 4)
    assert fares.evidence == evidence
    assert (numbers.columns, numbers.inputs) == ([], {"features": Tensor("FP32", [30])})


DAMAGED: list[bytes | None] = [None, b"", b"{", b"\xff\xfe", b"[1]", b'{"schema": 1}', b"[" * 100_000]


@pytest.mark.parametrize("content", DAMAGED)
def test_without_a_manifest_the_config_speaks(tmp_path: Path, content: bytes | None) -> None:
    folder = _encoder(tmp_path)
    _decoder(tmp_path)
    (folder / FILENAME).unlink()
    if content is not None:
        (folder / FILENAME).write_bytes(content)
    entry, other = catalogue(tmp_path, specs_in(tmp_path))
    assert (entry.name, entry.version, entry.max_model_len) == ("minilm", 3, 256)
    assert (entry.precision, entry.sha256, entry.source, entry.created, entry.evidence) == ("", "", "", 0, {})
    assert (other.name, other.precision) == ("smollm2", "int8")


@pytest.mark.parametrize(
    "changes",
    [
        {"source": {}, "created": "yesterday", "evidence": {"perplexity": float("nan"), "score": True}},
        {"source": {"id": None}, "created": "", "evidence": {"perplexity": [1], "metric": ""}},
    ],
)
def test_odd_values_of_a_manifest_are_left_out(tmp_path: Path, changes: dict[str, Any]) -> None:
    _decoder(tmp_path)
    _manifest(tmp_path, "smollm2", "smollm2", 2, **changes)
    entry = _only(tmp_path)
    assert (entry.source, entry.created, entry.evidence, entry.precision) == ("", 0, {}, "int8")


@pytest.mark.parametrize("odd", ["\ud800", 1 << 70])
def test_what_json_cannot_carry_fails_no_answer(tmp_path: Path, odd: Any) -> None:
    _decoder(tmp_path)
    _manifest(tmp_path, "smollm2", "smollm2", 2, evidence={"metric": odd})
    assert b'"smollm2"' in msgspec.json.encode(catalogue(tmp_path, specs_in(tmp_path)))


@pytest.mark.parametrize("content", [None, b"{", b'{"added_tokens": [{"content": 1}]}', b"{}"])
def test_a_damaged_tokenizer_leaves_the_rest(tmp_path: Path, content: bytes | None) -> None:
    folder = _decoder(tmp_path)
    (folder / "tokenizer.json").unlink()
    if content is not None:
        (folder / "tokenizer.json").write_bytes(content)
    entry = _only(tmp_path)
    assert (entry.control_tokens, entry.precision) == ({}, "int8")


def test_a_damaged_config_or_parameter_leaves_the_rest(tmp_path: Path) -> None:
    broken = _parameters(max_queue_size="many", special_tokens="{", prompts="[1]", labels='{"a": 1}')
    specs = {"broken": ModelSpec(broken, (1,)), "none": ModelSpec("no config at all {", (2,))}
    assert catalogue(tmp_path, specs) == [Entry(name="broken", version=1), Entry(name="none", version=2)]


def test_only_what_is_served_is_told(tmp_path: Path) -> None:
    """And not what the repository shows: a version that is refused stays out."""
    _encoder(tmp_path)
    served = specs_in(tmp_path)
    (tmp_path / "minilm_encoder" / "config.pbtxt").write_text(_version(1))
    _decoder(tmp_path)
    (entry,) = catalogue(tmp_path, served)
    assert (entry.name, entry.version, entry.precision) == ("minilm", 3, "int8")


def test_the_fingerprint_is_of_the_files(tmp_path: Path) -> None:
    _decoder(tmp_path)
    first = _only(tmp_path).sha256
    _manifest(tmp_path, "smollm2", "smollm2", 2, precision="fp32", created="2026-01-01T00:00:00+00:00")
    assert _only(tmp_path).sha256 == first
    _manifest(tmp_path, "smollm2", "smollm2", 2, files={"smollm2/2/model.onnx": "ef" * 32})
    assert _only(tmp_path).sha256 != first


def test_files_are_read_again_only_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, read = _decoder(tmp_path), list[Path]()
    load, read_regular = Manifest.load, module.read_regular
    monkeypatch.setattr(Manifest, "load", lambda path: read.append(path) or load(path))
    monkeypatch.setattr(module, "read_regular", lambda path: read.append(path) or read_regular(path))
    served = specs_in(tmp_path)
    entries = [catalogue(tmp_path, served) for _ in range(3)]
    assert read == [folder / FILENAME, folder / "tokenizer.json"] and entries[0] == entries[2]
    os.utime(folder / FILENAME, ns=(1, 1))
    catalogue(tmp_path, served)
    assert read[2:] == [folder / FILENAME]


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    folder = _decoder(tmp_path)
    os.truncate(folder / "tokenizer.json", module._MOST_BYTES + 1)
    assert _only(tmp_path).control_tokens == {}


def test_the_tokenizer_is_that_of_the_served_version(tmp_path: Path) -> None:
    """Of a decoder it lies beside the network, and of an ensemble beside the step that reads texts."""
    decoder = _decoder(tmp_path) / "tokenizer.json"
    (tmp_path / "smollm2" / "1" / "tokenizer.json").write_bytes(b"an older one")
    _encoder(tmp_path)
    step = tmp_path / "minilm_tokenizer"
    (step / "1" / "tokenizer.json").write_bytes(b"{}")
    (step / "2").mkdir()
    (step / "2" / "tokenizer.json").write_bytes(b"a newer one, which is not served")
    served = specs_in(tmp_path)
    minilm, smollm2 = catalogue(tmp_path, served)
    assert minilm.tokenizer and smollm2.tokenizer
    assert tokenizer_of(tmp_path, "smollm2", served) == (decoder.read_bytes(), f"2-{smollm2.sha256}")
    assert tokenizer_of(tmp_path, "minilm", served) == (b"{}", f"3-{minilm.sha256}")
    # Steps are not for users.
    assert tokenizer_of(tmp_path, "minilm_tokenizer", served) is None


def test_what_is_no_tokenizer_is_not_given(tmp_path: Path) -> None:
    path, served = _decoder(tmp_path) / "tokenizer.json", specs_in(tmp_path)
    os.truncate(path, module._MOST_BYTES + 1)
    assert not _only(tmp_path).tokenizer and tokenizer_of(tmp_path, "smollm2", served) is None
    path.unlink()
    assert not _only(tmp_path).tokenizer and tokenizer_of(tmp_path, "smollm2", served) is None
    os.mkfifo(path)  # to open it would wait for whoever writes
    assert not _only(tmp_path).tokenizer and tokenizer_of(tmp_path, "smollm2", served) is None


@pytest.fixture
def metrics(tmp_path: Path) -> Iterator[Metrics]:
    _encoder(tmp_path)
    served = specs_in(tmp_path)
    made = Metrics("127.0.0.1", 0, lambda: served)
    yield made
    made.close()


def _get(made: Metrics, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{made.port}{path}", timeout=5) as response:
        assert response.headers["Content-Type"] == "application/json"
        return json.load(response)


def test_the_port_tells_nothing_until_a_server_serves(metrics: Metrics, tmp_path: Path) -> None:
    nothing = {"models": [], "ready": False, "grpc": 0, "http": 0}
    assert _get(metrics, "/catalogue") == nothing
    server = Server(os.getpid(), 0.0, Ports(8100, 8101, 8102), tmp_path, tmp_path)
    metrics.started(server, 1.0)
    told = _get(metrics, "/catalogue?a=b")
    (model,) = told.pop("models")
    assert told == {"ready": True, "grpc": 8101, "http": 8100}
    assert set(model) == set(Entry.__struct_fields__)
    assert model["inputs"] == {"text": {"dtype": "STRING", "dims": [1], "optional": False}}
    metrics.ready("minilm did not answer")
    assert _get(metrics, "/catalogue")["ready"] is False
    metrics.ended("killed")
    assert _get(metrics, "/catalogue") == nothing


def _not_found(made: Metrics, path: str) -> bytes:
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"http://127.0.0.1:{made.port}{path}", timeout=5)
    assert error.value.code == 404
    return error.value.read()


NO_MODELS = ["minilm_tokenizer", "nothing", "", ".", "..", "../minilm", "minilm/../minilm", "/etc", "a\0"]


def test_the_port_gives_the_tokenizer_of_what_is_served(metrics: Metrics, tmp_path: Path) -> None:
    path = "/catalogue/minilm/tokenizer"
    (tmp_path / "minilm_tokenizer" / "1" / "tokenizer.json").write_bytes(b'{"version": "1.0"}')
    (tmp_path.parent / "tokenizer.json").write_bytes(b"outside")
    _not_found(metrics, path)  # nothing serves yet
    metrics.started(Server(os.getpid(), 0.0, Ports(8100, 8101, 8102), tmp_path, tmp_path), 1.0)
    assert _get(metrics, path) == _get(metrics, "/catalogue/mini%6Cm/tokenizer") == {"version": "1.0"}
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}{path}", timeout=5) as response:
        (entry,) = catalogue(tmp_path, specs_in(tmp_path))
        assert response.headers["ETag"] == f'"{entry.tag}"' and entry.tag == f"3-{entry.sha256}"
    for name in NO_MODELS:
        said = _not_found(metrics, f"/catalogue/{quote(name, safe='')}/tokenizer")
        assert said.startswith(b"no such model" if name else b"there is")
    for path in ("/catalogue/../minilm/tokenizer", "/catalogue/minilm/1/tokenizer", "/catalogue/minilm"):
        assert _not_found(metrics, path).startswith(b"there is")
    (tmp_path / "minilm_tokenizer" / "1" / "tokenizer.json").unlink()
    assert _not_found(metrics, "/catalogue/minilm/tokenizer").startswith(b"no such model")


def test_an_unknown_path_names_those_that_are(metrics: Metrics) -> None:
    assert _not_found(metrics, "/models") == b"there is /metrics, /health and /catalogue\n"
