"""What a caller may ask of the generation: vLLM's names, defaults and meanings, checked once.

Source: `vllm.SamplingParams`. Unknown names are refused, because an option that is silently ignored is a
wrong answer to "why does it not stop".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_LENGTH = 256
STRUCTURES = ("json", "regex", "choice", "grammar")


class BadRequest(ValueError):
    """A request that can never succeed as it is; the message names what is wrong."""


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen, and when to stop.

    Attributes:
        max_tokens: most tokens that are generated.
        min_tokens: before so many tokens, neither the end of the text nor a stop token may come.
        temperature: 0: always the likeliest token; else logits are divided by it.
        top_k: choose among the so many likeliest tokens; 0 or -1: among all.
        top_p: choose among the likeliest tokens that make up this probability (nucleus sampling,
            Holtzman et al. 2019, arXiv:1904.09751).
        min_p: choose among tokens at least this likely relative to the likeliest.
        repetition_penalty: above 1: tokens of the prompt and the answer become less likely (Keskar et
            al. 2019, arXiv:1909.05858).
        presence_penalty: subtracted from the logit of every token of the answer.
        frequency_penalty: subtracted once for each time it stands there.
        seed: the same seed and request give the same answer; None: a fresh one each time.
        stop: strings that end the answer; they are not part of it.
        stop_token_ids: tokens that end the answer.
        ignore_eos: go on after the model's own end of text.
        logprobs: log probabilities to return of so many likeliest tokens at each position; None: none.
        structured_outputs: one of `json` (a schema), `regex`, `choice` (a list of strings) and `grammar`
            (Lark), which the answer is made to match; None: free text.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    structured_outputs: tuple[str, Any] | None = None

    @property
    def greedy(self) -> bool:
        """Whether no chance is involved."""
        return self.temperature == 0 or self.top_k == 1

    @property
    def penalizes(self) -> bool:
        """Whether earlier tokens change the logits."""
        return bool(self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0)

    @classmethod
    def from_json(cls, text: str, defaults: Mapping[str, Any] | None = None) -> SamplingParams:
        """From the text of `sampling_parameters`; "" stands for the defaults.

        Numbers may be given as strings, as the vLLM backend's own examples do.

        Args:
            defaults: of what the text does not say, the model's own in place of the general ones.

        Raises:
            BadRequest: it is not a JSON object, or a name or a value is not known.
        """
        try:
            given = json.loads(text) if text.strip() else {}
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"sampling_parameters is not JSON: {error}") from None
        if not isinstance(given, dict):
            raise BadRequest(f"sampling_parameters is {_kind(given)}, it must be a JSON object")
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(given) - set(known))
        if unknown:
            named = ", ".join(unknown).encode("ascii", "backslashreplace").decode()  # half a character, say
            raise BadRequest(f"unknown in sampling_parameters: {named}; known: {', '.join(known)}")
        given = {**(defaults or {}), **{name: value for name, value in given.items() if value is not None}}
        return cls(**{name: _READERS[name](name, value) for name, value in given.items()})


def _number(name: str, value: Any, low: float, high: float, *, whole: bool) -> Any:
    if isinstance(value, str):
        try:
            value = int(value) if whole else float(value)
        except ValueError:
            raise BadRequest(f"{name} is {value!r}, not a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequest(f"{name} is {_kind(value)}, not a number")
    if isinstance(value, float) and (not math.isfinite(value) or (whole and value != int(value))):
        raise BadRequest(f"{name} is {value}, it must be {'a whole' if whole else 'a finite'} number")
    if not low <= value <= high:
        shown = f"{value:g}" if abs(value) < 1e100 else "too large"
        raise BadRequest(f"{name} is {shown}, it must be from {low:g} to {high:g}")
    return int(value) if whole else float(value)


def _whole(low: int, high: int) -> Any:
    return lambda name, value: _number(name, value, low, high, whole=True)


def _real(low: float, high: float) -> Any:
    return lambda name, value: _number(name, value, low, high, whole=False)


def _switch(name: str, value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise BadRequest(f"{name} is {_kind(value)}, it must be true or false")
    return value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(item, str) and item for item in values):
        raise BadRequest(f"{name} must be a string or a list of strings, none of them empty")
    if len(values) > MAX_STOPS or any(len(item) > MAX_STOP_LENGTH for item in values):
        raise BadRequest(f"{name} may hold {MAX_STOPS} strings of {MAX_STOP_LENGTH} characters")
    return tuple(values)


def _ids(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_STOPS:
        raise BadRequest(f"{name} must be a list of at most {MAX_STOPS} token ids")
    return tuple(_number(name, item, 0, 2**31 - 1, whole=True) for item in value)


def _structure(name: str, value: Any) -> tuple[str, Any]:
    """One kind of structure and its definition; whether that makes sense, its compiler says."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRequest(f"{name} is not JSON") from None
    if not isinstance(value, dict) or len(value) != 1 or next(iter(value)) not in STRUCTURES:
        raise BadRequest(f"{name} must hold one of {', '.join(STRUCTURES)}")
    ((kind, definition),) = value.items()
    if kind == "choice":
        if not isinstance(definition, list) or not all(isinstance(i, str) and i for i in definition):
            raise BadRequest(f"{name}: choice must be a list of strings")
        if not definition:
            raise BadRequest(f"{name}: choice is empty, no answer could match")
    elif kind == "json":
        if isinstance(definition, str):
            try:
                definition = json.loads(definition)
            except (ValueError, RecursionError) as error:
                raise BadRequest(f"{name}: the JSON schema is not JSON: {error}") from None
        if not isinstance(definition, dict):
            raise BadRequest(f"{name}: the JSON schema is {_kind(definition)}, not an object")
    elif not isinstance(definition, str) or not definition:
        raise BadRequest(f"{name}: {kind} must be a string")
    return kind, definition


def _kind(value: Any) -> str:
    """What JSON calls the type of a value."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


_READERS: dict[str, Any] = {
    "max_tokens": _whole(1, 1_000_000),
    "min_tokens": _whole(0, 1_000_000),
    "temperature": _real(0, 100),
    "top_k": _whole(-1, 1_000_000),
    "top_p": _real(1e-6, 1),
    "min_p": _real(0, 1),
    "repetition_penalty": _real(0.01, 100),
    "presence_penalty": _real(-2, 2),
    "frequency_penalty": _real(-2, 2),
    "seed": _whole(-(2**63), 2**63 - 1),
    "stop": _texts,
    "stop_token_ids": _ids,
    "ignore_eos": _switch,
    "logprobs": _whole(0, MAX_LOGPROBS),
    "structured_outputs": _structure,
}
