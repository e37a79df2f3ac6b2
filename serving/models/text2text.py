"""Text in, another text out: Triton's side of `serving.text2text`, for encoder-decoder models.

The requests that wait (`serving.models.queue`) run as one batch of at most `max_batch_size` texts, or in
several where they have more than `max_num_batched_tokens` tokens: each text is answered as it would be alone,
and leaves the batch when its answer is done; the responses go out together. A text that is empty, not UTF-8
or of more than `max_text_bytes` bytes is an error of its request alone; text longer than `max_length` tokens
is truncated.

Inputs: `text` BYTES [n, 1], and optionally `max_new_tokens` INT32 [n, 1], to have shorter answers than the
model gives. Outputs: `generated_text` BYTES [n, 1], `num_output_tokens` INT32 [n, 1], the end included, and
`num_input_tokens` INT32 [n, 1], as the model reads the text: truncated, special tokens included.

Parameters in config.pbtxt: `search`, see `serving.text2text.settings`, `max_length` in tokens and
`max_text_bytes`; optionally `truncation_side`, where a text that is too long loses tokens,
`max_num_batched_tokens` and `max_queue_size`; `task` is for clients to read. It runs on the CPU.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from serving.models.admission import MAX_QUEUE_SIZE
from serving.models.backend_utils import pb_utils, version_folder
from serving.models.layouts import BadText, check_growth, load_tokenizer
from serving.models.queue import Queue
from serving.models.responses import answers
from serving.models.tokenizer import decode
from serving.onnxruntime.sessions import check_runtime
from serving.parameters import parameters_of, read
from serving.text2text import search
from serving.text2text.runner import EncoderDecoderRunner
from serving.text2text.settings import Search
from shoal.dialect import GENERATED_TEXT, INPUT_TOKENS, MAX_NEW_TOKENS, OUTPUT_TOKENS, TEXT

TOKENIZER = "tokenizer.json"
MAX_BATCHED_TOKENS = 16_384


class Text2TextSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model's parameters; lengths in tokens but `max_text_bytes`.

    Attributes:
        max_num_batched_tokens: most tokens that are in memory at once: rows times beams times the longest
            text with its answer. A text that has more by itself is answered by itself.
        max_queue_size: requests that may wait.
        task: for clients.
    """

    search: Search
    max_length: int
    max_text_bytes: int
    truncation_side: str = "right"
    max_num_batched_tokens: int = MAX_BATCHED_TOKENS
    max_queue_size: Annotated[int, msgspec.Meta(ge=1)] = MAX_QUEUE_SIZE
    task: str = ""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Text2TextSettings:
        """From a Triton model config as a dict.

        Raises:
            ValueError: a parameter is missing, unknown or not a number, or nothing may wait.
        """
        given: dict[str, Any] = dict(parameters_of(config))
        return read(cls, given | {"search": json.loads(given["search"])} if "search" in given else given)


@dataclass(frozen=True)
class Asked:
    """What one request asks: token ids of its texts, and the most tokens of each answer."""

    texts: list[list[int]]
    limits: list[int]


class TextGenerator:
    """A model with its tokenizer: texts to texts. Knows nothing of Triton.

    Args:
        folder: holds `tokenizer.json`, `encoder.onnx` and `decoder.onnx`.

    Attributes:
        runner: of the graphs.
    """

    def __init__(self, folder: Path, settings: Text2TextSettings) -> None:
        self._settings = settings
        self.runner = EncoderDecoderRunner(folder)
        self._tokenizer = load_tokenizer(
            folder / TOKENIZER, settings.max_length, side=settings.truncation_side
        )

    def tokens(self, text: str) -> list[int]:
        """Ids of a text, as the model reads it.

        Raises:
            BadText: it becomes too long when it is normalized.
        """
        check_growth(self._tokenizer, [text], self._settings.max_text_bytes, TEXT)
        return list(self._tokenizer.encode(text).ids)

    def answer(self, texts: Sequence[Sequence[int]], limits: Sequence[int]) -> list[list[int]]:
        """Token ids of each text's answer, batch by batch; see `serving.text2text.search.answer`."""
        made: list[list[int]] = []
        how, most = self._settings.search, self._settings.max_num_batched_tokens
        lengths = [len(text) + limit for text, limit in zip(texts, limits, strict=True)]
        for begin, end in batches(lengths, how.num_beams, most):
            running = self.runner.start(texts[begin:end], how.pad)
            made += search.answer(running, how, limits[begin:end])
        return made

    def text(self, tokens: Sequence[int]) -> str:
        """The text of an answer's ids, without special tokens."""
        return str(self._tokenizer.decode(list(tokens)))


def batches(lengths: Sequence[int], beams: int, most: int) -> Iterator[tuple[int, int]]:
    """Begin and end of the texts that are answered together, in their order: as many as fit, at least one.

    Args:
        lengths: of each text with its answer, in tokens.
        most: tokens that fit: rows times beams times the longest.
    """
    begin = longest = 0
    for place, length in enumerate(lengths):
        longest = max(longest, length)
        if place > begin and (place + 1 - begin) * beams * longest > most:
            yield begin, place
            begin, longest = place, length
    if lengths:
        yield begin, len(lengths)


class TritonPythonModel:
    """Triton's interface."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the version's graphs and its tokenizer."""
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        config = json.loads(args["model_config"])
        self._settings = Text2TextSettings.from_config(config)
        folder = version_folder(args)
        check_runtime(folder)
        self._answerer = TextGenerator(folder, self._settings)
        self._queue = Queue(
            self._answers,
            _rows,
            most_rows=config["max_batch_size"],
            most=self._settings.max_queue_size,
            model=args["model_name"],
        )

    def execute(self, requests: list[Any]) -> list[None]:
        """Have each request wait; answers come from the queue's thread."""
        for request in requests:
            self._queue.add(request)
        return [None] * len(requests)

    def finalize(self) -> None:
        """Stop after the batch that runs; requests that wait are told so."""
        self._queue.close()
        del self._queue

    def _answers(self, requests: Sequence[Any]) -> list[Any]:
        """One response a request, in order; a bad text fails its own request only."""
        asked = [_tried(self._read, request) for request in requests]
        good = [entry for entry in asked if isinstance(entry, Asked)]
        texts = [text for entry in good for text in entry.texts]
        limits = [limit for entry in good for limit in entry.limits]
        made = _tried(self._answerer.answer, texts, limits) if texts else []
        given, entries = iter(made if isinstance(made, list) else []), iter(asked)

        def arrays(_: Any) -> dict[str, NDArray]:
            entry = next(entries)
            for failure in (entry, made):
                if isinstance(failure, Exception):
                    raise failure
            return self._arrays(entry.texts, [next(given) for _ in entry.texts])

        return answers(requests, arrays)

    def _arrays(self, texts: Sequence[list[int]], found: Sequence[list[int]]) -> dict[str, NDArray]:
        """The outputs, of the token ids of texts and of their answers. Triton leaves out `num_input_tokens`
        where the config of an older version does not list it."""
        made = [[self._answerer.text(tokens).encode()] for tokens in found]
        return {
            GENERATED_TEXT: np.array(made, object),
            OUTPUT_TOKENS: np.array([[len(tokens)] for tokens in found], np.int32),
            INPUT_TOKENS: np.array([[len(tokens)] for tokens in texts], np.int32),
        }

    def _read(self, request: Any) -> Asked:
        given = pb_utils.get_input_tensor_by_name(request, TEXT).as_numpy()
        texts = [self._answerer.tokens(text) for (text,) in decode(given, self._settings, TEXT)]
        return Asked(texts, self._limits(request, len(texts)))

    def _limits(self, request: Any, count: int) -> list[int]:
        tensor = pb_utils.get_input_tensor_by_name(request, MAX_NEW_TOKENS)
        most = self._settings.search.max_new_tokens
        if tensor is None:
            return [most] * count
        limits = [int(limit) for limit in tensor.as_numpy().reshape(-1)]
        for limit in limits:
            if not 1 <= limit <= most:
                raise BadText(f"{MAX_NEW_TOKENS} is {limit}, it must be from 1 to {most}")
        return limits


def _rows(request: Any) -> int:
    return len(pb_utils.get_input_tensor_by_name(request, TEXT).as_numpy())


def _tried(call: Any, *arguments: Any) -> Any:
    """What a call gives, or what it raises."""
    try:
        return call(*arguments)
    except Exception as error:  # noqa: BLE001 - the requests beside this one must not fail with it
        return error
