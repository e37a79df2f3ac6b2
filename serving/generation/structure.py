"""Answers that match a JSON schema, a regular expression, a list of choices or a grammar by construction.

Before each token llguidance says which tokens the structure still allows; the others are not chosen.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llguidance import JsonCompiler, LLMatcher, LLTokenizer
from numpy.typing import NDArray

from serving.generation.params import BadRequest

MAX_DEFINITION = 256 * 1024  # characters


class Structures:
    """Compiles definitions for one tokenizer.

    Args:
        tokenizer: path of `tokenizer.json`.
        vocabulary: width of the logits, which may exceed the tokenizer's.
        ends: token ids that end a text.
    """

    def __init__(self, tokenizer: Path, vocabulary: int, ends: Sequence[int]) -> None:
        self._tokenizer = LLTokenizer(_unnamed(tokenizer), n_vocab=vocabulary, eos_token=list(ends) or None)
        self._vocabulary = vocabulary
        # The separators of `json.dumps`, no other white space: a small model left free to indent may
        # never come to an end.
        self._json = JsonCompiler(separators=(", ", ": "), whitespace_flexible=False)

    def matcher(self, kind: str, definition: Any) -> Matcher:
        """What keeps one answer to a definition.

        Raises:
            BadRequest: it is not a valid one, too complex, or no text can match it.
        """
        if len(definition if isinstance(definition, str) else json.dumps(definition)) > MAX_DEFINITION:
            raise BadRequest(f"structured_outputs: {kind} is longer than {MAX_DEFINITION} characters")
        try:
            matcher = LLMatcher(self._tokenizer, self._grammar(kind, definition), log_level=0)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - a panic of llguidance, on a strange schema, is no Exception
            raise BadRequest(f"structured_outputs: {kind}: {_line(str(error))}") from None
        if matcher.is_error():
            raise BadRequest(f"structured_outputs: {kind}: {_line(matcher.get_error())}")
        made = Matcher(matcher, self._vocabulary)
        first = made.allowed()
        if matcher.is_error() or not first.any():
            raise BadRequest(f"structured_outputs: {kind}: no text can match it")
        trial = matcher.deep_copy()  # what is too complex shows at the first token
        if not trial.consume_token(int(first.argmax())):
            raise BadRequest(f"structured_outputs: {kind}: {_line(trial.get_error())}")
        return made

    def _grammar(self, kind: str, definition: Any) -> str:
        if kind == "json":
            return str(self._json.compile(json.dumps(definition)))
        if kind == "regex":
            return LLMatcher.grammar_from_regex(definition)
        if kind == "choice":
            # A terminal: as a rule, each choice would be an item of the parser, which has room for 2,000.
            choices = " | ".join(map(json.dumps, definition))
            return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {choices}")
        return LLMatcher.grammar_from_lark(definition)


class Matcher:
    """The state of one answer within its structure."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next, bool [vocabulary]."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, count=self._vocabulary, bitorder="little").astype(bool)

    def consume(self, token: int) -> None:
        """Go on by a token.

        Raises:
            ValueError: it does not fit the structure.
        """
        if not self._matcher.consume_token(token):
            raise ValueError(f"structured_outputs: {_line(self._matcher.get_error())}")

    @property
    def finished(self) -> bool:
        """Whether nothing but the end of the text may follow."""
        return bool(self._matcher.is_stopped())


def _line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "it cannot be compiled"


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
