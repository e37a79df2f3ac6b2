"""Answers that match a JSON schema, a regular expression, a list of choices or a grammar by construction.

Before each token llguidance says which tokens the structure still allows; the others are not chosen. What it
would get wrong is found before, by `schema`; what it would not come to an end with, by `trial`.
"""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from serving.generation.numbers import Written
from serving.generation.params import BadRequest, Busy, Unmet
from serving.generation.schema import prepared

MAX_DEFINITION = 256 * 1024  # bytes of UTF-8
# Of all compiled structures, those of requests that wait included; see `trial.LARGEST` for one.
MAX_TOGETHER = 512 * 2**20  # bytes
# The separators of `json.dumps`, no other white space: a small model left free to indent may never come to an
# end. No \uXXXX: a key that is written so would pass for one that the schema does not name.
JSON = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "json_allowed_escapes": 'nrbtf\\"',
}
# What one token of an answer may cost, in parts of the grammar that are looked at, and what is kept, of some
# 2 kB each. An optional property takes five items of a row. Where a text can be read in several ways, time
# grows with the square of the items.
LIMITS = {"step_max_items": 5_000, "max_lexer_states": 50_000, "max_items_in_row": 500}
JSON_LIMITS = {**LIMITS, "max_items_in_row": 2_000}
_NAME = "structured_outputs: "
# What stands in a grammar where %json may not be taken at its word, as llguidance reads it: strings, special
# tokens, comments and regular expressions.
_LARK = re.compile(
    r'"(?:[^"\\\n]|\\.)*"|<[^<>\s]+>|(?:#|//)[^\n]*|/(?:[^/\\]|\\.)+/|(?P<json>%json\s*(?=\{))'
)


class Compiler:
    """Compiles llguidance's grammars for one tokenizer.

    Args:
        tokenizer: path of `tokenizer.json`.
        vocabulary: width of the logits, which may exceed the tokenizer's.
        ends: token ids that end a text.
    """

    def __init__(self, tokenizer: Path, vocabulary: int, ends: Sequence[int]) -> None:
        self._tokenizer = LLTokenizer(_unnamed(tokenizer), n_vocab=vocabulary, eos_token=list(ends) or None)
        self._vocabulary = vocabulary

    def bytes_of(self, token: int) -> bytes:
        """The bytes of a token's text, which may be a part of a character; none of a special token."""
        return (
            b"" if self._tokenizer.is_special_token(token) else bytes(self._tokenizer.decode_bytes([token]))
        )

    def compile(self, kind: str, grammar: str) -> Matcher:
        """What keeps one answer to a grammar.

        Args:
            kind, grammar: see `grammar_of`.

        Raises:
            ValueError: it is not a valid one, too complex, or no text can match it.
        """
        limits = LLParserLimits(**(JSON_LIMITS if kind == "json" else LIMITS), verbose_errors=False)
        try:
            matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - a panic of llguidance, on a strange schema, is no Exception
            raise ValueError(reason(str(error))) from None
        made = Matcher(matcher, self._vocabulary)
        try:
            first = int(made.allowed().argmax())
            Matcher(matcher.deep_copy(), self._vocabulary).consume(first)  # where what is too complex shows
        except Unmet as error:
            raise ValueError(str(error).removeprefix(_NAME)) from None
        return made


class Tries(Protocol):
    """What is needed of `trial.Trial`."""

    def __call__(self, kind: str, grammar: str) -> str: ...
    def size(self, kind: str, grammar: str) -> int: ...
    def close(self) -> None: ...


class Structures:
    """What definitions mean for one model.

    Args:
        compiler: for its tokenizer.
        trial: what a grammar must pass before it is compiled; None: nothing.
    """

    def __init__(self, compiler: Compiler, trial: Tries | None = None) -> None:
        self._compiler, self._trial = compiler, trial
        self._sizes: weakref.WeakKeyDictionary[Matcher, int] = weakref.WeakKeyDictionary()

    def matcher(self, kind: str, definition: Any) -> Matcher:
        """What keeps one answer to a definition.

        Args:
            kind: see `params.STRUCTURES`.
            definition: as `params.SamplingParams.from_json` reads it.

        Raises:
            BadRequest: it is not a valid one, cannot be kept to, is too complex, or no text can match it.
            Busy: other structures take the memory that there is for them.
            OSError: it could not be tried.
        """
        try:
            grammar = grammar_of(kind, definition)
            if self._trial is not None and (wrong := self._trial(kind, grammar)):
                raise ValueError(wrong)
            size = 0 if self._trial is None else self._trial.size(kind, grammar)
            if sum(list(self._sizes.values())) + size > MAX_TOGETHER:
                raise Busy("the structures of other requests take the memory for structures; try again later")
            made = self._compiler.compile(kind, grammar)
            self._sizes[made] = size
            return made
        except RecursionError:
            raise BadRequest(f"{_NAME}{kind} is nested too deep") from None
        except ValueError as error:
            raise BadRequest(f"{_NAME}{kind}: {error}") from None

    def close(self) -> None:
        """End a trial that runs; what it was for fails with an OSError."""
        if self._trial is not None:
            self._trial.close()


class Matcher:
    """The state of one answer within its structure."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next, bool [vocabulary].

        Raises:
            Unmet: none may, and the text is not complete either; or to find out costs too much.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()  # in which case llguidance would end the text
        return np.unpackbits(bits, count=self._vocabulary, bitorder="little").astype(bool)

    def consume(self, token: int) -> None:
        """Go on by a token.

        Raises:
            Unmet: it does not fit the structure, or see `allowed`.
        """
        if not self._matcher.consume_token(token):
            raise Unmet(f"{_NAME}{reason(self._matcher.get_error())}")
        self._check()

    @property
    def finished(self) -> bool:
        """Whether nothing but the end of the text may follow."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise Unmet(f"{_NAME}{reason(self._matcher.get_error())}")


def grammar_of(kind: str, definition: Any) -> str:
    """A definition as a grammar of llguidance.

    Raises:
        ValueError: it is too long, or cannot be kept to.
    """
    text = definition if isinstance(definition, str) else json.dumps(definition, ensure_ascii=False)
    if (size := len(text.encode())) > MAX_DEFINITION:
        raise ValueError(f"it has {size} bytes, at most {MAX_DEFINITION} are accepted")
    if kind == "json":
        return LLMatcher.grammar_from_json_schema(_json(definition))
    if kind == "regex":
        return LLMatcher.grammar_from_regex(definition)
    if kind == "choice":
        # A terminal: as a rule, each choice would be an item of the parser, which has room for 2,000.
        choices = " | ".join(map(json.dumps, definition))
        return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {choices}")
    return LLMatcher.grammar_from_lark("".join(_with_schemas(definition)))


def _json(schema: dict[str, Any]) -> str:
    try:
        return json.dumps({"x-guidance": JSON, **prepared(schema)}, allow_nan=False)
    except ValueError as error:
        if "Out of range float" in str(error):
            raise ValueError("it holds a number that is too large, or none") from None
        raise


def _with_schemas(grammar: str) -> Iterator[str]:
    """A Lark grammar, the JSON schemas in it prepared like any other."""
    place = 0
    for found in _LARK.finditer(grammar):
        if found["json"] is None or found.start() < place:
            continue
        yield grammar[place : found.end()]
        try:
            schema, place = json.JSONDecoder(parse_float=Written).raw_decode(grammar, found.end())
        except ValueError as error:
            raise ValueError(f"the schema after %json is not JSON: {error}") from None
        yield _json(schema)
    yield grammar[place:]


_COMPLEX = "it is too complex, or does not come to an end, like an object that requires one of its own kind"
# What llguidance says of a definition, and what the caller is told.
_REASONS = (
    (
        r"Unsatisfiable schema: Regex is empty",
        "no text can match it: a pattern, a format and lengths exclude each other",
    ),
    (r"Unsatisfiable schema: (.*)", r"no text can match it: \1"),
    (r"NoExtensionBias|no initial lexemes", "no text can match it, or none that begins like this"),
    (
        r"oneOf constraints are not supported",
        "oneOf cannot be kept to where two options may both match; use anyOf",
    ),
    (
        r"circular references with sibling",
        "a $ref that leads back to itself cannot have other keywords beside it",
    ),
    (r"Pointer '(.*)' does not exist", r"$ref '#\1' leads nowhere"),
    (r"Unimplemented keys: (.*)", r"\1 cannot be kept to"),
    (
        r"min/maxProperties only supported",
        "minProperties and maxProperties need all properties to be required",
    ),
    (r"patternProperty regexes (.*) are not disjoint", r"two patternProperties may match the same key: \1"),
    (r"supported yet; (?:Start|End) in regex (.*)", r"^ and $ may only stand at the ends of the pattern \1"),
    (r"supported yet; \w+ in regex (.*)", r"the edge of a word (\\b) cannot be kept to: \1"),
    (
        r"unknown special token: (\"[^\"]*\")",
        r"\1: special tokens have no names here, but numbers, as in <[2]>",
    ),
    (r"found '=' \(at \"=\"", "a rule is written as in Lark, name: ..., not as in GBNF, name ::= ..."),
    (r"(?i)too many items|row has \d+ items|too many expressions|precomputation failed|too large", _COMPLEX),
    (r"(?i)stack level|fuel|too many states|recursion limit|too deeply nested", _COMPLEX),
)


def reason(text: str) -> str:
    """What llguidance says, in one line and in the caller's terms."""
    lines = [line.strip() for line in text.strip().splitlines()] or ["it cannot be compiled"]
    for place, line in enumerate(lines):
        if line.startswith("error: "):  # of a regular expression: the lines before show it, and where
            return f"{line.removeprefix('error: ')}: {lines[max(0, place - 2)]}"
    for pattern, said in _REASONS:
        if found := re.search(pattern, lines[0]):
            return found.expand(said)
    return re.sub(r"^(?:at )?(\d+)\((\d+)\): ", r"line \1, column \2: ", lines[0])


def _unnamed(tokenizer: Path) -> str:
    """tokenizer.json without the names of special tokens, which a structure's text must never become."""
    content = json.loads(tokenizer.read_text("utf-8"))
    vocabulary = content["model"]["vocab"]
    for token in content["added_tokens"]:
        if token["special"]:
            name = f"\0{token['id']}"
            if isinstance(vocabulary, dict) and token["content"] in vocabulary:
                vocabulary[name] = vocabulary.pop(token["content"])
            token["content"] = name
    return json.dumps(content)
