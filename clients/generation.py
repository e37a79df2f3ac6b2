"""The vocabulary of text generation, in the dialect of Triton's vLLM backend. No transport.

One client serves Shoal's own decoders and the vLLM backend: what the latter does not know
(`num_cached_tokens`) is asked for only where a model has it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.errors import BadInput
from shoal.dialect import (
    CACHED_TOKENS,
    FINISH_REASON,
    INPUT_TOKENS,
    LOGPROBS,
    MESSAGES,
    OUTPUT_TOKENS,
    RETURN,
    SAMPLING,
    STREAM,
    TEXT_INPUT,
    TEXT_OUTPUT,
)

FLAGS = tuple(f"{RETURN}{name}" for name in (FINISH_REASON, INPUT_TOKENS, OUTPUT_TOKENS, CACHED_TOKENS))


@dataclass(frozen=True)
class Part:
    """What came in one response.

    Attributes:
        text: new text.
        tokens: how many tokens it is made of.
        finish_reason: `stop` or `length` in the last part, "" before.
        input_tokens: of the prompt.
        cached_tokens: of the prompt, those the server had computed before.
        logprobs: for each token, {token id: {"logprob", "rank", "decoded_token"}}; [] if not asked for.
    """

    text: str
    tokens: int
    finish_reason: str
    input_tokens: int
    cached_tokens: int
    logprobs: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Answer:
    """All parts of one answer together; the attributes are those of `Part`."""

    text: str
    finish_reason: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    logprobs: tuple[Mapping[str, Any], ...] = ()


def joined(parts: Iterable[Part]) -> Answer:
    """Parts, at least one, as a whole."""
    collected = list(parts)
    last = collected[-1]
    return Answer(
        "".join(part.text for part in collected),
        last.finish_reason,
        last.input_tokens,
        sum(part.tokens for part in collected),
        last.cached_tokens,
        tuple(entry for part in collected for entry in part.logprobs),
    )


def _plain(value: Any) -> Any:
    """Turn a number or an array of numpy into what JSON has."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"one of them holds a {type(value).__name__}")


def sampling_text(prompt: str, sampling: Mapping[str, Any]) -> str:
    """`sampling_parameters` as JSON, whatever their names: the server knows them.

    Raises:
        BadInput: the prompt is not text, or a value cannot be written as JSON.
    """
    if not isinstance(prompt, str):
        raise BadInput(f"the prompt is {type(prompt).__name__}, not str")
    if not prompt:
        raise BadInput("the prompt is empty")
    try:
        prompt.encode()
        return json.dumps(dict(sampling), allow_nan=False, default=_plain)
    except UnicodeEncodeError as error:
        raise BadInput(f"the prompt cannot be encoded as UTF-8: {error.reason}") from error
    except RecursionError:
        raise BadInput("sampling parameters are nested too deep") from None
    except (TypeError, ValueError) as error:
        raise BadInput(f"sampling parameters cannot be written as JSON: {error}") from error


def request_arrays(prompt: str, sampling: Mapping[str, Any]) -> dict[str, NDArray]:
    """Inputs of a streaming request, each of shape [1]."""
    parameters = sampling_text(prompt, sampling)
    arrays = {
        TEXT_INPUT: np.array([prompt.encode()], dtype=object),
        SAMPLING: np.array([parameters.encode()], dtype=object),
        STREAM: np.array([True]),
    }
    if sampling.get("logprobs") is not None:
        arrays[f"{RETURN}{LOGPROBS}"] = np.array([True])
    return arrays


def conversation_arrays(
    messages: Sequence[Mapping[str, Any]], sampling: Mapping[str, Any]
) -> dict[str, NDArray]:
    """Inputs of a streaming request whose prompt the server makes of a conversation, each of shape [1].

    Raises:
        BadInput: there is no message, or a value cannot be written as JSON.
    """
    if isinstance(messages, str | bytes | Mapping) or not messages:
        raise BadInput("the conversation is empty or no list", hint="pass a list with at least one message")
    arrays = request_arrays("a conversation", sampling)
    del arrays[TEXT_INPUT]
    try:
        text = json.dumps({"messages": [dict(message) for message in messages]}, ensure_ascii=False)
        arrays[MESSAGES] = np.array([text.encode()], dtype=object)
    except UnicodeEncodeError as error:
        raise BadInput(f"a message cannot be encoded as UTF-8: {error.reason}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"messages cannot be written as JSON: {error}") from error
    return arrays


def flags_of(known: Collection[str]) -> dict[str, NDArray]:
    """Inputs that ask for counts and the finish reason: those of `FLAGS` that are among a model's inputs."""
    return {flag: np.array([True]) for flag in FLAGS if flag in known}


def as_json(inputs: Mapping[str, NDArray]) -> dict[str, Any]:
    """`request_arrays` for Triton's `generate_stream`."""
    return {
        name: array[0].decode() if isinstance(array[0], bytes) else bool(array[0])
        for name, array in inputs.items()
    }


def part_of(outputs: Mapping[str, Any]) -> Part:
    """One response as a part; values are arrays or, over HTTP, plain."""

    def first(name: str, default: Any) -> Any:
        value = outputs.get(name)
        if value is None:
            return default
        # NumPy's own types for text drop zeros at its end, which a token may be.
        kind = object if isinstance(value, str | bytes | list) else None
        flat = np.asarray(value, kind).reshape(-1)
        return flat[0] if len(flat) else default

    reason = _text(first(FINISH_REASON, ""))
    return Part(
        text=_text(first(TEXT_OUTPUT, "")),
        tokens=int(first(OUTPUT_TOKENS, 0)),
        finish_reason="" if reason == "None" else reason,  # as the vLLM backend writes it
        input_tokens=int(first(INPUT_TOKENS, 0)),
        cached_tokens=int(first(CACHED_TOKENS, 0)),
        logprobs=tuple(json.loads(_text(first(LOGPROBS, "[]"))) or ()),
    )


def _text(value: Any) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)


def microseconds(timeout: float) -> int:
    """A deadline as Triton takes it, of seconds that `clients.vocabulary.seconds` has checked."""
    return max(1, int(timeout * 1e6))
