"""Encoder-decoders, exported once for all tests of this folder.

Models are tiny and random. Many tokens end an answer, so that answers have different lengths and their rows
leave the batch at different times. Those in INT8 have learnt their answers: a random model's tokens are close
calls, which a trained one's are not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from export import run
from export.text2text import verify
from export.text2text.recipe import Text2TextRecipe
from tests import tiny
from tests.export.text2text.originals import ENDS, LESSONS, MODELS, TAUGHT, TEXTS, TOKENS

ARCHITECTURES = {
    "t5": ("T5ForConditionalGeneration", {"spread": 2.0, "feed_forward_proj": "gated-gelu"}),
    "bart": ("BartForConditionalGeneration", {}),
    "marian": ("MarianMTModel", {"spread": 8.0}),
}
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "no_repeat_ngram_size": 2},
}
LEARNS = {
    **{key: 1 for key in ("num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")},
    "spread": 1.0,
}


@pytest.fixture(scope="package", autouse=True)
def _fast() -> Iterator[None]:
    """Tiny models on one thread: PyTorch's threads wait for one another longer than they work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "SPEED_ROUNDS", 1)
        patch.setattr(verify, "available_cpus", lambda: 1)
        torch.set_num_threads(1)
        yield


@pytest.fixture(scope="package")
def writers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of each architecture with each search, and those that are taught."""
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


@pytest.fixture(scope="package")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the taught models have learnt, but for one target."""
    path = tmp_path_factory.mktemp("labelled") / "pairs.jsonl"
    pairs = LESSONS | {TEXTS[0]: "Something else."}
    lines = [json.dumps({"text": text, "target": target}) for text, target in pairs.items()]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="package")
def repository(writers: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("text2text") / "model_repository"
    for name in MODELS:
        recipe = run.recipe_of({"source": str(writers / name), "name": name, "precisions": ["fp32"]})
        assert isinstance(recipe, Text2TextRecipe)  # read from the checkpoint's own config
        assert run.export(recipe, made).task == "text2text-generation"
    for name in TAUGHT:
        recipe = run.recipe_of({"source": str(writers / name), "name": name, "eval_data": str(labelled)})
        assert [entry.failures for entry in run.export(recipe, made).evidence] == [[], []]
    return made
