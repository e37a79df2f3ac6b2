"""Two versions of a model side by side: files, evidence, settings, and answers to the same input.

Answers are those of the networks, run in this process on what the served tokenizer makes of sample text;
of a decoder, the tokens it chooses. Needs the extra `serve`, and neither the checkpoint nor PyTorch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import json_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2 as triton

from shoal import corpus, model_config
from shoal.manifest import Manifest
from shoal.names import TOKENIZER, part_name

ROWS = 16
TOKENS = 24  # that a decoder writes
PROMPTS = ("Fish swim in shoals because", "The capital of France is", "def add(a, b):")
# Evidence that says how and where it was taken, not how good a version is.
_RAW = ("agreement", "inputs", "largest", "tokens")
_CIRCUMSTANCES = (
    "raw",
    "cases",
    "cpus",
    "failures",
    "proven",
    "precision",
    "notes",
    "task",
    "rows_from",
    "serving",
)


def compare(repository: Path, first: Manifest, second: Manifest) -> dict[str, Any]:
    """What differs.

    Returns:
        `files`: by path, the size in each, where content differs or one lacks it; `evidence`, `recipe` and
        `tools`: by key, both values where they differ; `answers`: see `answers_of`.

    Raises:
        RepositoryError: a file is not the one that was measured.
    """
    for manifest in (first, second):
        manifest.check_files(repository)
    figures = [_flat(manifest.evidence) for manifest in (first, second)]
    return {
        "files": _files(repository, first, second),
        "evidence": _differing(*figures),
        "recipe": _differing(first.recipe, second.recipe),
        "tools": _differing(first.tools, second.tools),
        "answers": answers_of(repository, first, second),
    }


def _files(repository: Path, first: Manifest, second: Manifest) -> dict[str, list[int | None]]:
    def by_part(manifest: Manifest) -> dict[str, tuple[str, int]]:
        return {
            str(Path(path.parts[0], *path.parts[2:])): (digest, (repository / path).stat().st_size)
            for name, digest in manifest.files.items()
            for path in [Path(name)]
        }

    sides = by_part(first), by_part(second)
    return {
        name: [side[name][1] if name in side else None for side in sides]
        for name in sorted({*sides[0], *sides[1]})
        if sides[0].get(name) != sides[1].get(name)
    }


def _flat(evidence: Mapping[str, Any]) -> dict[str, Any]:
    raw = {f"raw {key}": value for key, value in (evidence.get("raw") or {}).items() if key in _RAW}
    return raw | {key: value for key, value in evidence.items() if key not in _CIRCUMSTANCES}


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[Any]]:
    keys = dict.fromkeys((*first, *second))
    return {key: [first.get(key), second.get(key)] for key in keys if first.get(key) != second.get(key)}


def answers_of(repository: Path, first: Manifest, second: Manifest) -> dict[str, Any]:
    """How far two versions' answers to the same input are apart, by output.

    Returns:
        Of numbers, `max_abs_diff` and `same_choice` (share of rows whose largest number is at one place), of
        embeddings `min_cosine`; of text, `same` (share of entries); of a decoder, the `tokens` of each and
        the share that is the `same`.
    """
    if first.recipe.get("task") == "text-generation":
        return _written(repository, first, second)
    if first.recipe.get("task") == "text2text-generation":
        return _rewritten(repository, first, second)
    feed = _feed(repository, second)
    outputs = [_run(repository, manifest, feed) for manifest in (first, second)]
    return {
        name: _apart(outputs[0][name], outputs[1][name], ranks=name != "embedding")
        for name in outputs[0]
        if name in outputs[1] and outputs[0][name].shape == outputs[1][name].shape
    }


def _apart(first: NDArray, second: NDArray, *, ranks: bool) -> dict[str, float]:
    if first.dtype == object:
        return {"same": float((first == second).mean())}
    apart = {"max_abs_diff": float(np.abs(first - second).max())}
    if not ranks:
        norms = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
        apart["min_cosine"] = float(((first * second).sum(axis=-1) / norms).min())
    elif first.ndim > 1 and first.shape[-1] > 1:
        apart["same_choice"] = float((first.argmax(-1) == second.argmax(-1)).mean())
    return apart


def _run(repository: Path, manifest: Manifest, feed: Mapping[str, NDArray]) -> dict[str, NDArray]:
    from serving.onnxruntime.sessions import measured_session

    path = repository / manifest.network / str(manifest.version) / "model.onnx"
    session = measured_session(path)
    names = [value.name for value in session.get_outputs()]
    given = {value.name: feed[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, given), strict=True))


def _feed(repository: Path, manifest: Manifest) -> dict[str, NDArray]:
    """Inputs of a version's network: of sample text where it has a tokenizer, of the row that it says it
    takes where it is of tables, random numbers where neither."""
    from serving.models.layouts import LAYOUTS
    from serving.models.tokenizer import TokenizerSettings

    network = _config(manifest, manifest.network)
    tokenizer = part_name(manifest.model, TOKENIZER)
    if manifest.recipe.get("task") == "tabular":
        return _table_feed(repository, manifest)
    if tokenizer not in manifest.configs:
        chance = np.random.default_rng(0)
        return {entry.name: _random(entry, chance) for entry in network.input}
    config = _config(manifest, tokenizer)
    settings = TokenizerSettings.from_config(
        json_format.MessageToDict(config, preserving_proto_field_name=True)
    )
    version = next(Path(name).parts[1] for name in manifest.files if Path(name).parts[0] == tokenizer)
    path = repository / tokenizer / version / "tokenizer.json"
    layout = LAYOUTS[settings.layout](path, settings.max_length, **settings.options)
    mask = settings.options.get("mask_token", "")
    texts = [f"{mask} {text}".strip() for text in corpus.texts(ROWS)]
    few = ["a question", "an answer", "a warning"]
    rows = {name: [few if name == "candidate_labels" else [text] for text in texts] for name in layout.INPUTS}
    batch = layout.encode(rows)
    feed = batch.arrays(
        settings.bucket(batch.longest), settings.pad_id, [output.name for output in config.output]
    )
    return feed | {name: np.array(values, object) for name, values in rows.items()}


def _table_feed(repository: Path, manifest: Manifest) -> dict[str, NDArray]:
    """Rows about the one that the model says it takes: its texts, and numbers near its own."""
    from serving.models.rows import FILENAME, Reader

    called = _config(manifest, manifest.model)
    sample = json.loads(called.parameters["sample"].string_value)
    chance = np.random.default_rng(0)
    sent: dict[str, NDArray] = {}
    for entry in called.input:
        row = sample[entry.name]
        if entry.data_type == triton.DataType.TYPE_STRING:
            sent[entry.name] = np.array([[text.encode() for text in row]] * ROWS, object)
        else:
            kind = np.float64 if entry.data_type == triton.DataType.TYPE_FP64 else np.float32
            sent[entry.name] = (np.array([row]) * chance.normal(1.0, 0.3, (ROWS, len(row)))).astype(kind)
            sent[entry.name][0] = row
    reader = next((repository / name for name in manifest.files if Path(name).name == FILENAME), None)
    if reader is not None:
        known = Reader.from_json(reader.read_text(encoding="utf-8"))
        sent = Reader((), known.texts).read(sent)  # near a number may be none that it takes
    return {
        name: array if array.dtype != object else np.vectorize(bytes.decode, otypes=[object])(array)
        for name, array in sent.items()
    }


def _random(entry: triton.ModelInput, chance: np.random.Generator) -> NDArray:
    # A picture's sides are free in the config; 224 is what most networks read.
    return chance.standard_normal((ROWS, *(size if size > 0 else 224 for size in entry.dims))).astype(
        np.float32
    )


def _config(manifest: Manifest, model: str) -> triton.ModelConfig:
    return model_config.parse(manifest.configs[model])


def _written(repository: Path, first: Manifest, second: Manifest) -> dict[str, Any]:
    """What two decoders write after the same beginnings, the likeliest token each time."""
    from tokenizers import Tokenizer

    from serving.generation.runtime import graph_in, open_runner

    answers: list[list[list[int]]] = []
    for manifest in (first, second):
        folder = repository / manifest.network / str(manifest.version)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        runner = open_runner(graph_in(folder), rows=1, max_length=TOKENS + 64)
        answers.append([_greedy(runner, tokenizer.encode(prompt).ids) for prompt in PROMPTS])
    pairs = [(a, b) for one, other in zip(*answers, strict=True) for a, b in zip(one, other, strict=True)]
    texts = {
        prompt: [tokenizer.decode(side[index]) for side in answers] for index, prompt in enumerate(PROMPTS)
    }
    return {"tokens": texts, "same": sum(a == b for a, b in pairs) / len(pairs)}


def _rewritten(repository: Path, first: Manifest, second: Manifest) -> dict[str, Any]:
    """What two encoder-decoders make of the same texts, as they are served."""
    from serving.models.text2text import Text2TextSettings, TextGenerator

    texts = corpus.texts(len(PROMPTS))
    answers = []
    for manifest in (first, second):
        config = json_format.MessageToDict(
            _config(manifest, manifest.network), preserving_proto_field_name=True
        )
        folder = repository / manifest.network / str(manifest.version)
        answerer = TextGenerator(folder, Text2TextSettings.from_config(config))
        made = answerer.answer([answerer.tokens(text) for text in texts], [TOKENS] * len(texts))
        answers.append([answerer.text(tokens) for tokens in made])
    pairs = list(zip(*answers, strict=True))
    return {
        "tokens": dict(zip(texts, map(list, pairs), strict=True)),
        "same": sum(a == b for a, b in pairs) / len(pairs),
    }


def _greedy(runner: Any, prompt: list[int]) -> list[int]:
    written: list[int] = [int(runner.prefill(0, prompt, 0, [len(prompt) - 1])[0].argmax())]
    while len(written) < TOKENS:
        logits = runner.decode([written[-1]], [len(prompt) + len(written) - 1])
        written.append(int(logits[0].argmax()))
    return written
