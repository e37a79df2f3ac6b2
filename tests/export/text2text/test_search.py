"""What is read of a checkpoint: each rule of its search, and those that cannot be exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import GenerationConfig

from export import run
from export.checkpoint.opened import open_tokenizer
from export.encoder.recipe import EncoderRecipe
from export.text2text.checkpoint import find_encoder_decoder, load_original, search_of
from export.text2text.recipe import Text2TextRecipe
from export.text2text.to_onnx import to_onnx
from serving.models.text2text import Text2TextSettings, TextGenerator
from serving.text2text.search import answer
from serving.text2text.settings import Search
from shoal.errors import ExportError, UsageError
from tests import tiny
from tests.export.text2text.originals import ENDS, TEXTS, TOKENS, up_to_end

RULES: list[dict[str, Any]] = [
    {"num_beams": 3, "early_stopping": "never", "length_penalty": 0.5},
    {"num_beams": 2, "length_penalty": -1.0},
    {"num_beams": 4, "min_length": 9, "repetition_penalty": 1.5},
    {"min_length": 6, "repetition_penalty": 1.5, "no_repeat_ngram_size": 3},
    {"num_beams": 4, "forced_bos_token_id": 7, "forced_eos_token_id": 2, "eos_token_id": 2},
    {"forced_bos_token_id": 7, "forced_eos_token_id": 2, "bad_words_ids": [[300], [2]]},
    {"num_beams": 4, "suppress_tokens": list(range(200, 500)), "early_stopping": True},
]


def test_every_rule_of_the_search(writers: Path, tmp_path: Path) -> None:
    source = writers / "marian"
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


def test_limits_are_of_each_row(writers: Path, repository: Path) -> None:
    folder = repository / "bart-beams" / "1"
    model = load_original(find_encoder_decoder(str(writers / "bart-beams")))
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


def test_checkpoints_that_cannot_be(writers: Path, tmp_path: Path) -> None:
    def refused(**config: Any) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(writers / "marian", folder)
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
    model = load_original(find_encoder_decoder(str(writers / "marian")))
    for key, value in {"do_sample": True, "bad_words_ids": [[3, 4]], "num_beam_groups": 2}.items():
        setattr(model.generation_config, key, value)
        with pytest.raises(ExportError, match=key):
            search_of(model, Text2TextRecipe("x"))
        setattr(model.generation_config, key, None)
    with pytest.raises(UsageError, match="unknown precision int4"):
        Text2TextRecipe("x", precisions=("int4",))
    with pytest.raises(UsageError, match="num_beams is 0: expected `int` >= 1"):
        Text2TextRecipe("x", num_beams=0)
    asked = run.recipe_of({"source": str(writers / "t5"), "name": "x", "task": "sentence-similarity"})
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
