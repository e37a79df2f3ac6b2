"""Text in, token ids out: the first step of every text ensemble.

Needs `tokenizers` and numpy, not transformers. What a request holds and how it is encoded is the layout's
business (`serving.models.layouts`). Each request is padded to the smallest of a few bucket lengths that
holds its longest sequence, so that requests of different lengths meet in one batch of the network behind.
Text longer than `max_length` tokens is truncated; an empty text, text that is not UTF-8, or text of more
than `max_text_bytes` bytes, or of as many characters once it is normalized, is an error of that request
alone. So are more sequences than `max_sequences`, and more tokens than `max_request_tokens`, padding counted.

Of a share of requests a monitor is shown a row, where whoever starts the server wants that:
`serving.drift.sampler`.

Parameters in config.pbtxt: `layout`, `max_length` and `length_buckets` in tokens, `max_text_bytes`,
`max_sequences` and `max_request_tokens` (optional) of one request, `max_queue_size` (optional) of
`serving.models.admission`, `pad_id`, and what the layout needs or understands. Its outputs are those that
the config lists: features, and `num_input_tokens`, which users get beside the answer and older configs lack.
"""

from __future__ import annotations

import json
import os
import random
from bisect import bisect_left
from collections.abc import Iterable
from typing import Any, Protocol

import msgspec

from serving import heartbeat
from serving.drift.sampler import TrafficSampler
from serving.models.admission import PARAMETER, Admission
from serving.models.backend_utils import version_folder
from serving.models.layouts import LAYOUTS, BadText, check_growth
from serving.models.responses import answers, inputs, optional
from serving.models.sequences import Batch
from serving.parameters import parameters_of, read
from shoal.machine import available_cpus

# Of a request with as many sequences as it may have; of longer ones it may have fewer.
TOKENS_PER_SEQUENCE = 512


def most_request_tokens(max_sequences: int, max_length: int) -> int:
    """Tokens of one request, where nothing else is said; one sequence always fits."""
    return max(max_sequences * TOKENS_PER_SEQUENCE, max_length)


class TokenizerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tokenizer's parameters, all lengths in tokens but `max_text_bytes`.

    Attributes:
        max_request_tokens: most tokens of one request; 0: see `most_request_tokens`.
        options: those of the layout.
    """

    layout: str
    max_length: int
    length_buckets: tuple[int, ...]
    max_text_bytes: int
    max_sequences: int
    pad_id: int
    max_request_tokens: int = 0
    options: dict[str, str] = msgspec.field(default_factory=dict)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TokenizerSettings:
        """From a Triton model config as a dict.

        Raises:
            ValueError: a parameter is missing, unknown or not a number.
        """
        given: dict[str, Any] = dict(parameters_of(config))
        given.pop(PARAMETER, None)
        layout = LAYOUTS.get(given.get("layout", ""))
        if layout is None:
            raise ValueError(f"unknown layout {given.get('layout')}; known: {', '.join(LAYOUTS)}")
        if missing := [name for name in layout.OPTIONS if name not in given]:
            raise ValueError(f"parameters of layout {given['layout']} are missing: {', '.join(missing)}")
        if "options" in given:
            raise ValueError("the parameter options is unknown")
        own = {*layout.OPTIONS, *layout.OPTIONAL}
        given["options"] = {name: given.pop(name) for name in sorted(own & set(given))}
        given["length_buckets"] = [length.strip() for length in given.get("length_buckets", "").split(",")]
        made = read(cls, given)
        buckets, length = made.length_buckets, made.max_length
        if list(buckets) != sorted(set(buckets)) or buckets[-1] != length:
            raise ValueError(f"length_buckets must rise and end at max_length {length}, not {buckets}")
        most = made.max_request_tokens or most_request_tokens(made.max_sequences, length)
        return msgspec.structs.replace(made, max_request_tokens=most)

    def bucket(self, tokens: int) -> int:
        """The smallest bucket that holds `tokens`."""
        return self.length_buckets[bisect_left(self.length_buckets, tokens)]


class Limits(Protocol):
    """How long a text may be: read up to `max_length` tokens, refused beyond `max_text_bytes`."""

    @property
    def max_length(self) -> int: ...
    @property
    def max_text_bytes(self) -> int: ...


def decode(rows: Iterable[Iterable[bytes]], limits: Limits, what: str = "text") -> list[list[str]]:
    """Bytes of one input of a request, by row, to text.

    Args:
        what: the name of the input.

    Raises:
        BadText: a text is empty, too long or not UTF-8.
    """
    return [[_text(text, f"{what} {index}", limits) for text in row] for index, row in enumerate(rows)]


def _text(given: bytes, what: str, limits: Limits) -> str:
    if len(given) > limits.max_text_bytes:
        raise BadText(
            f"{what} has {len(given)} bytes, at most {limits.max_text_bytes} are accepted;"
            f" the model reads the first {limits.max_length} tokens, so send less"
        )
    try:
        text = given.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadText(f"{what} is not UTF-8: byte {error.start} is 0x{given[error.start]:02x}") from None
    if not text.strip():
        raise BadText(f"{what} is empty; leave it out of the request")
    return text


class TritonPythonModel:
    """Triton's interface: BYTES inputs [n, texts] to the outputs that the config lists."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load `tokenizer.json` from the version's folder."""
        heartbeat.start()
        # While a request is tokenized the network waits for it, so the CPUs are free: 32 texts of 16
        # tokens take 1.2 ms on two threads and 2.5 ms on one.
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        os.environ["RAYON_NUM_THREADS"] = str(available_cpus())
        config = json.loads(args["model_config"])
        self._settings = settings = TokenizerSettings.from_config(config)
        self._outputs = [output["name"] for output in config["output"]]
        path = version_folder(args) / "tokenizer.json"
        self._layout = LAYOUTS[settings.layout](path, settings.max_length, **settings.options)
        self._sampler = TrafficSampler(args["model_name"], args["model_version"])
        self._admission = Admission.of(args["model_name"], config)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, in order; a bad text fails its own request only."""
        return answers(requests, self._encode, self._admission)

    def _encode(self, request: Any) -> dict[str, Any]:
        settings = self._settings
        names = self._layout.INPUTS
        given = dict(zip(names, inputs(request, *names), strict=True)) | optional(
            request, *self._layout.OPTIONAL_INPUTS
        )
        texts = {name: decode(rows, settings, name) for name, rows in given.items()}
        for name, rows in texts.items():
            flat = [text for row in rows for text in row]
            check_growth(self._layout.tokenizer, flat, settings.max_text_bytes, name)
        count = self._layout.count(texts)
        if count > settings.max_sequences:
            raise BadText(
                f"the request makes {count} sequences of tokens, at most"
                f" {settings.max_sequences} are accepted; send fewer rows, labels or shorter texts"
            )
        batch = self._layout.encode(texts)
        length = settings.bucket(batch.longest)
        if count * length > settings.max_request_tokens:
            raise BadText(
                f"the request makes {count} sequences of {length} tokens, padding included, at most"
                f" {settings.max_request_tokens} tokens are accepted; send fewer rows or shorter texts"
            )
        if self._sampler.wants:
            self._show(batch)
        return batch.arrays(length, settings.pad_id, self._outputs)

    def _show(self, batch: Batch) -> None:
        """Let a monitor have the first sequence of any row."""
        encoding = random.choice(batch.encodings[:: batch.sequences or 1])  # noqa: S311 - a sample
        self._sampler.send(encoding.ids, encoding.type_ids if "token_type_ids" in self._outputs else None)
