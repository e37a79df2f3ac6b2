"""Three small models of two versions each, exported as users do: texts, rows of a table, streams of text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.linear_model import Ridge

from export import run
from tests import tiny

VERSIONS = (1, 2)
WORDS, ROWS, TALES = "words", "rows", "tales"
MODELS = (WORDS, ROWS, TALES)
TOKENS = 40  # of a stream
TEXTS = ["Fish swim in shoals.", "a", "Whales are not fish, but mammals of the sea. " * 4]
TABLE = np.random.default_rng(7).normal(size=(4, 6)).astype(np.float32)
PROMPTS = ["Fish swim", "Once upon a time there was a whale that"]


def make(folder: Path, size: int = 1, **tales: Any) -> Path:
    """The model repository, below `folder`; the second version of each model is asked for.

    Args:
        size: of `TALES`: by how much its layers and its context are multiplied.
        tales: more for the recipe of `TALES`.
    """
    repository = folder / "model_repository"
    for version in VERSIONS:
        source = folder / f"checkpoint-{version}"
        source.mkdir(parents=True)
        table = np.random.default_rng(version).normal(size=(60, TABLE.shape[1]))
        joblib.dump(Ridge().fit(table, table @ np.arange(6) * version), source / "rows.pkl")
        layers = {"num_hidden_layers": version * size, "max_position_embeddings": 1024 * size}
        tiny.make(source / "words", "BertModel", seed=version)
        tiny.make_decoder(source / "tales", "LlamaForCausalLM", **layers)
        own = {
            WORDS: {"source": str(source / "words"), "task": "sentence-similarity"},
            ROWS: {"source": str(source / "rows.pkl"), "trust_pickle": True},
            TALES: {"source": str(source / "tales"), "task": "text-generation", **tales},
        }
        for name, values in own.items():
            given = {"name": name, "precisions": ["fp32"], **values}
            if name == ROWS:
                del given["precisions"]
            run.export(run.recipe_of(given), repository)
    return repository
