"""Continuous batching: sequences join and leave at every step. `step` is plan -> run -> choose -> deliver.

Knows the model as five operations on rows of a cache (`Model`), so that it is tested with a toy; knows
nothing of Triton or ONNX Runtime. One thread calls `step`; `submit` may be called from any.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from serving.generation.params import Unmet
from serving.generation.prefix import BLOCK, PrefixCache
from serving.generation.sampling import surprise, top_logprobs
from serving.generation.scheduler import Limits, Prefill, Scheduler
from serving.generation.sequence import Failure, Request, Sequence
from serving.generation.speculation import StepCost
from serving.generation.text import Decode

Logits = NDArray[np.float32]


class QueueFull(RuntimeError):
    """As many requests wait as may wait."""


class Model(Protocol):
    """What the engine needs of a decoder; `serving.generation.runner.Runner` is the real one."""

    def decode(self, tokens: Tokens[int], lengths: Tokens[int]) -> Logits: ...
    def prefill(self, row: int, tokens: Tokens[int], start: int, wanted: Tokens[int]) -> Logits: ...
    def prefill_together(self, row: int, prompts: Tokens[Tokens[int]]) -> Logits: ...
    def copy(self, source: int, target: int, length: int) -> None: ...
    def save(self, row: int, start: int, stop: int) -> Any: ...
    def restore(self, row: int, start: int, saved: Any) -> None: ...


@dataclass
class Stats:
    """Counted since the start; read by whoever publishes metrics.

    Attributes:
        finished: requests by how they ended: `stop`, `length`, a failure's value, `refused` by a full queue.
        prompt_tokens, cached_tokens, generated_tokens: of all requests that were begun.
        guessed_tokens, accepted_tokens: of speculation.
        steps: of the engine.
        model_seconds, busy_seconds: inside the model, and in steps altogether.
        first_token_seconds: times to first token not yet fetched by the publisher.
    """

    finished: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    guessed_tokens: int = 0
    accepted_tokens: int = 0
    steps: int = 0
    model_seconds: float = 0.0
    busy_seconds: float = 0.0
    first_token_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=1000))


class Engine:
    """Runs requests on a model.

    Args:
        model: its rows must number `limits.rows`, of `limits.max_model_len` tokens.
        limits: see `scheduler.Limits`.
        ends: the model's own end-of-text tokens.
        decode: token ids to text, special tokens left out.
        prefix_cache_tokens: tokens of past prompts and answers that are kept for the next; 0: none.
        speculate: guess tokens from the text so far while a request runs alone.
        deliveries_per_step: about so many streams get what is new in one step. A response costs CPU
            time that the next step needs, so with more streams than this each gets two tokens every
            second step, and so on; the first token and the last are never held back.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        model: Model,
        limits: Limits,
        *,
        ends: Tokens[int],
        decode: Decode,
        prefix_cache_tokens: int = 0,
        speculate: bool = False,
        deliveries_per_step: int = 8,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stats = Stats()
        self._model = model
        self._limits = limits
        self._ends, self._decode_text = ends, decode
        self._scheduler = Scheduler(limits)
        self._prefixes: PrefixCache[Any] = PrefixCache(prefix_cache_tokens // BLOCK)
        self._speculate = speculate
        self._cost = StepCost()
        self._deliveries = deliveries_per_step
        self._clock = clock
        self._finished: list[Sequence] = []
        self._inbox: deque[Sequence] = deque()
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)

    @property
    def running(self) -> int:
        """Sequences in rows."""
        return len(self._scheduler.running) + len(self._scheduler.staged)

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._scheduler.waiting) + len(self._inbox)

    @property
    def cached_prefix_tokens(self) -> int:
        """Tokens in the prefix cache."""
        return len(self._prefixes) * BLOCK

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            QueueFull: it was not queued, and nothing will be delivered.
            ValueError: its prompt does not fit the context.
        """
        if not 0 < len(request.prompt) < self._limits.max_model_len:
            raise ValueError(
                f"the prompt has {len(request.prompt)} tokens, it must have from 1 to"
                f" {self._limits.max_model_len - 1}: prompt and answer share {self._limits.max_model_len}"
            )
        sequence = Sequence(request, self._ends, self._decode_text, self._clock())
        with self._work:
            if self.waiting >= self._limits.max_queue_size:
                self.stats.finished["refused"] += 1
                raise QueueFull(f"the queue is full: {self.waiting} requests wait; try again later")
            self._inbox.append(sequence)
            self._work.notify()

    def wait_for_work(self, timeout: float) -> None:
        """Block until there is something to do, or for `timeout` seconds."""
        with self._work:
            if self._scheduler.idle and not self._inbox:
                self._work.wait(timeout)

    def fail_all(self, failure: Failure, message: str) -> None:
        """End every request, as the server stops."""
        self._read_inbox()
        for sequence in self._scheduler.everyone():
            self._fail(sequence, failure, message)

    def step(self) -> None:
        """Write some prompt tokens, give each running sequence its next token, deliver what is new."""
        began = self._clock()
        self._read_inbox()
        self._drop_the_gone(began)
        budget = self._scheduler.budget
        while work := self._scheduler.next_prefill(budget, self._count_cached):
            budget -= work.cost
            self._guarded(self._prefill, work, work.sequences)
        if running := list(self._scheduler.running):
            self._guarded(self._decode, running, running)
        self._deliver()
        self.stats.steps += 1
        self.stats.busy_seconds += self._clock() - began

    def _read_inbox(self) -> None:
        with self._lock:
            while self._inbox:
                self._scheduler.waiting.append(self._inbox.popleft())

    def _drop_the_gone(self, now: float) -> None:
        """Half of the sequences are asked in each step: whoever has left keeps a row for two at most."""
        for sequence in self._scheduler.everyone():
            deadline = sequence.request.deadline
            if deadline is not None and now >= deadline:
                self._fail(
                    sequence, Failure.DEADLINE, f"no complete answer after {now - sequence.arrived:.1f} s"
                )
            elif (sequence.number + self.stats.steps) % 2 == 0 and sequence.request.gone():
                self._fail(sequence, Failure.CANCELLED, "the caller has left")

    def _guarded(self, run: Callable[[Any], None], work: Any, sequences: Tokens[Sequence]) -> None:
        """A failure of the model ends the sequences it was run for, and no others."""
        try:
            run(work)
        except Exception as error:  # noqa: BLE001 - whatever it is, each caller must hear of it
            for sequence in sequences:
                if sequence.finish_reason is None:
                    self._fail(sequence, Failure.INTERNAL, f"{type(error).__name__}: {error}")

    def _count_cached(self, sequence: Sequence) -> int:
        return len(self._prefixes.match(sequence.request.prompt)) * BLOCK

    def _prefill(self, work: Prefill) -> None:
        if work.together:
            prompts = [sequence.request.prompt for sequence in work.sequences]
            logits = self._timed(lambda: self._model.prefill_together(work.row, prompts))
        else:
            (only,) = work.sequences
            if only.cached and not only.computed:
                for index, saved in enumerate(self._prefixes.match(only.request.prompt)):
                    self._model.restore(work.row, index * BLOCK, saved)
            part = only.request.prompt[work.start : work.stop]
            scored = range(min(len(part), max(0, only.scored_positions - work.start)))
            wanted = [*scored, len(part) - 1]
            logits = self._timed(lambda: self._model.prefill(work.row, part, work.start, wanted))
            if scored:
                following = only.request.prompt[work.start + 1 : work.start + 1 + len(scored)]
                only.surprise += float(surprise(logits[: len(scored)], following).sum())
            logits = logits[len(scored) :]
            only.computed = work.stop
            if work.stop < len(only.request.prompt):
                return
        for sequence in work.sequences:
            self._start_running(sequence)
            if sequence.request.scored and sequence.scored_positions:
                sequence.request.scored(math.exp(sequence.surprise / sequence.scored_positions))
        self._choose(work.sequences, logits)

    def _start_running(self, sequence: Sequence) -> None:
        prompt, staged = sequence.request.prompt, sequence.row
        assert staged is not None  # noqa: S101
        sequence.computed = len(prompt)
        self.stats.prompt_tokens += len(prompt)
        self.stats.cached_tokens += sequence.cached
        self._prefixes.insert(prompt, lambda start, stop: self._model.save(staged, start, stop))
        self._model.copy(staged, self._scheduler.promote(sequence), len(prompt))

    def _decode(self, running: Tokens[Sequence]) -> None:
        if len(running) == 1 and self._speculate and self._check_guesses(running[0]):
            return
        began = self._clock()
        logits = self._timed(
            lambda: self._model.decode([s.output[-1] for s in running], [s.computed for s in running])
        )
        if len(running) == 1:
            self._cost.record(self._clock() - began, guesses=0)
        for sequence in running:
            sequence.computed += 1
        self._choose(running, logits)

    def _check_guesses(self, sequence: Sequence) -> bool:
        """One step for the next token and some guesses beyond it; False: there is no good guess."""
        most = min(sequence.most - len(sequence.output), self._limits.max_model_len - sequence.length) - 1
        guesses = sequence.guesser.guess(most, self._cost.ratio) if most > 0 else []
        if not guesses or sequence.row is None:
            return False
        row, tokens = sequence.row, [sequence.output[-1], *guesses]
        began = self._clock()
        logits = self._timed(lambda: self._model.prefill(row, tokens, sequence.computed, range(len(tokens))))
        self._cost.record(self._clock() - began, guesses=len(guesses))
        accepted = 0
        for position in range(len(tokens)):
            sequence.computed += 1
            self._choose([sequence], logits[position : position + 1])
            right = position < len(guesses) and sequence.output[-1] == guesses[position]
            if sequence.finish_reason is not None or not right:
                break
            accepted += 1
        sequence.guesser.learn(accepted)
        self.stats.guessed_tokens += len(guesses)
        self.stats.accepted_tokens += accepted
        return True

    def _choose(self, sequences: Tokens[Sequence], logits: Logits) -> None:
        """One token for each, from its row of the logits."""
        likeliest = logits.argmax(axis=1).tolist()
        for sequence, row, best in zip(sequences, logits, likeliest, strict=True):
            try:
                token = sequence.chooser.choose(row, sequence.output, best)
                count = sequence.request.params.logprobs
                logprobs = None if count is None else top_logprobs(row, token, count)
                sequence.append(token, self._limits.max_model_len, logprobs)
            except Unmet as error:
                self._fail(sequence, Failure.UNMET, str(error))
                continue
            except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
                self._fail(sequence, Failure.INTERNAL, f"{type(error).__name__}: {error}")
                continue
            self.stats.generated_tokens += 1
            if sequence.finish_reason is not None:
                self._release(sequence)
                self._finished.append(sequence)

    def _deliver(self) -> None:
        """Give out what is new; see `deliveries_per_step`."""
        now = self._clock()
        every = -(-len(self._scheduler.running) // self._deliveries)
        for sequence in [*self._finished, *self._scheduler.running]:
            first = sequence.first_token is None
            if first:
                sequence.first_token = now
                self.stats.first_token_seconds.append(now - sequence.arrived)
            if sequence.finish_reason is not None:
                self.stats.finished[sequence.finish_reason] += 1
                sequence.request.deliver(sequence.take_chunk())
                continue
            due = first or (sequence.number + self.stats.steps) % every == 0
            if due and sequence.request.stream and sequence.unsent:
                sequence.request.deliver(sequence.take_chunk())
        self._finished = []

    def _release(self, sequence: Sequence) -> None:
        """Free a sequence's row, wherever it is, and keep what it computed for the next turn."""
        row = sequence.row
        if row is not None and sequence in self._scheduler.running:
            computed = sequence.tokens[: sequence.computed]
            self._prefixes.insert(computed, lambda start, stop: self._model.save(row, start, stop))
        last = self._scheduler.running[-1] if self._scheduler.running else None
        if (move := self._scheduler.remove(sequence)) and last is not None:
            self._model.copy(*move, last.computed)

    def _fail(self, sequence: Sequence, failure: Failure, message: str) -> None:
        self._release(sequence)
        self.stats.finished[failure.value] += 1
        sequence.finish_reason = failure.value
        sequence.request.deliver((failure, message))

    def _timed(self, run: Callable[[], Logits]) -> Logits:
        began = self._clock()
        logits = run()
        self.stats.model_seconds += self._clock() - began
        return logits
