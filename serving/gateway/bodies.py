"""Bodies of requests: JSON checked against a type, and fields that this gateway does not know, named."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from serving.gateway.errors import ApiError, bad_request

T = TypeVar("T", bound=msgspec.Struct)
_PATH = re.compile(r" - at `\$\.?([^`]*)`$")
# What a caller of OpenAI's API may ask for, would miss in an answer of ours, and would not notice.
HARMFUL = {
    "audio": "answers are text",
    "background": "answers come at once",
    "chat_template": "the template is the model's own",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "guided_choice": "use structured_outputs",
    "guided_grammar": "use structured_outputs",
    "guided_json": "use structured_outputs",
    "guided_regex": "use structured_outputs",
    "logits_processors": "use logit_bias",
    "previous_response_id": "nothing is stored here: send the whole conversation",
    "conversation": "nothing is stored here: send the whole conversation",
    "prompt_logprobs": "use echo and logprobs of /v1/completions",
    "raw_scores": "scores are those that the model's authors return",
    "truncate_prompt_tokens": "send a shorter prompt",
    "web_search_options": "this gateway does not search the web",
}


def read(body: bytes, kind: type[T]) -> tuple[T, list[str]]:
    """A body as a struct, and the names of its fields that the struct does not have.

    Raises:
        ApiError: it is not JSON, not an object, or a field is wrong; the error names it.
    """
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except RecursionError:
        raise bad_request("the body is nested too deep") from None
    except msgspec.ValidationError:
        raise bad_request("the body must be a JSON object") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_request(f"the body is not JSON: {error}") from None
    unknown = [name for name in fields if name not in kind.__struct_encode_fields__]
    for name in unknown:
        if name in HARMFUL and bytes(fields[name]).strip() not in (b"null", b"false"):
            raise ApiError(400, f"{name} is not supported: {HARMFUL[name]}", param=name, code="unsupported")
    try:
        return msgspec.json.decode(body, type=kind), unknown
    except msgspec.ValidationError as error:
        found = _PATH.search(str(error))
        param = found[1] if found else _missing(str(error))
        if found is None and param:
            raise bad_request(f"{param} is missing", param) from None
        raise bad_request(f"{param}: {_PATH.sub('', str(error))}" if param else str(error), param) from None
    except RecursionError:
        raise bad_request("the body is nested too deep") from None
    except (msgspec.DecodeError, UnicodeDecodeError):  # inside of a text, which was not read before
        raise bad_request("the body is not UTF-8") from None


class _Length(msgspec.Struct, frozen=True):
    """How long answers may become, by the names that the protocols have for it."""

    n: Any = 1
    prompt: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    max_new_tokens: Any = None


_LENGTH = msgspec.json.Decoder(_Length)
_BYTES_PER_TOKEN = 4
_MOST_TOKENS = 1 << 30


def most_tokens(body: bytes) -> int:
    """The tokens that a request may use, guessed before it runs: those of its prompt by the size of its body,
    and those of its answers by the limit that it sets itself, where it does."""
    prompt = len(body) // _BYTES_PER_TOKEN
    try:
        given = _LENGTH.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return prompt  # the protocol says what is wrong with it
    limits = (given.max_completion_tokens, given.max_output_tokens, given.max_tokens, given.max_new_tokens)
    limit = next((value for value in limits if type(value) is int and value > 0), 0)
    answers = given.n if type(given.n) is int and given.n > 0 else 1
    if isinstance(given.prompt, list) and given.prompt and not isinstance(given.prompt[0], int):
        answers *= len(given.prompt)  # of completions: each prompt has its own
    return min(prompt + limit * answers, _MOST_TOKENS)


def _missing(said: str) -> str | None:
    found = re.search(r"missing required field `([^`]*)`", said)
    return found[1] if found else None


def are_token_ids(given: Any) -> bool:
    """Whether this is a list of token ids, at least one; whether there are such tokens, is not asked here."""
    return (
        isinstance(given, list)
        and bool(given)
        and all(type(item) is int and 0 <= item < 2**31 for item in given)
    )


def ignored(names: list[str]) -> dict[str, str]:
    """The header that names fields which were not read."""
    told = ", ".join(re.sub(r"[^\x21-\x7e]", "?", name)[:64] for name in names[:32])
    return {"x-shoal-ignored": told} if names else {}
