"""Encoder-decoders over the wire, on a real Triton, against what transformers' `generate` makes of the text.

Models are tiny and random. Many tokens end an answer, so that answers have different lengths and their rows
leave the batch at different times. Those in INT8 have learnt their answers: a random model's tokens are close
calls, which a trained one's are not.
"""

from __future__ import annotations

import asyncio
import csv
import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from clients import AsyncGrpcClient, BadInput, Generated, GrpcClient, HttpClient
from export import run
from export.checkpoint.opened import open_tokenizer
from export.encoder.recipe import EncoderRecipe
from export.evidence import Verified, evidence_table
from export.quantization import int8 as quantize
from export.text2text import verify
from export.text2text.checkpoint import find_encoder_decoder, load_original, search_of
from export.text2text.labelled import chrf, read_pairs
from export.text2text.recipe import Text2TextRecipe
from export.text2text.to_onnx import to_onnx
from serving.embedded import Server, running
from serving.models.text2text import Text2TextSettings, TextGenerator
from serving.text2text.search import answer
from serving.text2text.settings import Search
from shoal import corpus, tensors
from shoal.cli.compare import compare
from shoal.errors import ExportError, NotProven, UsageError
from shoal.manifest import manifests
from shoal.progress import Silent
from tests import tiny
from tests.export.raw.served import AGREED
from tests.serving.generation.metrics import page_of

Client = GrpcClient | HttpClient
ARCHITECTURES = {
    "t5": ("T5ForConditionalGeneration", {"spread": 2.0, "feed_forward_proj": "gated-gelu"}),
    "bart": ("BartForConditionalGeneration", {}),
    "marian": ("MarianMTModel", {"spread": 8.0}),
}
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "no_repeat_ngram_size": 2},
}
MODELS = ["t5-greedy", "t5-beams", "bart-beams", "marian-greedy"]
ENDS = [2, *range(100, 300)]
TOKENS = 20
# Of one layer each, to learn fast; the generation config of each.
TAUGHT: dict[str, dict[str, Any]] = {"t5-taught": {}, "bart-taught": {"num_beams": 4}, "marian-taught": {}}
LEARNS = {
    **{key: 1 for key in ("num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")},
    "spread": 1.0,
}
TEXTS = [*corpus.texts(6, seed=3), "Guido van Rossum wrote Python, in Amsterdam."]
# Those that evidence is taken on are taught too.
LESSONS = {text: text[9::-1] for text in [*corpus.texts(12, seed=7), *TEXTS]}


@pytest.fixture(scope="module", autouse=True)
def _fast() -> Iterator[None]:
    """Tiny models on one thread: PyTorch's threads wait for one another longer than they work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "SPEED_ROUNDS", 1)
        patch.setattr(verify, "available_cpus", lambda: 1)
        torch.set_num_threads(1)
        yield


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, (architecture, config) in ARCHITECTURES.items():
        tiny.make_encoder_decoder(folder / name, architecture, **config)
        for search, values in SEARCHES.items():
            shutil.copytree(folder / name, folder / f"{name}-{search}")
            asks(folder / f"{name}-{search}", eos_token_id=ENDS, max_new_tokens=TOKENS, **values)
    for name, values in TAUGHT.items():
        architecture, config = ARCHITECTURES[name.partition("-")[0]]
        tiny.make_encoder_decoder(
            folder / name,
            architecture,
            **config | LEARNS | {"scale_embedding": architecture == "MarianMTModel"},
        )
        tiny.teach(folder / name, LESSONS)
        asks(folder / name, max_new_tokens=TOKENS, **values)
    return folder


def asks(folder: Path, **values: Any) -> Path:
    """Write into a checkpoint's generation config."""
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the taught models have learnt, but for one target."""
    path = tmp_path_factory.mktemp("labelled") / "pairs.jsonl"
    pairs = LESSONS | {TEXTS[0]: "Something else."}
    lines = [json.dumps({"text": text, "target": target}) for text, target in pairs.items()]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def repository(checkpoints: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("text2text") / "model_repository"
    for name in MODELS:
        recipe = run.recipe_of({"source": str(checkpoints / name), "name": name, "precisions": ["fp32"]})
        assert isinstance(recipe, Text2TextRecipe)  # read from the checkpoint's own config
        assert run.export(recipe, made).task == "text2text-generation"
    for name in TAUGHT:
        recipe = run.recipe_of({"source": str(checkpoints / name), "name": name, "eval_data": str(labelled)})
        assert [entry.failures for entry in run.export(recipe, made).evidence] == [[], []]
    return made


@pytest.fixture(scope="module")
def served(repository: Path) -> Iterator[Server]:
    with running(repository) as server:
        yield server


@pytest.fixture(scope="module", params=["grpc", "http"])
def caller(request: pytest.FixtureRequest, served: Server) -> Iterator[Client]:
    kind = {"grpc": GrpcClient, "http": HttpClient}[request.param]
    with kind(getattr(served, request.param)) as client:
        yield client


def original(folder: Path, texts: list[str], ends: Any = ENDS, **options: Any) -> list[Generated]:
    """transformers' answers to a padded batch, by the checkpoint's own settings."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True)
    with torch.inference_mode():
        made = model.generate(inputs.input_ids, attention_mask=inputs.attention_mask, **options)
    rows = [up_to_end(row, ends) for row in made[:, 1:].tolist()]
    return [
        Generated(
            tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False), len(row)
        )
        for row in rows
    ]


def up_to_end(tokens: list[int], ends: Any) -> list[int]:
    """An answer without what fills its row up."""
    for index, token in enumerate(tokens):
        if token in ends:
            return tokens[: index + 1]
    return tokens


@pytest.mark.parametrize("model", MODELS)
def test_answers_are_those_of_generate(caller: Client, checkpoints: Path, model: str) -> None:
    expected = original(checkpoints / model, TEXTS)
    assert caller.text_to_text(TEXTS, model=model) == expected
    assert caller.text_to_text(TEXTS, model=model, batch_size=3) == expected
    assert len({entry.text for entry in expected}) > 3
    assert len({entry.output_tokens for entry in expected}) > 1


@pytest.mark.parametrize("model", TAUGHT)
def test_int8_is_served_with_the_answers_of_the_original(
    caller: Client, checkpoints: Path, repository: Path, model: str
) -> None:
    versions = {manifest.precision: manifest for manifest in manifests(repository, model)}
    assert {name: manifest.version for name, manifest in versions.items()} == {"fp32": 1, "int8": 2}
    assert caller.metadata(model)["versions"] == ["2"]
    expected = original(checkpoints / model, TEXTS, ends=[2])
    assert [entry.text for entry in expected] == [LESSONS[text] for text in TEXTS]
    assert caller.text_to_text(TEXTS, model=model) == expected
    assert caller.text_to_text(TEXTS, model=model, batch_size=1) == expected


def test_shorter_answers(caller: Client, checkpoints: Path) -> None:
    for model in ("t5-greedy", "bart-beams"):  # beams plan for the length: shorter is not the beginning
        got = caller.text_to_text(TEXTS, model=model, max_new_tokens=5)
        assert got == original(checkpoints / model, TEXTS, max_new_tokens=5)
    for tokens in (0, TOKENS + 1):
        with pytest.raises(BadInput, match=f"max_new_tokens is {tokens}, it must be from 1 to 20"):
            caller.text_to_text(TEXTS, model="t5-greedy", max_new_tokens=tokens)


def test_long_text_is_truncated(caller: Client, checkpoints: Path) -> None:
    long = " ".join(corpus.passages()[:40])[:30_000]
    assert caller.text_to_text([long], model="bart-beams") == original(checkpoints / "bart-beams", [long])


def test_requests_at_once_are_answered_as_alone(served: Server, checkpoints: Path) -> None:
    texts = corpus.texts(40, seed=5)
    with GrpcClient(served.grpc) as client:
        alone = [client.text_to_text([text], model="t5-beams")[0] for text in texts]
        before = batches(served)
        with ThreadPoolExecutor(20) as pool:
            together = list(pool.map(lambda text: client.text_to_text([text], model="t5-beams")[0], texts))
        assert together == alone
        assert 0 < batches(served) - before < len(texts)  # they did share generations


def batches(server: Server) -> int:
    """How often the model was run."""
    (line,) = (
        line
        for line in page_of(server).splitlines()
        if line.startswith('shoal_queue_batches_total{model="t5-beams"')
    )
    return int(float(line.split()[-1]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "text 1 is empty"),
        (b" \n", "text 1 is empty"),
        (b"caf\xe9", "text 1 is not UTF-8: byte 3 is 0xe9"),
        (b"x" * 40_000, "text 1 has 40000 bytes, at most 32768 are accepted"),
    ],
)
def test_bad_text(caller: Client, text: bytes, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        caller.infer("t5-greedy", {"text": np.array([[b"fine"], [text]], object)})


def test_a_bad_request_leaves_those_beside_it_alone(served: Server) -> None:
    async def ask() -> list[Any]:
        async with AsyncGrpcClient(served.grpc) as client:
            calls = [client.text_to_text([text], model="t5-beams") for text in ["", *TEXTS, ""]]
            return await asyncio.gather(*calls, return_exceptions=True)

    first, *good, last = asyncio.run(ask())
    assert isinstance(first, BadInput)
    assert isinstance(last, BadInput)
    with GrpcClient(served.grpc) as client:
        assert [answers[0] for answers in good] == client.text_to_text(TEXTS, model="t5-beams")


def test_evidence(repository: Path) -> None:
    (manifest,) = manifests(repository, "bart-beams")
    evidence = manifest.evidence
    assert evidence["proven"]
    assert evidence["greedy_match"] == evidence["answer_match"] == evidence["batch_invariance"] == 1
    assert 0 < evidence["logits_max_abs_diff"] < 1e-4
    assert 0 < evidence["encoder_max_abs_diff"] < 1e-4
    assert len({tokens for tokens, _ in evidence["cases"]}) > 5
    folder = repository / "bart-beams" / "1"
    assert evidence["size_bytes"] == sum(path.stat().st_size for path in folder.glob("*.onnx"))
    assert set(manifest.files) == {
        f"bart-beams/1/{name}" for name in ("encoder.onnx", "decoder.onnx", "tokenizer.json", "model.py")
    }
    assert manifest.onnx["encoder"]["inputs"][0]["name"] == "input_ids"


def test_verify_published(repository: Path) -> None:
    outcome = run.verify("marian-greedy", repository)
    (evidence,) = outcome.evidence
    assert (outcome.task, evidence.failures) == ("text2text-generation", [])
    assert evidence_table([evidence], "marian").row_count == 1


@pytest.mark.parametrize("model", TAUGHT)
def test_evidence_of_int8(checkpoints: Path, repository: Path, model: str) -> None:
    exact, small = (manifest.evidence for manifest in manifests(repository, model))
    assert small["proven"]
    assert small["agreement"] >= 0.97
    assert small["batch_invariance"] >= 0.9
    assert exact["logits_max_abs_diff"] < 1e-4 < small["logits_max_abs_diff"] < 0.15
    assert small["size_bytes"] < 0.6 * exact["size_bytes"]
    for graph in ("encoder", "decoder"):
        nodes = onnx.load(repository / model / "2" / f"{graph}.onnx").graph.node
        weights = {node.input[0] for node in nodes if node.op_type == "Gather"}
        assert "int8/tokens" in weights
        assert sum(node.op_type == "MatMulIntegerToFloat" for node in nodes) >= 8


@pytest.mark.parametrize("name", TAUGHT)
def test_raw_inputs_over_the_wire(served: Server, repository: Path, name: str) -> None:
    manifest, answers = run.verify_wire(name, repository, served.grpc)
    assert answers.failures == [] and answers.tokens == 1.0
    assert (answers.inputs, answers.agreement) == tuple(
        manifest.evidence["raw"][figure] for figure in ("inputs", "agreement")
    )


def test_verify_scores_labelled_data(checkpoints: Path, repository: Path, labelled: Path) -> None:
    outcome = run.verify("t5-taught", repository, eval_data=labelled)
    pairs = read_pairs(labelled)
    texts, targets = zip(*pairs, strict=True)
    expected = chrf(
        [entry.text for entry in original(checkpoints / "t5-taught", list(texts), ends=[2])], targets
    )
    assert 80 < expected < 100
    for evidence, manifest in zip(outcome.evidence, manifests(repository, "t5-taught"), strict=True):
        assert (evidence.precision, evidence.failures) == (manifest.precision, [])
        assert evidence.metric == manifest.evidence["metric"] == "chrF"
        assert evidence.reference_score == manifest.evidence["reference_score"] == pytest.approx(expected)
        assert evidence.score == pytest.approx(expected, abs=1)
        worse = dataclasses.replace(evidence, score=expected - 1.2)
        limit = {"fp32": "0.5", "int8": "1"}[evidence.precision]
        assert worse.failures == [f"chrF loses 1.20 > {limit}"]
    made = evidence_table(outcome.evidence, "t5")
    (column,) = [column for column in made.columns if column.header == "chrF"]
    assert all(str(cell).endswith(f" of {expected:.2f}") for cell in column.cells)


def test_a_bad_int8_is_refused(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "WEIGHT_MAX", 1)
    source = str(checkpoints / "marian-taught")
    outcome = run.export(Text2TextRecipe(source, name="rough"), tmp_path / "repository")
    exact, rough = outcome.evidence
    assert not exact.failures
    assert any(failure.startswith("tokens agree 0.") for failure in rough.failures)
    assert [version.precision for version in outcome.published] == ["fp32"]


def test_labelled_files_are_read(tmp_path: Path) -> None:
    pairs = [(f'A "text", {number}', f"un texte\tnº {number}\n") for number in range(12)]
    rows = [("text", "target"), *pairs]
    for name, dialect in {"pairs.csv": "excel", "pairs.tsv": "excel-tab"}.items():
        with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, dialect).writerows(rows)
    lines = [json.dumps({"text": a, "target": b, "id": 7}, ensure_ascii=False) for a, b in pairs]
    (tmp_path / "pairs.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    for name in ("pairs.csv", "pairs.tsv", "pairs.jsonl"):
        assert read_pairs(tmp_path / name) == pairs


GOOD = "a,b\n" * 12


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.csv", "a,b\n", "line 1: it names other columns than text,target"),
        ("x.csv", "", "line 1: it names other columns than text,target"),
        ("x.csv", f"text,target\n{GOOD}a,b,c\n", "line 14: it has 3 columns, not 2"),
        ("x.csv", f'text,target\n"a\nb",c\n\n{GOOD}a,\n', "line 17: its target is empty"),
        ("x.csv", f'text,target\n{GOOD}a,"b\n{GOOD}', "line 14: it is not CSV: unexpected end of data"),
        ("x.tsv", f"text,target\n{GOOD}", "line 1: it names other columns than text,target"),
        ("x.csv", "text,target\na,b\n", "x.csv has 1 pairs, at least 10 are needed"),
        ("x.csv", b"text,target\na,b\ncaf\xe9,b\n", "line 3: it is not UTF-8"),
        ("x.jsonl", '{"text": "a", "target": "b"}\n\n{"text": "a"', "line 3: it is not JSON"),
        ("x.jsonl", '{"text": "a", "target": 7}', "line 1: it is not an object with the texts text and"),
        ("x.jsonl", '["a", "b"]', "line 1: it is not an object with the texts text and target"),
        ("x.jsonl", '{"text": " ", "target": "b"}', "line 1: its text is empty"),
        (".", "", "cannot be read: Is a directory"),
        ("nowhere.csv", None, "cannot be read: No such file or directory"),
    ],
)
def test_a_bad_labelled_file_is_told_before_anything_is_made(
    checkpoints: Path, tmp_path: Path, name: str, content: str | bytes | None, said: str
) -> None:
    if content:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    elif name == "x.csv":
        (tmp_path / name).touch()
    recipe = Text2TextRecipe(str(checkpoints / "t5-taught"), name="x", eval_data=tmp_path / name)
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        run.export(recipe, tmp_path / "repository")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "repository").exists()


def test_other_weights_are_not_proven(checkpoints: Path, tmp_path: Path) -> None:
    """Evidence tells a graph of one model from another model, in each of its figures."""
    source = checkpoints / "bart-beams"
    model = load_original(find_encoder_decoder(str(source)))
    graphs = to_onnx(model, tmp_path)
    shutil.copyfile(source / "tokenizer.json", tmp_path / "tokenizer.json")
    settings = Text2TextSettings(search_of(model, Text2TextRecipe(str(source))), 128, 1000)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    evidence = verify.measure(model, {"fp32": graphs}, settings, progress=Silent())["fp32"]
    failures = " ".join(evidence.failures)
    for said in (
        "encoder difference",
        "encoder cosine",
        "logits difference",
        "tokens",
        "greedy answers",
        "answers",
    ):
        assert said in failures
    with pytest.raises(NotProven, match="fp32 is not published: encoder difference"):
        Verified(graphs, dataclasses.replace(evidence, raw=AGREED))


RULES: list[dict[str, Any]] = [
    {"num_beams": 3, "early_stopping": "never", "length_penalty": 0.5},
    {"num_beams": 2, "length_penalty": -1.0},
    {"num_beams": 4, "min_length": 9, "repetition_penalty": 1.5},
    {"min_length": 6, "repetition_penalty": 1.5, "no_repeat_ngram_size": 3},
    {"num_beams": 4, "forced_bos_token_id": 7, "forced_eos_token_id": 2, "eos_token_id": 2},
    {"forced_bos_token_id": 7, "forced_eos_token_id": 2, "bad_words_ids": [[300], [2]]},
    {"num_beams": 4, "suppress_tokens": list(range(200, 500)), "early_stopping": True},
]


def test_every_rule_of_the_search(checkpoints: Path, tmp_path: Path) -> None:
    source = checkpoints / "marian"
    model = load_original(find_encoder_decoder(str(source)))
    to_onnx(model, tmp_path)
    shutil.copyfile(source / "tokenizer.json", tmp_path / "tokenizer.json")
    plain = model.generation_config.to_dict() | {"eos_token_id": ENDS, "forced_eos_token_id": None}
    del plain["_from_model_config"]
    recipe = Text2TextRecipe(str(source), max_new_tokens=TOKENS)
    answerer = TextGenerator(tmp_path, Text2TextSettings(search_of(model, recipe), 128, 1000))
    texts = [answerer.tokens(text) for text in TEXTS]
    plainly = None
    for values in [{}, *RULES]:
        model.generation_config = GenerationConfig(**plain | values | {"max_length": TOKENS + 1})
        search = search_of(model, recipe)
        running = answerer.runner.start(texts, search.pad)
        got = answer(running, search, [TOKENS] * len(texts))
        for text, tokens in zip(texts, got, strict=True):
            with torch.inference_mode():
                ids = torch.tensor([text])
                made = model.generate(ids, attention_mask=torch.ones_like(ids))[0, 1:].tolist()
            assert tokens == up_to_end(made, search.ends), values
        assert got != plainly  # the rule did something
        plainly = plainly or got


def test_limits_are_of_each_row(checkpoints: Path, repository: Path) -> None:
    folder = repository / "bart-beams" / "1"
    model = load_original(find_encoder_decoder(str(checkpoints / "bart-beams")))
    settings = Text2TextSettings(search_of(model, Text2TextRecipe("x")), 128, 1000)
    answerer = TextGenerator(folder, settings)
    texts = [answerer.tokens(text) for text in TEXTS[:4]]
    limits = [3, 20, 7, 1]
    alone = [answerer.answer([text], [limit])[0] for text, limit in zip(texts, limits, strict=True)]
    assert answerer.answer(texts, limits) == alone
    assert [len(tokens) <= limit for tokens, limit in zip(alone, limits, strict=True)] == [True] * 4


def test_settings_travel_as_json() -> None:
    search = Search(start=1, pad=0, ends=(2, 5), max_new_tokens=9, early_stopping="never", suppressed=(7,))
    assert Search.from_json(search.to_json()) == search
    with pytest.raises(ValueError, match="unknown field `temperature`"):
        Search.from_json(json.dumps(msgspec.structs.asdict(search) | {"temperature": 1}))


def test_checkpoints_that_cannot_be(checkpoints: Path, tmp_path: Path) -> None:
    def refused(**config: Any) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(checkpoints / "marian", folder)
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return folder

    repository = tmp_path / "repository"
    with pytest.raises(
        ExportError, match="is a WhisperForConditionalGeneration for speech seq to seq, which is not"
    ):
        recipe = run.recipe_of(
            {"source": str(refused(architectures=["WhisperForConditionalGeneration"])), "name": "x"}
        )
        run.export(recipe, repository)
    with pytest.raises(ExportError, match="one vocabulary for texts and another for answers"):
        find_encoder_decoder(str(refused(share_encoder_decoder_embeddings=False)))
    slow = refused()
    (slow / "tokenizer.json").unlink()  # as Marian's own checkpoints: SentencePiece alone
    with pytest.raises(ExportError, match="tokenizer.*fast version"):
        open_tokenizer(find_encoder_decoder(str(slow)))
    model = load_original(find_encoder_decoder(str(checkpoints / "marian")))
    for key, value in {"do_sample": True, "bad_words_ids": [[3, 4]], "num_beam_groups": 2}.items():
        setattr(model.generation_config, key, value)
        with pytest.raises(ExportError, match=key):
            search_of(model, Text2TextRecipe("x"))
        setattr(model.generation_config, key, None)
    with pytest.raises(UsageError, match="unknown precision int4"):
        Text2TextRecipe("x", precisions=("int4",))
    with pytest.raises(UsageError, match="num_beams is 0: expected `int` >= 1"):
        Text2TextRecipe("x", num_beams=0)
    asked = run.recipe_of({"source": str(checkpoints / "t5"), "name": "x", "task": "sentence-similarity"})
    assert isinstance(asked, EncoderRecipe)  # what is asked for counts


@pytest.mark.slow
def test_other_architectures_of_the_family(tmp_path: Path) -> None:
    for kind in ("MT5", "MBart", "Pegasus"):
        options = {"spread": 2.0} if kind == "MT5" else {}
        source = tiny.make_encoder_decoder(tmp_path / kind, f"{kind}ForConditionalGeneration", **options)
        recipe = Text2TextRecipe(str(source), max_new_tokens=8)
        exact, small = run.export(recipe, tmp_path / "repository").evidence
        assert exact.failures == []
        assert small.precision == "int8"  # it is built, whatever is then said of it


def test_the_tokenizer_of_these_tests_is_that_of_transformers(checkpoints: Path) -> None:
    raw = Tokenizer.from_file(str(checkpoints / "t5" / "tokenizer.json"))
    assert (
        raw.encode("Fish swim.").ids
        == AutoTokenizer.from_pretrained(checkpoints / "t5")("Fish swim.").input_ids
    )


def test_what_is_optional_need_not_be_typed(served: Server) -> None:
    with GrpcClient(served.grpc) as client:
        config, metadata = client.config("t5-greedy"), client.metadata("t5-greedy")
        assert list(tensors.arrays_of(config, metadata, ["Fish swim."], [])) == ["text"]
        assert list(tensors.sample_arrays(config, metadata)) == ["text"]
        limited = tensors.arrays_of(config, metadata, ["Fish swim."], ["max_new_tokens=1"])
        assert client.infer("t5-greedy", limited)["num_output_tokens"].tolist() == [[1]]


def test_two_versions_are_compared_by_what_they_write(repository: Path) -> None:
    (manifest,) = manifests(repository, "t5-greedy")
    answers = compare(repository, manifest, manifest)["answers"]
    assert answers["same"] == 1
    assert len(answers["tokens"]) == 3
