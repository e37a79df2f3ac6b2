"""Files of a checkpoint that are missing, cut off or something else."""

from __future__ import annotations

import json

import torch

from tests.broken.damage import CONFIG, WEIGHTS, Case, cut, weights, write
from tests.export.raw.served import edit

FILES: dict[str, Case] = {
    "an empty folder": ("bert", lambda f: [p.unlink() for p in f.iterdir()], [], 1, "has no config.json"),
    "no weights": (
        "bert",
        lambda f: (f / WEIGHTS).unlink(),
        [],
        1,
        r"has no \*\.safetensors \(load it where",
    ),
    "a pickle": (
        "bert",
        lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"),
        [],
        1,
        r"only pytorch_model.bin, which is a pickle \(load it where you trust it and save it again",
    ),
    "an adapter": (
        "bert",
        lambda f: ((f / CONFIG).unlink(), (f / WEIGHTS).unlink(), write(f / "adapter_config.json", "{}")),
        [],
        1,
        "holds an adapter and no model .*merge_and_unload",
    ),
    "an empty config": (
        "bert",
        lambda f: write(f / CONFIG, ""),
        [],
        1,
        "config.json cannot be read: .*complete",
    ),
    "half a config": ("bert", lambda f: cut(f / CONFIG), [], 1, "config.json cannot be read"),
    "a list for a config": ("bert", lambda f: write(f / CONFIG, "[]"), [], 1, "holds no JSON object"),
    "a config that is not UTF-8": (
        "bert",
        lambda f: write(f / CONFIG, b"\xff\xfe{"),
        [],
        1,
        "cannot be read",
    ),
    "a config that nests": ("bert", lambda f: write(f / CONFIG, "[" * 100_000), [], 1, "cannot be read"),
    "no model_type": (
        "bert",
        lambda f: edit(f / CONFIG, model_type=...),
        [],
        1,
        "model_type None, unknown to",
    ),
    "an unknown model_type": (
        "bert",
        lambda f: edit(f / CONFIG, model_type="bort"),
        [],
        1,
        "model_type 'bort'",
    ),
    "code of its own": (
        "bert",
        lambda f: edit(f / CONFIG, model_type="bort", auto_map={"AutoModel": "bort.Bort"}),
        [],
        1,
        "the code of BertModel comes with the checkpoint and is not run",
    ),
    "a config of another width": (
        "bert",
        lambda f: edit(f / CONFIG, hidden_size=48),
        [],
        1,
        "cannot open|shape",
    ),
    "a config with text for a number": (
        "bert",
        lambda f: edit(f / CONFIG, hidden_size="wide"),
        [],
        1,
        "bert",
    ),
    "half the weights": (
        "bert",
        lambda f: cut(f / WEIGHTS),
        [],
        1,
        f"{WEIGHTS} is cut off or damaged .*copy",
    ),
    "empty weights": ("bert", lambda f: write(f / WEIGHTS, ""), [], 1, "is cut off or damaged"),
    "text for weights": (
        "bert",
        lambda f: write(f / WEIGHTS, "version https://git-lfs"),
        [],
        1,
        "is cut off or damaged .*git lfs pull",
    ),
    "a matrix is missing": (
        "bert",
        weights(lambda t: t.pop("encoder.layer.1.output.dense.weight")),
        [],
        1,
        "has no weights for sentence-similarity: encoder.layer.1.output.dense.weight is missing",
    ),
    "a matrix of another shape": (
        "bert",
        weights(lambda t: t.update({"embeddings.word_embeddings.weight": torch.zeros(9, 32)})),
        [],
        1,
        "cannot open .*bert: ",
    ),
    "a shard is missing": (
        "bert",
        lambda f: (
            (f / WEIGHTS).rename(f / "model-00001-of-00002.safetensors"),
            write(
                f / "model.safetensors.index.json",
                json.dumps({"metadata": {}, "weight_map": {"a": "model-00002-of-00002.safetensors"}}),
            ),
        ),
        [],
        1,
        "cannot open .*bert: ",
    ),
    "quantized by a library that is not here": (
        "bert",
        lambda f: edit(f / CONFIG, quantization_config={"quant_method": "awq", "bits": 4}),
        [],
        1,
        "cannot open .*bert: ",
    ),
}
