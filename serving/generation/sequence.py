"""One request on its way: what was asked, what has come, and how far its keys and values are."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

from serving.generation.params import SamplingParams
from serving.generation.sampling import Sampler, TokenLogprob
from serving.generation.speculation import Guesser
from serving.generation.text import Decode, Detokenizer, StopFinder

SCORED_TOKENS = 128  # the logits of more would take hundreds of MB with the largest vocabularies


class Failure(Enum):
    """Why a request got no answer, or only a part of one."""

    DEADLINE = "deadline exceeded"
    CANCELLED = "cancelled"
    STOPPING = "stopping"
    UNMET = "unmet"
    INTERNAL = "internal"


@dataclass(frozen=True)
class Chunk:
    """A part of an answer.

    Attributes:
        text: what is new.
        tokens: how many tokens are new; a stop token counts, though it has no text.
        logprobs: of those tokens, each as the chosen one and the likeliest; [] if not asked for.
        finish_reason: `stop` or `length` in the last part, None before.
        cached: tokens of the prompt that were found in the prefix cache.
        prompt_logprobs: in the first part, of the prompt's tokens from the second on, where asked for.
        stop_reason: in the last part, the stop string or the token of `stop_token_ids` that ended the answer;
            None: something else did.
    """

    text: str
    tokens: int
    logprobs: Tokens[Tokens[TokenLogprob]] = ()
    finish_reason: str | None = None
    cached: int = 0
    prompt_logprobs: Tokens[Tokens[TokenLogprob]] = ()
    stop_reason: str | int | None = None


@dataclass(frozen=True)
class Request:
    """What a caller wants.

    Attributes:
        prompt: token ids, at least one.
        params: how to choose and when to stop.
        stream: whether parts are wanted as they come, or all in one.
        deliver: called with each part; exactly one call is the last: a Chunk with a finish reason, or a
            Failure and its message. Where it raises, that part was not sent: it is called once more, with a
            Failure, unless it was a Failure that it was called with.
        is_cancelled: whether the caller has left.
        deadline: on the engine's clock, in seconds; None: none.
        matcher: what keeps the answer to a structure, or None.
        bad: token ids of texts that must not come, see `text.bad_word_tokens`.
        scored: to be called with the perplexity of the prompt's first tokens, at most `SCORED_TOKENS`, if it
            has two or more; the prompt is then written whole, and nothing of it is taken from the prefix
            cache. None: nobody wants to know.
        probe: whether this asks if the engine answers at all: for one token, after a prompt of at most
            `engine.PROBE_TOKENS`. It does not wait for other requests, and is not counted as one.
    """

    prompt: Tokens[int]
    params: SamplingParams
    stream: bool
    deliver: Callable[[Chunk | tuple[Failure, str]], None]
    is_cancelled: Callable[[], bool] = lambda: False
    deadline: float | None = None
    matcher: Any = None
    bad: Tokens[Tokens[int]] = ()
    scored: Callable[[float], None] | None = None
    probe: bool = False


@dataclass(eq=False)
class Sequence:
    """A request's state.

    Args:
        request: see there.
        ends: the model's own end-of-text tokens.
        decode: token ids to text, `tokenizers.Tokenizer.decode`.
        arrived: on the engine's clock.

    Attributes:
        output: tokens of the answer.
        cached: tokens of the prompt that were found in the prefix cache.
        computed: tokens whose keys and values are in its row.
        most: tokens that the answer may have.
        row: of the cache; None while it waits.
        number: of the sequence, in the order of arrival.
        surprise: sum over the scored tokens of the prompt, see `sampling.surprise`.
        prompt_logprobs: of the prompt's tokens from the second on that are not delivered.
        finish_reason: once it is finished.
        stop_reason: see `Chunk`.
        first_token, delivered: when the first and the last tokens were handed out, on the engine's clock.
    """

    request: Request
    ends: Tokens[int]
    decode: Decode
    arrived: float
    output: list[int] = field(default_factory=list)
    cached: int = 0
    computed: int = 0
    row: int | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    first_token: float | None = None
    delivered: float = 0.0
    surprise: float = 0.0
    prompt_logprobs: list[Tokens[TokenLogprob]] = field(default_factory=list)
    number: int = field(default_factory=itertools.count().__next__)

    def __post_init__(self) -> None:
        request, params = self.request, self.request.params
        self.stop_tokens = set(params.stop_token_ids) | (set() if params.ignore_eos else set(self.ends))
        late = sorted({*params.stop_token_ids, *self.ends})  # not before min_tokens, whatever they mean
        self.chooser = Sampler(params, request.prompt, late, request.matcher, request.bad)
        self.guesser = Guesser()
        decode = self.decode
        if not params.skip_special_tokens:
            decode = partial(self.decode, skip_special_tokens=False)  # type: ignore[call-arg]
        self._text = Detokenizer(decode, request.prompt)
        self._stops = StopFinder(params.stop, included=params.include_stop_str_in_output)
        self.most = params.max_tokens or sys.maxsize
        self._new_text: list[str] = []
        self._undecoded: list[int] = []
        self._new_tokens = 0
        self._new_logprobs: list[Tokens[TokenLogprob]] = []

    @property
    def scored_positions(self) -> int:
        """At how many positions of the prompt its perplexity is taken."""
        return min(len(self.request.prompt), SCORED_TOKENS) - 1 if self.request.scored else 0

    @property
    def judged_positions(self) -> int:
        """At how many positions of the prompt the logits are compared with the token that follows."""
        if self.request.params.prompt_logprobs is not None:
            return len(self.request.prompt) - 1
        return self.scored_positions

    @property
    def tokens(self) -> list[int]:
        """Prompt and answer."""
        return [*self.request.prompt, *self.output]

    def tokens_from(self, start: int) -> list[int]:
        """Those of `tokens` from place `start` on."""
        prompt = self.request.prompt
        return [*prompt[start:], *self.output[max(0, start - len(prompt)) :]]

    @property
    def length(self) -> int:
        """How many tokens those are."""
        return len(self.request.prompt) + len(self.output)

    @property
    def unsent(self) -> int:
        """Tokens that have not been delivered."""
        return self._new_tokens

    def append(self, token: int, most: int, logprobs: Tokens[TokenLogprob] | None = None) -> None:
        """Add a token to the answer, and find out whether it was the last.

        Args:
            most: tokens that prompt and answer may have together.
        """
        params = self.request.params
        self.output.append(token)
        self._new_tokens += 1
        if logprobs is not None:
            self._new_logprobs.append(logprobs)
        if self.request.matcher is not None:
            self.request.matcher.consume(token)
        ends = token in self.stop_tokens and self._may_stop
        if not params.stop:
            if not ends or params.include_stop_str_in_output:
                self._undecoded.append(token)
        elif not ends or params.include_stop_str_in_output:
            text, stopped = self._stops.add(self._text.add(token), searching=self._may_stop)
            self._new_text.append(text)
            if stopped:
                self.finish_reason, self.stop_reason = "stop", self._stops.found
                return
        if ends and token in params.stop_token_ids:
            self.stop_reason = token
        if ends or (self.request.matcher is not None and self.request.matcher.finished):
            self._finish("stop")
        elif len(self.output) >= self.most or self.length >= most:
            self._finish("length")

    @property
    def _may_stop(self) -> bool:
        """Whether a stop token counts as one, and a stop string that ends in the last token."""
        return len(self.output) > self.request.params.min_tokens

    def _decode(self) -> None:
        """Text of the tokens that wait for it: where nothing is sought in the text, once for each part."""
        if self._undecoded:
            self._new_text.append(self._text.add(*self._undecoded))
            self._undecoded = []

    def _finish(self, reason: str) -> None:
        self._decode()
        text, stopped = self._stops.add(self._text.rest(), searching=self._may_stop)
        self._new_text += [text, "" if stopped else self._stops.rest()]
        self.finish_reason = "stop" if stopped else reason
        self.stop_reason = self._stops.found if stopped else self.stop_reason

    def take_chunk(self) -> Chunk:
        """What has not been delivered."""
        self._decode()
        chunk = Chunk(
            "".join(self._new_text),
            self._new_tokens,
            self._new_logprobs,
            self.finish_reason,
            self.cached,
            self.prompt_logprobs,
            self.stop_reason,
        )
        self._new_text, self._new_tokens, self._new_logprobs, self.prompt_logprobs = [], 0, [], []
        return chunk
