"""What is asked for in a load test: named workloads that are the same for every model, or lines of your own.

Requests are dicts, as in a file of JSON lines. To a model that generates text:

- `prompt` or `messages`, and `max_tokens` (48 if it is missing).

To other models:

- `text`, or `texts` for several rows in one request, in the place of the input `text`; or
- `inputs`, values by the name of an input, each a list with one value for each row.

Lengths are in words, so that no tokenizer is needed; a word of this text has 1.4 to 2 tokens. Lengths in
`mixed` are log-normal. For generated text their medians are about those of the conversations in Azure's trace
of 2023 (1,020 tokens in, 129 out: P. Patel et al., Splitwise, ISCA 2024), cut off where small models end.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shoal import corpus
from shoal.errors import UsageError

Request = dict[str, Any]
REQUESTS = 500  # of a named workload; then they begin again
ANSWER_TOKENS = 48
BATCH = 32
_SYSTEM_WORDS, _ANSWER_WORDS, _CHAT_TURNS = 120, 35, 4
_MOST_PROMPT_WORDS, _MOST_ANSWER_TOKENS = 800, 400


def _short(chance: random.Random) -> list[Request]:
    return [{"text": text} for text in _texts(chance, REQUESTS, 8, 0.4)]


def _mixed(chance: random.Random) -> list[Request]:
    return [{"text": text} for text in _texts(chance, REQUESTS, 12, 0.7)]


def _rag(chance: random.Random) -> list[Request]:
    return [{"text": text} for text in _texts(chance, REQUESTS, 180, 0.2)]


def _batch(chance: random.Random) -> list[Request]:
    texts = _texts(chance, REQUESTS * BATCH, 12, 0.7)
    return [{"texts": texts[first : first + BATCH]} for first in range(0, len(texts), BATCH)]


def _short_answers(chance: random.Random) -> list[Request]:
    return [_asked(text, 32) for text in _texts(chance, REQUESTS, 16, 0.4)]


def _mixed_answers(chance: random.Random) -> list[Request]:
    texts = _texts(chance, REQUESTS, 580, 0.8)
    return [
        _asked(
            " ".join(text.split()[:_MOST_PROMPT_WORDS]),
            min(_MOST_ANSWER_TOKENS, max(4, round(129 * chance.lognormvariate(0, 0.7)))),
        )
        for text in texts
    ]


def _rag_answers(chance: random.Random) -> list[Request]:
    found = _texts(chance, REQUESTS, 700, 0.1)
    questions = _texts(chance, REQUESTS, 14, 0.4)
    return [
        _asked(f"{passage}\n\nAnswer from the text above: {question}", 64)
        for passage, question in zip(found, questions, strict=True)
    ]


def _batch_answers(chance: random.Random) -> list[Request]:
    return [_asked(text, 256) for text in _texts(chance, REQUESTS, 60, 0.5)]


def _chat(chance: random.Random) -> list[Request]:
    """Conversations that share a system prompt; each of their turns is a request, with what was said before.

    What the model is taken to have said is text of ours, so that every engine reads the same.
    """
    (system,) = _texts(chance, 1, _SYSTEM_WORDS, 0.0)
    questions = iter(_texts(chance, REQUESTS, 16, 0.6))
    answers = iter(_texts(chance, REQUESTS, _ANSWER_WORDS, 0.3))
    made: list[Request] = []
    for _ in range(REQUESTS // _CHAT_TURNS):
        said = [{"role": "system", "content": system}]
        for _ in range(_CHAT_TURNS):
            said = [*said, {"role": "user", "content": next(questions)}]
            made.append({"messages": said, "max_tokens": ANSWER_TOKENS})
            said = [*said, {"role": "assistant", "content": next(answers)}]
    return made


_ROWS: dict[str, Callable[[random.Random], list[Request]]] = {
    "mixed": _mixed,
    "short": _short,
    "rag": _rag,
    "batch": _batch,
}
_ANSWERS: dict[str, Callable[[random.Random], list[Request]]] = {
    "chat": _chat,
    "short": _short_answers,
    "rag": _rag_answers,
    "batch": _batch_answers,
    "mixed": _mixed_answers,
}
NAMES = tuple(_ANSWERS)


def requests(workload: str, *, generates: bool, seed: int = 0) -> list[Request]:
    """The requests of a workload, in their order.

    Args:
        workload: one of `NAMES`, the path of a file of JSON lines, or "": the usual one, which is `chat` for
            a model that generates text, and `mixed` for others.
        generates: whether the model generates text.
        seed: of named workloads; the same seed gives the same requests.

    Raises:
        UsageError: there is no such workload for this kind of model, or a line of the file is none.
    """
    known = _ANSWERS if generates else _ROWS
    name = workload or next(iter(known))
    if name in known:
        return known[name](random.Random(seed))  # noqa: S311 - load, not a secret
    if name in NAMES:
        raise UsageError(
            f"{name} is for models that generate text", hint=f"choose {', '.join(known)}, or a file"
        )
    return _read(Path(name), generates, known)


def _asked(text: str, tokens: int) -> Request:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": tokens}


def _texts(chance: random.Random, count: int, median: float, sigma: float) -> list[str]:
    return corpus.texts(count, words=(median, sigma), seed=chance.getrandbits(32))


def _read(path: Path, generates: bool, known: Sequence[str] | dict[str, Any]) -> list[Request]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"there is no workload {path}", hint=f"choose {', '.join(known)}, or a file of JSON lines"
        ) from error
    form = '{"prompt": "...", "max_tokens": 48}' if generates else '{"text": "..."}'
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(_checked(json.loads(line), generates))
        except (ValueError, RecursionError) as error:
            raise UsageError(
                f"line {number} of {path} is no request: {error}", hint=f"a line is {form}"
            ) from error
    if not found:
        raise UsageError(f"{path} holds no request", hint=f"a line of it is {form}")
    return found


def _checked(line: Any, generates: bool) -> Request:
    if not isinstance(line, dict):
        raise ValueError("it is no JSON object")
    given = {name: value for name, value in line.items() if name != "at"}  # the file may be a trace, too
    fields = ("prompt", "messages", "max_tokens") if generates else ("text", "texts", "inputs")
    if unknown := sorted(given.keys() - set(fields)):
        raise ValueError(f"{unknown[0]!r} is none of {', '.join(fields)}")
    one_of = [name for name in fields if name in given and name != "max_tokens"]
    if len(one_of) != 1:
        raise ValueError(f"it has {' and '.join(one_of) or 'nothing'} to ask")
    wanted: dict[str, type] = {
        "prompt": str,
        "text": str,
        "messages": list,
        "texts": list,
        "inputs": dict,
    }
    for name, value in given.items():
        if name in wanted and not isinstance(value, wanted[name]):
            raise ValueError(f"{name} is no {wanted[name].__name__}")
    if not all(isinstance(text, str) for text in given.get("texts", [])) or given.get("texts") == []:
        raise ValueError("texts are no list of texts")
    tokens = given.get("max_tokens", ANSWER_TOKENS)
    if type(tokens) is not int or tokens < 1:
        raise ValueError("max_tokens is no number of tokens")
    return given
