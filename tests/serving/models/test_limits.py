"""What a request becomes is limited as well as what comes in: before it is made, where that can be told."""

from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, normalizers
from transformers import PreTrainedTokenizerFast

from serving.generation.params import BadRequest
from serving.generation.structure import grammar_of
from serving.models import inputs, layouts, stand_in, tokenizer
from serving.models.layouts import BadText, Windows, check_growth
from serving.models.text2text import batches
from serving.models.tokenizer import TokenizerSettings
from tests import tiny

PARAMETERS = {
    "layout": "text",
    "max_length": "64",
    "length_buckets": "16,64",
    "max_text_bytes": "32768",
    "max_sequences": "64",
    "pad_id": "0",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("limits")
    (made / "1").mkdir()
    raw = Tokenizer.from_str(tiny.wordpiece())
    raw.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.BertNormalizer()])
    raw.save(str(made / "1" / "tokenizer.json"))
    return made


def served(folder: Path, **parameters: str) -> Any:
    """The tokenizer's model with other parameters; `encode` gives the arrays or raises the error."""
    config = {
        "parameters": {key: {"string_value": value} for key, value in (PARAMETERS | parameters).items()},
        "output": [{"name": "input_ids"}],
    }
    model = tokenizer.TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps(config),
            "model_repository": str(folder),
            "model_version": "1",
            "model_name": "limits",
        }
    )
    return model


def encode(model: Any, **texts: list[list[str]]) -> Any:
    arrays = {
        name: np.array([[text.encode() for text in row] for row in rows], object)
        for name, rows in texts.items()
    }
    return model._encode(stand_in.InferenceRequest(arrays, ["input_ids"]))


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sequence is made."""

    def made(*_: object) -> None:
        raise AssertionError("the sequences were made")

    for layout in layouts.LAYOUTS.values():
        monkeypatch.setattr(layout, "encode", made)


@pytest.mark.usefixtures("never")
def test_labels_times_texts_are_counted_before_they_are_made(folder: Path) -> None:
    model = served(folder, layout="hypotheses", hypothesis_template="This is {}.")
    with pytest.raises(BadText, match="makes 100000 sequences of tokens, at most 64"):
        encode(model, text=[["a"]], candidate_labels=[["b"] * 100_000])


@pytest.mark.usefixtures("never")
def test_windows_are_counted_before_they_are_made(folder: Path) -> None:
    """A question that leaves room for one more token than the windows share: each window is one token on."""
    model = served(folder, layout="windows", stride="32")
    with pytest.raises(BadText, match="makes 10028 sequences of tokens, at most 64"):
        encode(model, question=[["a " * 28]], context=[["a " * 10_060]])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("question", [1, 7, 28])
@pytest.mark.parametrize("context", [1, 31, 33, 34, 60, 61, 62, 87, 88, 89, 200, 317])
def test_as_many_windows_as_transformers_makes(folder: Path, side: str, question: int, context: int) -> None:
    texts = {"question": [["a " * question]], "context": [["b " * context]]}
    layout = Windows(folder / "1" / "tokenizer.json", 64, stride="32", truncation_side=side)
    library = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "1" / "tokenizer.json"), truncation_side=side, **tiny.WORDPIECE
    )
    expected = library(
        *("a " * question, "b " * context),
        truncation="only_second",
        max_length=64,
        stride=32,
        return_overflowing_tokens=True,
    )["input_ids"]
    assert layout.count(texts) == len(expected) == len(layout.encode(texts).encodings)


def test_padded_tokens_of_a_request_are_limited(folder: Path) -> None:
    model = served(folder, max_request_tokens="640")
    assert encode(model, text=[["a " * 70]] * 10)["input_ids"].shape == (10, 64)
    assert encode(model, text=[["a " * 10]] * 40)["input_ids"].shape == (40, 16)
    said = "makes 11 sequences of 64 tokens, padding included, at most 640 tokens are accepted"
    with pytest.raises(BadText, match=said):
        encode(model, text=[["a " * 70], *[["a"]] * 10])


@pytest.mark.parametrize(
    ("most", "length", "tokens"), [(64, 256, 32_768), (64, 8192, 32_768), (1, 8192, 8192)]
)
def test_a_config_of_before_has_the_default(most: int, length: int, tokens: int) -> None:
    given = PARAMETERS | {
        "max_sequences": str(most),
        "max_length": str(length),
        "length_buckets": str(length),
    }
    config = {"parameters": {key: {"string_value": value} for key, value in given.items()}}
    assert TokenizerSettings.from_config(config).max_request_tokens == tokens


def test_a_text_that_grows_is_refused(folder: Path) -> None:
    """U+FDFA is 3 bytes, and 18 characters in NFKC."""
    model = served(folder)
    assert encode(model, text=[["\ufdfa" * 1820]])["input_ids"].shape == (1, 64)
    said = "text 1 becomes 32778 characters in the normal form that the model reads, at most 32768"
    with pytest.raises(BadText, match=said):
        encode(model, text=[["fine"], ["\ufdfa" * 1821]])


def test_texts_of_chinese_and_japanese_characters_may_be_as_long_as_before(folder: Path) -> None:
    """BERT's normalizer puts spaces around each: 3 bytes become 3 characters."""
    read = Tokenizer.from_file(str(folder / "1" / "tokenizer.json"))
    check_growth(read, ["漢" * 10_922], 32_768, "text")
    assert len(read.normalizer.normalize_str("漢" * 10_922)) == 32_766


def test_no_character_grows_more_in_any_normal_form() -> None:
    longest = max(len(unicodedata.normalize("NFKC", chr(code))) for code in range(sys.maxunicode + 1))
    assert longest == layouts.MOST_GROWTH


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1, [(0, 1), (1, 2), (2, 3), (3, 4)]),
        (80, [(0, 2), (2, 3), (3, 4)]),
        (240, [(0, 4)]),
        (239, [(0, 3), (3, 4)]),
    ],
)
def test_texts_that_fit_are_answered_together(most: int, expected: list[tuple[int, int]]) -> None:
    """Lengths with their answers, of two beams each."""
    assert list(batches([10, 20, 30, 5], 2, most)) == expected
    assert list(batches([], 2, most)) == []


@pytest.mark.parametrize("text", ["é" * 5, "\U0001f600" * 2 + "ab", "a" * 10])
def test_limits_in_bytes_count_bytes(text: str) -> None:
    """Ten bytes are taken, one more is not, however few characters they are."""
    for given, taken in ((text, True), (text + "b", False)):
        request = stand_in.InferenceRequest({"text_input": np.array([[given.encode()]], object)}, [])
        if taken:
            assert inputs.text_of(request, "text_input", 10) == given
            continue
        with pytest.raises(BadRequest, match="^text_input has 11 bytes, at most 10 are accepted; why$"):
            inputs.text_of(request, "text_input", 10, "; why")


@pytest.mark.parametrize(
    ("kind", "definition"),
    [("regex", "é" * 131_073), ("choice", ["é" * 131_073]), ("json", {"description": "é" * 131_073})],
)
def test_definitions_are_limited_in_bytes(kind: str, definition: Any) -> None:
    with pytest.raises(ValueError, match="it has 2621.* bytes, at most 262144 are accepted"):
        grammar_of(kind, definition)
