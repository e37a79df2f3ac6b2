"""Modules and settings of sentence-transformers that cannot be."""

from __future__ import annotations

from tests import tiny
from tests.broken.damage import CONFIG, FIRST, MEAN, POOLING, SENTENCE, Case, another, modules, write
from tests.export.raw.served import edit

MODULES: dict[str, Case] = {
    "half a modules.json": (
        "bert",
        lambda f: write(f / "modules.json", '[{"idx"'),
        [],
        1,
        "cannot open .*bert: ",
    ),
    "an object for modules": ("bert", lambda f: write(f / "modules.json", "{}"), [], 1, "bert"),
    "a module of no known type": (
        "bert",
        modules(FIRST, "sentence_transformers.models.Poling"),
        [],
        1,
        "Poling",
    ),
    "a module with code of its own": (
        "bert",
        modules(FIRST, "custom.Pooling"),
        [],
        1,
        "cannot open .*bert: ",
    ),
    "a module that is not supported": (
        "bert",
        modules(
            FIRST,
            POOLING,
            "sentence_transformers.models.WordWeights",
            _1=MEAN,
            _2={"vocab": [], "word_weights": {}, "unknown_word_weight": 1},
        ),
        [],
        1,
        "uses the module .*WordWeights, which is not supported .*Pooling, Dense",
    ),
    "no pooling": ("bert", modules(FIRST), [], 1, "has no Pooling behind its transformer"),
    "pooling without a config": ("bert", modules(FIRST, POOLING), [], 1, "cannot open .*bert: "),
    "pooling of no known mode": (
        "bert",
        modules(FIRST, POOLING, _1={"embedding_dimension": 32, "pooling_mode": "median"}),
        [],
        1,
        "cannot open .*bert: .*median",
    ),
    "a dense layer as a pickle": (
        "bert",
        lambda f: (
            modules(FIRST, POOLING, "sentence_transformers.models.Dense", _1=MEAN, _2={})(f),
            write(f / "2_M" / "pytorch_model.bin", "pickle"),
        ),
        [],
        1,
        "pytorch_model.bin is a pickle, which is not read",
    ),
    "half a config of sentence-transformers": (
        "bert",
        lambda f: write(f / SENTENCE, "{"),
        [],
        1,
        "cannot be read",
    ),
    "a default prompt that there is not": (
        "bert",
        lambda f: (
            modules(FIRST, POOLING, _1=MEAN)(f),
            edit(f / SENTENCE, prompts={}, default_prompt_name="q"),
        ),
        [],
        1,
        "cannot open .*bert: Default prompt name 'q' not found",
    ),
    "a sparse encoder": (
        "bert",
        lambda f: edit(f / SENTENCE, model_type="SparseEncoder"),
        [],
        1,
        "is a BertModel for sparse vectors, which is not supported",
    ),
    "a ranker with three classes": (
        "classes",
        lambda f: None,
        ["--task", "text-ranking"],
        1,
        "a reranker has one",
    ),
    "an activation that runs code": (
        "bert",
        lambda f: (
            another("BertForSequenceClassification", num_labels=1, **tiny.SIZES)(f),
            edit(f / CONFIG, sentence_transformers={"activation_fn": "torch.nn.Nope"}),
        ),
        [],
        1,
        "cannot open .*bert as a cross-encoder: .*Nope",
    ),
}
