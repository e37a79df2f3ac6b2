"""Continuous batching: sequences join and leave at every step. `step` is plan -> run -> choose -> deliver.

Knows the model as a few operations on rows of a cache (`Model`), so that it is tested with a toy; knows
nothing of Triton, ONNX Runtime or OpenVINO. One thread calls `step`; `submit` may be called from any.

Whatever fails, every request gets one last part. Only those requests end with an error whose own keys and
values, tokens or caller the failure is about. What a failing operation may have spoilt is not read again.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Tokens
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.generation.deliveries import Deliveries, Stats, described
from serving.generation.judging import judge, tell_score
from serving.generation.model import Logits, MixingModel, Model, Part
from serving.generation.params import Unmet
from serving.generation.prefix import RowPrefixes
from serving.generation.sampling import top_logprobs
from serving.generation.scheduler import LEAST_TOKENS, Limits, Prefill, Scheduler
from serving.generation.sequence import Chunk, Failure, Request, Sequence
from serving.generation.speculation import StepCost
from serving.generation.text import Decode
from shoal.dialect import QUEUE_FULL

PROBE_TOKENS = 16  # of a probe's prompt, at most: it is written beside what a step may write
_log = logging.getLogger(__name__)


class QueueFull(RuntimeError):
    """The queue is full: as many requests wait as may wait."""


class Engine:
    """Runs requests on a model.

    Args:
        model: its rows must number `limits.rows`, of `limits.max_model_len` tokens.
        limits: see `scheduler.Limits`.
        ends: the model's own end-of-text tokens.
        decode: token ids to text, special tokens left out.
        prefix_cache_tokens: tokens of past prompts and answers that are kept for the next; 0: none.
        speculate: guess tokens from the text so far while a request runs alone.
        responses_per_second: of all streams together, about. A response costs CPU time that the next
            step needs, so where streams are many each gets several tokens at once, as vLLM's
            `stream_interval` does it. The first token and the last are never held back, and no token
            longer than `deliveries.MOST_SECONDS`.
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
        responses_per_second: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stats = Stats()
        self._model = model
        self._mixing = model if isinstance(model, MixingModel) else None
        left = 1 if self._mixing is None else LEAST_TOKENS
        self._prefixes = RowPrefixes(model, prefix_cache_tokens, left)
        self._limits = limits
        self._ends, self._decode_text = ends, decode
        self._scheduler = Scheduler(limits)
        self._speculate = speculate
        self._cost = StepCost()
        self._clock = clock
        self._deliveries = Deliveries(self.stats, responses_per_second, clock)
        self._inbox: deque[Sequence] = deque()
        self._probe: Sequence | None = None
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
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self._scheduler.idle and not self._inbox and self._probe is None

    @property
    def cached_prefix_tokens(self) -> int:
        """Tokens in the prefix cache."""
        return self._prefixes.tokens

    def submit(self, request: Request) -> None:
        """Queue a request. A probe is not queued: the next step answers it before all others.

        Raises:
            QueueFull: it was not queued, and nothing will be delivered; a probe: there is one already.
            ValueError: its prompt does not fit the context; a probe: it asks for too much.
        """
        if not 0 < len(request.prompt) < self._limits.max_model_len:
            raise ValueError(
                f"the prompt has {len(request.prompt)} tokens, it must have from 1 to"
                f" {self._limits.max_model_len - 1}: prompt and answer share {self._limits.max_model_len}"
            )
        if request.probe and (len(request.prompt) > PROBE_TOKENS or request.params.max_tokens != 1):
            raise ValueError(
                f"a probe has 1 to {PROBE_TOKENS} tokens and max_tokens 1, not {len(request.prompt)} and"
                f" {request.params.max_tokens}"
            )
        sequence = Sequence(request, self._ends, self._decode_text, self._clock())
        with self._work:
            if request.probe:
                if self._probe is not None:
                    raise QueueFull(f"{QUEUE_FULL}another probe is not answered yet; try again later")
                self._probe = sequence
                self._work.notify()
                return
            # Those that rows are free for wait for the next step only, and a burst is not refused for them.
            waiting = self.waiting - self._scheduler.free
            if waiting >= self._limits.max_queue_size:
                self.stats.finished["refused"] += 1
                raise QueueFull(f"{QUEUE_FULL}{waiting} requests wait; try again later")
            self._inbox.append(sequence)
            self._work.notify()

    def wait_for_work(self, timeout: float) -> None:
        """Block until there is something to do, or for `timeout` seconds."""
        with self._work:
            if self.idle:
                self._work.wait(timeout)

    def fail_all(self, failure: Failure, message: str) -> None:
        """End every request, as the server stops; answers that are complete are still delivered."""
        self._read_inbox()
        with self._lock:
            probe, self._probe = self._probe, None
        self._deliveries.give_finished()
        for sequence in [*([probe] if probe else []), *self._scheduler.clear()]:
            self._deliveries.end(sequence, failure, message)

    def step(self) -> None:
        """Write some prompt tokens, give each running sequence its next token, deliver what is new."""
        began = self._clock()
        self._answer_probe()
        self._read_inbox()
        self._drop_the_gone(began)
        running = list(self._scheduler.running)
        if self._mixing is not None:
            self._run(self._mixing, running)
        else:
            self._prefill_all()
            # First tokens do not wait for the others' next ones.
            self._deliver(self._scheduler.running[len(running) :])
            if running:
                self._guarded(self._decode, running, running)
        self._deliver(self._scheduler.running)
        self.stats.steps += 1
        self.stats.busy_seconds += self._clock() - began

    def _deliver(self, sequences: Tokens[Sequence]) -> None:
        for sequence, error in self._deliveries.give(sequences):
            self._fail(sequence, Failure.INTERNAL, error)

    def _answer_probe(self) -> None:
        """Answer the probe that waits, in a row which no other request uses."""
        if (probe := self._probe) is None:
            return
        prompt = probe.request.prompt
        part: Chunk | tuple[Failure, str]
        try:
            logits = self._model.prefill(self._limits.probe_row, prompt, 0, [len(prompt) - 1])
            self._append(probe, logits[0], int(logits[0].argmax()))
            part = probe.take_chunk()
        except Unmet as error:
            part = Failure.UNMET, str(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller must hear of it
            part = Failure.INTERNAL, described(error)
        with self._lock:
            self._probe = None
        self._deliveries.hand_out(probe, part)

    def _read_inbox(self) -> None:
        with self._lock:
            while self._inbox:
                self._scheduler.waiting.append(self._inbox.popleft())

    def _drop_the_gone(self, now: float) -> None:
        """Half of the sequences are asked in each step: whoever has left keeps a row for two at most."""
        for sequence in self._scheduler.everyone():
            if sequence.finish_reason is not None:  # it was to move to a row that became free
                continue
            deadline = sequence.request.deadline
            if deadline is not None and now >= deadline:
                self._fail(
                    sequence, Failure.DEADLINE, f"no complete answer after {now - sequence.arrived:.1f} s"
                )
            elif (sequence.number + self.stats.steps) % 2 == 0:
                try:
                    left = sequence.request.is_cancelled()
                except Exception as error:  # noqa: BLE001 - the others go on
                    self._fail(sequence, Failure.INTERNAL, described(error))
                    continue
                if left:
                    self._fail(sequence, Failure.CANCELLED, "the caller has left")

    def _guarded(self, run: Callable[[Any], None], work: Any, sequences: Tokens[Sequence]) -> None:
        """A failure of the model ends the sequences it was run for, and no others."""
        try:
            run(work)
        except Exception as error:  # noqa: BLE001 - whatever it is, each caller must hear of it
            for sequence in sequences:
                self._fail(sequence, Failure.INTERNAL, described(error))

    def _cached(self, sequence: Sequence) -> int:
        return self._prefixes.count(sequence.request.prompt)

    def _prefill_all(self) -> None:
        budget = self._scheduler.budget
        while work := self._scheduler.next_prefill(budget, self._cached):
            budget -= work.cost
            self._guarded(self._prefill, work, work.sequences)

    def _prefill(self, work: Prefill) -> None:
        if work.together:
            prompts = [sequence.request.prompt for sequence in work.sequences]
            logits = self._timed(lambda: self._model.prefill_together(work.row, prompts))
        else:
            (part,) = self._parts(work)
            logits = self._timed(lambda: self._model.prefill(part.row, part.tokens, part.start, part.wanted))
        self._written(work, logits)

    def _run(self, model: MixingModel, running: Tokens[Sequence]) -> None:
        """Write prompts and the next tokens of all that run, at once.

        Whatever fails is done again by itself, which shows whom the failure is about.
        """
        works = self._scheduler.prefills(self._cached)
        if running and not works:
            self._guarded(self._decode, running, running)
        if not works:
            return
        try:
            parts = [part for work in works for part in self._parts(work)]
            # As in `decode`, rows 0, 1, ... are theirs.
            steps = [Part(row, [s.output[-1]], s.computed, [0]) for row, s in enumerate(running)]
            logits = self._timed(lambda: model.run([*parts, *steps]))
        except Exception as error:  # noqa: BLE001 - it fails again by itself, and is told there
            _log.warning("prompts and steps are run by themselves: %s", described(error))
            for work in works:
                (only,) = work.sequences
                if not only.computed and self._prefixes.count(only.request.prompt) < only.cached:
                    only.cached = 0  # what is known was lost; it stays staged, and is written from the start
                else:
                    self._guarded(self._prefill, work, work.sequences)
            if running:
                self._guarded(self._decode, running, running)
            return
        *prompts, nexts = np.split(logits, np.cumsum([len(part.wanted) for part in parts]))
        for sequence in running:
            sequence.computed += 1
        self._choose(running, nexts)
        for work, found in zip(works, prompts, strict=True):
            self._guarded(partial(self._written, logits=found), work, work.sequences)

    def _parts(self, work: Prefill) -> list[Part]:
        """What is to be run for prompts; what the prefix cache holds of them is restored."""
        if work.together:
            prompts = [sequence.request.prompt for sequence in work.sequences]
            return [Part(work.row + n, prompt, 0, [len(prompt) - 1]) for n, prompt in enumerate(prompts)]
        (only,) = work.sequences
        if only.cached and not only.computed:
            self._prefixes.restore(only.request.prompt, work.row)
        tokens = only.request.prompt[work.start : work.stop]
        judged = range(min(len(tokens), max(0, only.judged_positions - work.start)))
        return [Part(work.row, tokens, work.start, [*judged, len(tokens) - 1])]

    def _written(self, work: Prefill, logits: Logits) -> None:
        """Let those run whose prompts are written, with their first tokens.

        Args:
            logits: of the positions that `_parts` wants.
        """
        if not work.together:
            (only,) = work.sequences
            if len(logits) > 1:
                judge(only, logits[:-1], work.start)
            logits = logits[-1:]
            only.computed = work.stop
            if work.stop < len(only.request.prompt):
                return
        started = []
        for place, sequence in enumerate(work.sequences):
            try:
                self._start_running(sequence)
            except Exception as error:  # noqa: BLE001 - those that were written beside it go on
                self._fail(sequence, Failure.INTERNAL, described(error))
            else:
                started.append(place)
                tell_score(sequence)
        self._choose([work.sequences[place] for place in started], logits[started])

    def _start_running(self, sequence: Sequence) -> None:
        prompt, staged = sequence.request.prompt, sequence.row
        assert staged is not None  # noqa: S101
        self._prefixes.keep(prompt, staged)
        self._model.move(staged, self._scheduler.next_row, len(prompt))
        self._scheduler.promote(sequence)
        sequence.computed = len(prompt)
        self.stats.prompt_tokens += len(prompt)
        self.stats.cached_tokens += sequence.cached

    def _decode(self, running: Tokens[Sequence]) -> None:
        alone = len(self._scheduler.running) == 1
        if alone and self._speculate and self._check_guesses(running[0]):
            return
        began = self._clock()
        logits = self._timed(
            lambda: self._model.decode([s.output[-1] for s in running], [s.computed for s in running])
        )
        if alone:
            self._cost.record(self._clock() - began, guesses=0)
        for sequence in running:
            sequence.computed += 1
        self._choose(running, logits)

    def _check_guesses(self, sequence: Sequence) -> bool:
        """One step for the next token and some guesses beyond it; False: there is no good guess."""
        most = min(sequence.most - len(sequence.output), self._limits.max_model_len - sequence.length) - 1
        sequence.guesser.extend(sequence.tokens_from(sequence.guesser.known))
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
            if sequence.finish_reason is not None:  # it was to move to a row that became free
                continue
            try:
                self._append(sequence, row, best)
            except Unmet as error:
                self._fail(sequence, Failure.UNMET, str(error))
                continue
            except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
                self._fail(sequence, Failure.INTERNAL, described(error))
                continue
            self.stats.generated_tokens += 1
            if sequence.finish_reason is not None:
                self._deliveries.finish(sequence)
                self._release(sequence)

    def _append(self, sequence: Sequence, row: NDArray[np.float32], best: int) -> None:
        token = sequence.chooser.choose(row, sequence.output, best)
        count = sequence.request.params.logprobs
        logprobs = None if count is None else top_logprobs(row, token, count)
        sequence.append(token, self._limits.max_model_len, logprobs)

    def _release(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Free a sequence's row, wherever it is.

        Args:
            keep: what it computed, for the next turn.
        """
        if keep and sequence.row is not None and sequence in self._scheduler.running:
            self._prefixes.keep(sequence.tokens[: sequence.computed], sequence.row)
        lost = []
        while (unmoved := self._vacate(sequence)) is not None:
            lost.append(unmoved)
            sequence, _ = unmoved
        for other, error in lost:
            self._deliveries.end(other, Failure.INTERNAL, error)

    def _vacate(self, sequence: Sequence) -> tuple[Sequence, str] | None:
        """Free a row. Returns who was to move there and has lost its keys and values, and why; or None."""
        last = self._scheduler.running[-1] if self._scheduler.running else None
        move = self._scheduler.remove(sequence)
        if move is None or last is None:
            return None
        try:
            self._model.move(*move, last.computed)
        except Exception as error:  # noqa: BLE001 - its caller must hear of it
            return last, described(error)
        return None

    def _fail(self, sequence: Sequence, failure: Failure, message: str) -> None:
        """End a sequence that is in the scheduler, unless it has ended already."""
        if sequence.finish_reason is None:
            self._release(sequence, keep=failure is not Failure.INTERNAL)
            self._deliveries.end(sequence, failure, message)

    def _timed(self, run: Callable[[], Logits]) -> Logits:
        began = self._clock()
        logits = run()
        self.stats.model_seconds += self._clock() - began
        return logits
