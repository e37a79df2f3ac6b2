"""Settings that stand in one of a checkpoint's files and change its answers: each gives the library's answer.

The libraries are called here as their users call them; what is served is joined in this process.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import CrossEncoder, SentenceTransformer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, pipeline

from export.raw import cases
from export.raw.served import ask
from serving.in_process import Refused
from tests import tiny
from tests.export.raw.served import edit, evidence, served

TEXTS = (
    "Fish swim in Shoals.",
    "CRÈME brûlée é è",
    "the lazy dog " * 30,
    "a",
    "  spaces  ",
    "Paris is Berlin",
)
TOKENIZER, CONFIG = "tokenizer_config.json", "config.json"
WIDTH = tiny.SIZES["hidden_size"]


def module(folder: Path, *modules: tuple[str, dict[str, Any] | None]) -> None:
    """Write `modules.json` behind a transformer, and the config of each module."""
    entries = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for index, (name, config) in enumerate(modules, 1):
        place = folder / f"{index}_{name}"
        if config is not None:
            place.mkdir()
            (place / "config.json").write_text(json.dumps(config))
        kind = f"sentence_transformers.models.{name}"
        entries.append({"idx": index, "name": str(index), "path": place.name, "type": kind})
    (folder / "modules.json").write_text(json.dumps(entries))


def pooling(**modes: bool) -> tuple[str, dict[str, Any]]:
    return "Pooling", {
        "word_embedding_dimension": WIDTH,
        **{f"pooling_mode_{k}": v for k, v in modes.items()},
    }


MEAN = pooling(mean_tokens=True)


def dense(folder: Path) -> None:
    model = SentenceTransformer(str(folder), device="cpu")
    torch.manual_seed(1)
    from sentence_transformers import models

    layers = [
        models.Dense(WIDTH, 24, activation_function=torch.nn.Tanh()),
        models.Dense(24, 16, bias=False, activation_function=torch.nn.Identity()),
        models.LayerNorm(16),
        models.Normalize(),
    ]
    SentenceTransformer(modules=[*model, *layers], device="cpu").save(str(folder))


def cased(folder: Path) -> None:
    """A tokenizer that keeps capitals; the file itself says otherwise."""
    edit(folder / TOKENIZER, tokenizer_class="BertTokenizer", do_lower_case=False, strip_accents=False)


def embedder(folder: Path) -> Path:
    return tiny.make(folder, "BertModel")


# By name: the change, and whether texts must come out otherwise than without it.
EMBEDDERS: dict[str, Callable[[Path], None]] = {
    "no modules.json": lambda f: None,
    "mean, normalized": lambda f: module(f, MEAN, ("Normalize", None)),
    "cls": lambda f: module(f, pooling(cls_token=True)),
    "max": lambda f: module(f, pooling(max_tokens=True)),
    "mean of square root": lambda f: module(f, pooling(mean_sqrt_len_tokens=True)),
    "weighted mean": lambda f: module(f, pooling(weightedmean_tokens=True)),
    "last token, normalized": lambda f: module(f, pooling(lasttoken=True), ("Normalize", None)),
    "cls and mean": lambda f: module(f, pooling(cls_token=True, mean_tokens=True), ("Normalize", None)),
    "dense layers": dense,
    "do_lower_case of the tokenizer": cased,
    "do_lower_case of sentence-transformers": lambda f: (
        cased(f),
        module(f, MEAN),
        edit(f / "sentence_bert_config.json", do_lower_case=True, max_seq_length=40),
    )[-1],
    "max_seq_length": lambda f: (
        module(f, MEAN),
        edit(f / "sentence_bert_config.json", max_seq_length=12, do_lower_case=False),
    )[-1],
    "truncation on the left": lambda f: edit(f / TOKENIZER, truncation_side="left", model_max_length=16),
    "padding on the left": lambda f: edit(f / TOKENIZER, padding_side="left"),
    "truncate_dim": lambda f: (
        module(f, MEAN, ("Normalize", None)),
        edit(f / "config_sentence_transformers.json", truncate_dim=8),
    )[-1],
    "default prompt": lambda f: (
        module(f, MEAN),
        edit(
            f / "config_sentence_transformers.json",
            prompts={"query": "find this: ", "document": "", "code": "def "},
            default_prompt_name="query",
        ),
    )[-1],
    "prompt left out of the pooling": lambda f: (
        module(f, ("Pooling", {**MEAN[1], "include_prompt": False})),
        edit(f / "config_sentence_transformers.json", prompts={"query": "find this: "}),
    )[-1],
}


@pytest.mark.parametrize("setting", EMBEDDERS)
def test_embeddings(tmp_path: Path, setting: str) -> None:
    folder = embedder(tmp_path / "checkpoint")
    EMBEDDERS[setting](folder)
    library = SentenceTransformer(str(folder), device="cpu")
    with served(folder, tmp_path / "work") as (source, caller):
        for text in TEXTS:
            expected = library.encode(text)
            got = ask(caller, "m", {"text": [text]})
            np.testing.assert_allclose(got["embedding"], expected, rtol=0, atol=2e-4, err_msg=text)
        for name in source.opened.prompts:
            got = ask(caller, "m", {"text": ["fish"], "prompt_name": [name]})
            expected = library.encode("fish", prompt_name=name)
            np.testing.assert_allclose(got["embedding"], expected, rtol=0, atol=2e-4, err_msg=name)


def test_a_transformer_in_a_folder_of_its_own(tmp_path: Path) -> None:
    """As sentence-transformers 1 saved it."""
    folder = embedder(tmp_path / "checkpoint" / "0_Transformer").parent
    module(folder, MEAN)
    entries = json.loads((folder / "modules.json").read_text())
    entries[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(entries))
    library = SentenceTransformer(str(folder), device="cpu")
    with served(folder, tmp_path / "work") as (_, caller):
        got = ask(caller, "m", {"text": ["fish"]})
        np.testing.assert_allclose(got["embedding"], library.encode("fish"), rtol=0, atol=2e-4)


def test_matryoshka_by_the_recipe(tmp_path: Path) -> None:
    folder = embedder(tmp_path / "checkpoint")
    module(folder, MEAN, ("Normalize", None))
    library = SentenceTransformer(str(folder), device="cpu", truncate_dim=5)
    with served(folder, tmp_path / "work", truncate_dim=5) as (_, caller):
        got = ask(caller, "m", {"text": ["fish"]})
        np.testing.assert_allclose(got["embedding"], library.encode("fish"), rtol=0, atol=2e-4)
        assert len(got["embedding"]) == 5


IDENTITY, TANH = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Tanh"
RERANKERS: dict[str, Callable[[Path], None]] = {
    "as version 5 saves it": lambda f: CrossEncoder(
        str(f), device="cpu", activation_fn=torch.nn.Identity()
    ).save_pretrained(str(f)),
    "as version 4 saves it": lambda f: edit(f / CONFIG, sentence_transformers={"activation_fn": IDENTITY}),
    "as version 2 saved it": lambda f: edit(f / CONFIG, sbert_ce_default_activation_function=IDENTITY),
    "without a word": lambda f: edit(
        f / CONFIG, sentence_transformers={"version": "4", "activation_fn": None}
    ),
    "another activation": lambda f: edit(f / CONFIG, sentence_transformers={"activation_fn": TANH}),
    "a default prompt": lambda f: CrossEncoder(
        str(f), device="cpu", prompts={"web": "search: "}, default_prompt_name="web"
    ).save_pretrained(str(f)),
}


@pytest.mark.parametrize("setting", RERANKERS)
def test_scores_of_pairs(tmp_path: Path, setting: str) -> None:
    folder = tiny.make(tmp_path / "checkpoint", "BertForSequenceClassification", num_labels=1)
    if setting == "without a word":
        edit(folder / "config_sentence_transformers.json", model_type="CrossEncoder")
    else:
        RERANKERS[setting](folder)
    library = CrossEncoder(str(folder), device="cpu")
    pairs = [("Paris", text) for text in TEXTS]
    expected = library.predict(pairs)
    with served(folder, tmp_path / "work") as (source, caller):
        assert source.task.name == "text-ranking"
        got = [ask(caller, "m", {"query": [q], "text": [t]})["score"][0] for q, t in pairs]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


THREE = {"num_labels": 3}
CLASSIFIERS: dict[str, tuple[str, dict[str, Any], Callable[[Path], None]]] = {
    "capitals kept": ("BertForSequenceClassification", THREE, cased),
    "token types left out": (
        "BertForSequenceClassification",
        THREE,
        lambda f: edit(f / TOKENIZER, model_input_names=["input_ids", "attention_mask"]),
    ),
    "token types that the class gives": (
        "BertForSequenceClassification",
        THREE,
        lambda f: edit(f / TOKENIZER, model_input_names=..., tokenizer_class="BertTokenizer"),
    ),
    "truncated on the left": (
        "BertForSequenceClassification",
        THREE,
        lambda f: edit(f / TOKENIZER, truncation_side="left", model_max_length=16),
    ),
    "a space before the text": (
        "RobertaForSequenceClassification",
        THREE,
        lambda f: edit(f / TOKENIZER, tokenizer_class="RobertaTokenizer", add_prefix_space=True),
    ),
    "one label": ("BertForSequenceClassification", {"num_labels": 1}, lambda f: None),
    "one label, a regression": (
        "BertForSequenceClassification",
        {"num_labels": 1, "problem_type": "regression"},
        lambda f: None,
    ),
    "several labels, a regression": (
        "BertForSequenceClassification",
        {"num_labels": 3, "problem_type": "regression"},
        lambda f: None,
    ),
    "several labels at once": (
        "BertForSequenceClassification",
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        lambda f: None,
    ),
}


def labels_of(got: Any) -> dict[str, float]:
    return dict(zip(got["label"], got["score"], strict=True))


def same_labels(got: Any, expected: list[dict[str, Any]]) -> None:
    assert labels_of(got) == pytest.approx({entry["label"]: entry["score"] for entry in expected}, abs=2e-4)


@pytest.mark.parametrize("setting", CLASSIFIERS)
def test_labels(tmp_path: Path, setting: str) -> None:
    architecture, config, change = CLASSIFIERS[setting]
    folder = tiny.make(tmp_path / "checkpoint", architecture, **config)
    change(folder)
    library = pipeline("text-classification", model=str(folder), device="cpu", top_k=None)
    with served(folder, tmp_path / "work") as (_, caller):
        for text in TEXTS:
            same_labels(ask(caller, "m", {"text": [text]}), library([text], truncation=True)[0])
            pair = {"text": "fish swim", "text_pair": text}
            same_labels(ask(caller, "m", {"text": list(pair.values())}), library(pair, truncation=True))


def test_top_k_by_the_recipe(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "checkpoint", "BertForSequenceClassification", num_labels=9)
    library = pipeline("text-classification", model=str(folder), device="cpu", top_k=7)
    with served(folder, tmp_path / "work", top_k=7) as (_, caller):
        got = ask(caller, "m", {"text": ["fish"]})
        same_labels(got, library(["fish"])[0])
        assert len(got["label"]) == 7


def last_token(folder: Path, **pad: Any) -> Path:
    """A decoder with a head for classes, which reads the last token that is no padding."""
    tiny.make_decoder(folder, "Qwen3ForSequenceClassification", head_dim=16, num_labels=3, **pad)
    edit(folder / TOKENIZER, model_max_length=128)
    return folder


@pytest.mark.parametrize("pad", [1, None])
def test_labels_of_a_decoder(tmp_path: Path, pad: int | None) -> None:
    folder = last_token(tmp_path / "checkpoint", pad_token_id=pad)
    library = pipeline("text-classification", model=str(folder), device="cpu", top_k=None)
    with served(folder, tmp_path / "work") as (_, caller):
        for text in TEXTS[:3]:
            same_labels(ask(caller, "m", {"text": [text]}), library([text], truncation=True)[0])


@pytest.mark.parametrize("spelling", ["<MASK-HERE>", "[mask]", "___"])
def test_a_mask_of_any_spelling(tmp_path: Path, spelling: str) -> None:
    folder = tiny.make(tmp_path / "checkpoint", "BertForMaskedLM")
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("[MASK]", spelling))
    raw = Tokenizer.from_file(str(path))
    PreTrainedTokenizerFast(
        tokenizer_object=raw, **{**tiny.WORDPIECE, "mask_token": spelling}
    ).save_pretrained(folder)
    library = pipeline("fill-mask", model=str(folder), device="cpu")
    text = f"Fish {spelling} in shoals."
    with served(folder, tmp_path / "work") as (_, caller):
        got = ask(caller, "m", {"text": [text]})
    expected = library(text)
    assert got["label"] == [entry["token_str"] for entry in expected]
    np.testing.assert_allclose(got["score"], [entry["score"] for entry in expected], atol=1e-4)


def test_a_mask_where_the_model_never_calls_its_output_layer(tmp_path: Path) -> None:
    sizes = {"embedding_size": 16, "true_hidden_size": 16, "intra_bottleneck_size": 16}
    folder = tiny.make(tmp_path / "checkpoint", "MobileBertForMaskedLM", **sizes)
    library = pipeline("fill-mask", model=str(folder), device="cpu", top_k=5)
    with served(folder, tmp_path / "work") as (_, caller):
        for text in ("Fish [MASK] in shoals.", "the lazy [MASK]"):
            got = ask(caller, "m", {"text": [text]})
            assert not isinstance(got, Refused)
            assert got["label"] == [entry["token_str"] for entry in library(text)]
            np.testing.assert_allclose(got["score"], [e["score"] for e in library(text)], atol=1e-4)


@pytest.mark.parametrize("labels", [["fish"], ["fish", "fowl", "é"]])
def test_zero_shot_with_one_label_and_with_several(tmp_path: Path, labels: list[str]) -> None:
    classes = {0: "entailment", 1: "neutral", 2: "contradiction"}
    names = {"num_labels": 3, "id2label": classes, "label2id": {v: k for k, v in classes.items()}}
    folder = tiny.make(tmp_path / "checkpoint", "BertForSequenceClassification", **names)
    library = pipeline("zero-shot-classification", model=str(folder), device="cpu")
    with served(folder, tmp_path / "work", task="zero-shot-classification") as (_, caller):
        got = ask(caller, "m", {"text": ["Fish swim."], "candidate_labels": labels})
    expected = library("Fish swim.", labels)
    assert got["label"] == expected["labels"]
    np.testing.assert_allclose(got["score"], expected["scores"], atol=1e-4)


def end_of_text(folder: Path) -> Path:
    """e5-mistral: `tokenizer.json` begins a text and `add_eos_token` ends it as well."""
    content = json.loads(tiny.byte_level())
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [begin, *({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    folder.mkdir()
    torch.manual_seed(0)
    config = {
        **tiny.SIZES,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": None,
        "pad_token_id": 1,
    }
    tiny.save(transformers.MistralModel(transformers.MistralConfig(**config)), folder, 6.0)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    edit(
        folder / TOKENIZER,
        tokenizer_class="LlamaTokenizer",
        add_bos_token=True,
        add_eos_token=True,
        legacy=False,
        model_max_length=128,
        **names,
    )
    return folder


def test_add_eos_token_and_a_fusion_that_is_wrong_for_rotary_embeddings(tmp_path: Path) -> None:
    folder = end_of_text(tmp_path / "checkpoint")
    module(folder, pooling(lasttoken=True), ("Normalize", None))
    library = SentenceTransformer(str(folder), device="cpu")
    assert library.tokenizer("fish")["input_ids"][-1] == 2
    with served(folder, tmp_path / "work") as (source, caller):
        got = ask(caller, "m", {"text": ["fish swim"]})
        np.testing.assert_allclose(got["embedding"], library.encode("fish swim"), rtol=0, atol=2e-4)
        assert evidence(source, caller).failures == []


@pytest.mark.parametrize(
    "architecture, task",
    [
        ("BertModel", "sentence-similarity"),
        ("BertForSequenceClassification", "text-ranking"),
        ("BertForSequenceClassification", "text-classification"),
        ("BertForSequenceClassification", "zero-shot-classification"),
        ("BertForTokenClassification", "token-classification"),
        ("BertForQuestionAnswering", "question-answering"),
        ("BertForMaskedLM", "fill-mask"),
    ],
)
def test_a_shorter_length_by_the_recipe(tmp_path: Path, architecture: str, task: str) -> None:
    classes: dict[str, Any] = {"num_labels": {"text-ranking": 1, "question-answering": 2}.get(task, 3)}
    if task == "zero-shot-classification":
        names = ["contradiction", "neutral", "entailment"]
        classes = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    folder = tiny.make(tmp_path / "checkpoint", architecture, **classes)
    with served(folder, tmp_path / "work", task=task, max_length=48) as (source, caller):
        assert source.encode.max_length == 48
        # The last ones are longer than that.
        rows = cases.cases_of(task, cases.Limits(48, mask=tiny.WORDPIECE["mask_token"]))[-16:]
        found = evidence(source, caller, rows)
    assert found.failures == [] and found.inputs > 8


def test_a_module_that_is_not_supported_is_refused_by_name(tmp_path: Path) -> None:
    from export.checkpoint.source import find_checkpoint
    from export.encoder.prepare import prepare
    from export.encoder.recipe import EncoderRecipe
    from shoal.errors import ExportError

    folder = embedder(tmp_path / "checkpoint")
    module(folder, MEAN, ("LSTM", {"word_embedding_dimension": WIDTH, "hidden_dim": 8, "num_layers": 1}))
    shutil.copy(folder / "model.safetensors", folder / "2_LSTM")
    with pytest.raises(ExportError):
        prepare(EncoderRecipe(str(folder)), find_checkpoint(str(folder)), tmp_path)
