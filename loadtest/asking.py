"""One request of a workload, sent through a client, and what its caller saw of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients import ClientError
from loadtest.workloads import ANSWER_TOKENS, Request
from shoal import tensors
from shoal.dialect import INPUT_TOKENS

# Tasks that take any text, and what their requests are called; the others get the row in the model's config.
FREE_TEXT = {
    "sentence-similarity": "embed",
    "text-classification": "classify",
    "token-classification": "entities",
    "text2text-generation": "rewrite",
}
GENERATE = "generate"


@dataclass(frozen=True)
class Seen:
    """An answer.

    Attributes:
        size: bytes of arrays, or tokens of a text.
        first: when the first token was there, on the clock of `time.perf_counter`, seconds; None: no tokens.
        between: milliseconds between two tokens, on average; None: there was one part only.
        read: tokens of what was asked; None: the model does not tell.
        text: that was generated.
    """

    size: int
    first: float | None = None
    between: float | None = None
    read: int | None = None
    text: str = ""

    def until_first(self, begun: float) -> float | None:
        """Milliseconds from a time on that clock to the first token; None: there were none."""
        return None if self.first is None else 1e3 * (self.first - begun)


class Rows:
    """Asks a model that answers once.

    Args:
        client: by which the model's config is looked up.
        model: what is asked.
    """

    def __init__(self, client: Any, model: str) -> None:
        self._model = model
        self._row: dict[str, NDArray] = {}
        self._kinds: dict[str, str] = {}
        self.name, self._free = "infer", False
        try:
            config, metadata = client.config(model), client.metadata(model)
            self._row = tensors.sample_arrays(config, metadata)
        except ClientError:
            return  # what is asked of it fails, and is counted
        self._kinds = {entry["name"]: entry["datatype"] for entry in metadata["inputs"]}
        task = config.get("parameters", {}).get("task", {}).get("string_value", "")
        self._free = task in FREE_TEXT
        self.name = FREE_TEXT.get(task, "infer")

    def __call__(self, client: Any, request: Request) -> Seen:
        """Ask; a named workload's text is sent where the model takes any text, else its own sample row."""
        answer = client.infer(self._model, self._arrays(request))
        tokens = answer.get(INPUT_TOKENS)
        read = int(tokens.sum()) if tokens is not None else None
        return Seen(sum(array.nbytes for array in answer.values()), read=read)

    def _arrays(self, request: Request) -> dict[str, NDArray]:
        if "inputs" in request:
            return {name: self._column(name, values) for name, values in request["inputs"].items()}
        texts = request.get("texts") or [request["text"]]
        row = {name: np.repeat(array, len(texts), axis=0) for name, array in self._row.items()}
        if self._free:
            row["text"] = np.array([[text.encode()] for text in texts], dtype=object)
        return row

    def _column(self, name: str, values: list[Any]) -> NDArray:
        kind = self._kinds.get(name, "BYTES")
        rows = [value if isinstance(value, list) else [value] for value in values]
        if kind == "BYTES":
            return np.array([[str(value).encode() for value in row] for row in rows], dtype=object)
        return np.array(rows, tensors.dtype_of(kind))


class Answers:
    """Asks a model that generates text, and reads the answer as it streams."""

    name = GENERATE

    def __init__(self, _: Any, model: str) -> None:
        self._model = model

    def __call__(self, client: Any, request: Request) -> Seen:
        """Ask, greedily."""
        options: Mapping[str, Any] = {
            "model": self._model,
            "max_tokens": request.get("max_tokens", ANSWER_TOKENS),
            "temperature": 0,
        }
        if "messages" in request:
            stream = client.chat(request["messages"], **options)
        else:
            stream = client.generate(request["prompt"], **options)
        parts, times = [], []
        for part in stream:
            parts.append(part)
            times.append(time.perf_counter())
        tokens = sum(part.tokens for part in parts)
        later = tokens - parts[0].tokens
        between = 1e3 * (times[-1] - times[0]) / later if later > 0 else None
        text = "".join(part.text for part in parts)
        return Seen(tokens, times[0], between, parts[-1].input_tokens or None, text)


def asker(client: Any, model: str, *, generates: bool) -> Rows | Answers:
    """Who asks a model."""
    return Answers(client, model) if generates else Rows(client, model)
