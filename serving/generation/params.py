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

from serving.generation.numbers import Written

MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_LENGTH = 256
MAX_BAD_WORDS = 128
MAX_BIASES = 4_096
MAX_ALLOWED = 1 << 16
MAX_BYTES = 2 << 20  # of all sampling parameters of a request, as UTF-8
STRUCTURES = ("json", "json_object", "regex", "choice", "grammar")


class BadRequest(ValueError):
    """A request that can never succeed as it is; the message names what is wrong."""


class Busy(Exception):
    """A request that can be answered later; the message says what there is too much of."""


class Unmet(ValueError):
    """What a request asks for cannot be met any more, at some token of its answer; the message says why."""


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen, and when to stop.

    Attributes:
        max_tokens: most tokens that are generated; None: as many as the context holds.
        min_tokens: before so many tokens, neither the end of the text nor a stop token may come, and no stop
            string ends the answer.
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
        stop: strings that end the answer.
        stop_token_ids: tokens that end the answer.
        include_stop_str_in_output: the stop string, or the text of the stop token, is part of the answer.
        ignore_eos: go on after the model's own end of text.
        skip_special_tokens: special tokens have no text.
        logprobs: log probabilities to return of so many likeliest tokens at each position; None: none.
        prompt_logprobs: the same for the tokens of the prompt; the prefix cache is not used then.
        logit_bias: (token, what is added to its logit), each token once.
        allowed_token_ids: choose among these tokens only; None: among all.
        bad_words: texts whose last token is not chosen where it would complete them.
        structured_outputs: one of `json` (a schema), `regex`, `choice` (a list of strings) and `grammar`
            (Lark), which the answer is made to match; None: free text.
    """

    max_tokens: int | None = 16
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
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
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

        Numbers may be given as strings, as the vLLM backend's own examples do. A parameter that is null has
        its default, but for `max_tokens`, which has no limit then.

        Args:
            defaults: of what the text does not say, the model's own in place of the general ones.

        Raises:
            BadRequest: it is not a JSON object, or a name or a value is not known.
        """
        given = _loads(text, "sampling_parameters") if text.strip() else {}
        if not isinstance(given, dict):
            raise BadRequest(f"sampling_parameters is {_kind(given)}, it must be a JSON object")
        for name in [name for name in _FIXED if name in given]:
            only, why = _FIXED[name]
            if given.pop(name) not in (only, None, str(only) if type(only) is int else None):
                must = "is not served" if only is None else f"must be {json.dumps(only)}"
                raise BadRequest(f"{name} {must}: {why}")
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(given) - set(known))
        if unknown:
            # Half a character, say, or the end of a line.
            named = ", ".join(unknown).encode("unicode_escape", "backslashreplace").decode()
            named = named if len(named) <= _MOST_SHOWN else f"{named[:_MOST_SHOWN]}..."
            raise BadRequest(f"unknown in sampling_parameters: {named}; known: {', '.join(known)}")
        asked = {**(defaults or {}), **{name: value for name, value in given.items() if value is not None}}
        read = {name: _READERS[name](name, value) for name, value in asked.items()}
        if given.get("max_tokens", 0) is None:
            read["max_tokens"] = None
        made = cls(**read)
        if made.max_tokens is not None and made.min_tokens > made.max_tokens:
            raise BadRequest(
                f"min_tokens is {made.min_tokens}, it must be at most max_tokens, {made.max_tokens}"
            )
        return made

    def check_tokens(self, vocabulary: int) -> None:
        """Compare token ids with the model.

        Args:
            vocabulary: how many tokens it has.

        Raises:
            BadRequest: it does not have one of them.
        """
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            values = getattr(self, name) or ()
            ids = [value[0] for value in values] if name == "logit_bias" else values
            if ids and max(ids) >= vocabulary:
                raise BadRequest(f"{name} holds {max(ids)}, the model has tokens 0 to {vocabulary - 1}")


_MOST_SHOWN = 100  # characters of what was sent, in an error


def _loads(text: str, what: str) -> Any:
    try:
        return json.loads(text, parse_float=Written)
    except RecursionError:
        raise BadRequest(f"{what} is nested too deep") from None
    except ValueError as error:
        if "integer string conversion" in str(error):  # Python's words are for programmers
            raise BadRequest(f"{what} holds a number of thousands of digits") from None
        raise BadRequest(f"{what} is not JSON: {error}") from None


def _number(name: str, value: Any, low: float, high: float, *, whole: bool) -> Any:
    if isinstance(value, str):
        try:
            value = int(value) if whole else float(value)
        except ValueError:
            shown = value if len(value) <= _MOST_SHOWN else f"{value[:_MOST_SHOWN]}..."
            raise BadRequest(f"{name} is {shown!r}, not a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequest(f"{name} is {_kind(value)}, not a number")
    if isinstance(value, float) and (not math.isfinite(value) or (whole and value != int(value))):
        raise BadRequest(f"{name} is {value}, it must be {'a whole' if whole else 'a finite'} number")
    if not low <= value <= high:
        shown = value if abs(value) < 10**20 else f"{value:g}" if abs(value) < 1e100 else "too large"
        raise BadRequest(f"{name} is {shown}, it must be from {low} to {high}")
    return int(value) if whole else float(value)


def _whole(low: int, high: int) -> Any:
    return lambda name, value: _number(name, value, low, high, whole=True)


def _real(low: float, high: float) -> Any:
    return lambda name, value: _number(name, value, low, high, whole=False)


def _share(name: str, value: Any) -> float:
    """Above 0 and at most 1."""
    read = float(_number(name, value, 0, 1, whole=False))
    if read == 0:
        raise BadRequest(f"{name} is 0, it must be above 0 and at most 1")
    return read


def _seed(name: str, value: Any) -> int | None:
    read = int(_number(name, value, -(2**63), 2**63 - 1, whole=True))
    return None if read == -1 else read


def _switch(name: str, value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise BadRequest(f"{name} is {_kind(value)}, it must be true or false")
    return value


def _texts(most: int) -> Any:
    def read(name: str, value: Any) -> tuple[str, ...]:
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(item, str) and item for item in values):
            raise BadRequest(f"{name} must be a string or a list of strings, none of them empty")
        if len(values) > most or any(len(item) > MAX_STOP_LENGTH for item in values):
            raise BadRequest(f"{name} may hold {most} strings of {MAX_STOP_LENGTH} characters")
        if any(0xD800 <= ord(letter) < 0xE000 for item in values for letter in item):
            raise BadRequest(f"{name} holds half of a surrogate pair")
        return tuple(values)

    return read


def _id(name: str, value: Any) -> int:
    return int(_number(name, value, 0, 2**31 - 1, whole=True))


def _ids(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_STOPS:
        raise BadRequest(f"{name} must be a list of at most {MAX_STOPS} token ids")
    return tuple(_id(name, item) for item in value)


def _allowed(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value:
        raise BadRequest(f"{name} must be a list of token ids, at least one")
    if len(value) > MAX_ALLOWED:
        raise BadRequest(f"{name} holds {len(value)} token ids, at most {MAX_ALLOWED} are accepted")
    return tuple(_id(name, item) for item in value)


def _biases(name: str, value: Any) -> tuple[tuple[int, float], ...]:
    """Clamped to 100 as vLLM does it; 100 decides all the same."""
    if not isinstance(value, dict):
        raise BadRequest(f"{name} is {_kind(value)}, it must be an object of token ids and what is added")
    if len(value) > MAX_BIASES:
        raise BadRequest(f"{name} holds {len(value)} token ids, at most {MAX_BIASES} are accepted")
    biases = {}
    for token, bias in value.items():
        added = _number(name, bias, -math.inf, math.inf, whole=False)
        biases[_id(name, token)] = min(100.0, max(-100.0, added))
    return tuple(biases.items())


def _structure(name: str, value: Any) -> tuple[str, Any]:
    """One kind of structure and its definition; whether that makes sense, its compiler says."""
    if isinstance(value, str):
        value = _loads(value, name)
    if not isinstance(value, dict) or len(value) != 1 or next(iter(value)) not in STRUCTURES:
        raise BadRequest(f"{name} must hold one of {', '.join(STRUCTURES)}, and nothing else")
    ((kind, definition),) = value.items()
    if kind in ("json", "json_object"):
        kind, definition = "json", _schema(name, kind, definition)
    elif kind == "choice":
        if not isinstance(definition, list) or not all(isinstance(i, str) and i for i in definition):
            raise BadRequest(f"{name}: choice must be a list of strings, none of them empty")
        if not definition:
            raise BadRequest(f"{name}: choice is empty, no answer could match")
    elif not isinstance(definition, str) or not definition:
        raise BadRequest(f"{name}: {kind} must be a string, and not empty")
    try:
        json.dumps(definition, ensure_ascii=False).encode()
    except RecursionError:
        raise BadRequest(f"{name}: {kind} is nested too deep") from None
    except UnicodeEncodeError:
        raise BadRequest(f"{name}: {kind} holds half of a surrogate pair") from None
    return kind, definition


def _schema(name: str, kind: str, definition: Any) -> dict[str, Any]:
    """A JSON schema, which may be given as its text."""
    if kind == "json_object":
        if definition is not True:
            raise BadRequest(f"{name}: json_object must be true")
        return {"type": "object"}
    if isinstance(definition, str):
        definition = _loads(definition, f"{name}: the JSON schema")
    if not isinstance(definition, dict):
        raise BadRequest(f"{name}: the JSON schema is {_kind(definition)}, not an object")
    return definition


def _kind(value: Any) -> str:
    """What JSON calls the type of a value."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


_READERS: dict[str, Any] = {
    "max_tokens": _whole(1, 1_000_000),
    "min_tokens": _whole(0, 1_000_000),
    "temperature": _real(0, 100),
    "top_k": _whole(-1, 1_000_000),
    "top_p": _share,
    "min_p": _real(0, 1),
    "repetition_penalty": _real(0.01, 100),
    "presence_penalty": _real(-2, 2),
    "frequency_penalty": _real(-2, 2),
    "seed": _seed,
    "stop": _texts(MAX_STOPS),
    "stop_token_ids": _ids,
    "include_stop_str_in_output": _switch,
    "ignore_eos": _switch,
    "skip_special_tokens": _switch,
    "logprobs": _whole(0, MAX_LOGPROBS),
    "prompt_logprobs": _whole(0, MAX_LOGPROBS),
    "logit_bias": _biases,
    "allowed_token_ids": _allowed,
    "bad_words": _texts(MAX_BAD_WORDS),
    "structured_outputs": _structure,
}

_ONE = "a request has one answer; send it again for another"
_BEAM = "answers are sampled, or greedy where temperature is 0"
_STRUCTURED = 'use structured_outputs, as {"json": ...}'
# Names of vLLM, of this version or an earlier one, that callers send, each with the one value that is met.
_FIXED: dict[str, tuple[Any, str]] = {
    "n": (1, _ONE),
    "best_of": (1, _ONE),
    "use_beam_search": (False, _BEAM),
    "length_penalty": (1.0, _BEAM),
    "early_stopping": (False, _BEAM),
    "truncate_prompt_tokens": (None, "shorten the prompt"),
    "detokenize": (True, "answers are text"),
    "spaces_between_special_tokens": (True, "a text is what the tokenizer decodes"),
    "logits_processors": (None, "no code of a request is run"),
    "guided_decoding": (None, _STRUCTURED),
    "guided_json": (None, _STRUCTURED),
    "guided_json_object": (None, _STRUCTURED),
    "guided_regex": (None, _STRUCTURED),
    "guided_choice": (None, _STRUCTURED),
    "guided_grammar": (None, _STRUCTURED),
    "guided_whitespace_pattern": (None, "JSON is written with the separators of Python's json.dumps"),
    "guided_decoding_backend": (None, "there is one, llguidance"),
    "response_format": (None, _STRUCTURED),
}
