"""Who runs when. Policy only: it knows sequences and row numbers, no model and no server.

First come, first served, in two stages. A prompt is written into a *staging* row, a limited number of
tokens a step, so that streams that run are never held up for long; several short prompts at once, since
a matrix product of thirty rows costs little less than one of a hundred. Then it moves to the end of the
*running* rows 0, 1, ..., n - 1, all of which get one token a step. When one of them leaves, the last
takes its row: the rows in use are always the first n, as the attention over them needs it.

A request waits for a bounded number of steps. In each step either all rows run, and every request that
runs gets a token; or a prompt before it in the queue is written, to its end or by `max_num_batched_tokens`.
So the first token of a request comes at the latest in step

    sum over it and those before it of (prompt tokens not yet written // max_num_batched_tokens + 1)
    + sum over those before it of their tokens to come // max_num_seqs
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from serving.generation.sequence import Sequence

# Tokens of a prompt that a mixing model writes at once, where the prompt has as many: it adds up one token in
# another order than several, and where a prompt is cut must not change its answer.
LEAST_TOKENS = 2
# Or a step would not always be enough for such parts.
LEAST_BATCHED_TOKENS = 2 * LEAST_TOKENS


@dataclass(frozen=True)
class Limits:
    """How much of everything, in vLLM's names.

    Attributes:
        max_num_seqs: sequences that run at once.
        max_model_len: tokens of a prompt and its answer together.
        max_queue_size: requests that may wait besides those that rows are free for.
        max_num_batched_tokens: tokens of prompts written in one step while streams run; twice as many
            while none does.
        staging_rows: prompts written at once.
    """

    max_num_seqs: int = 32
    max_model_len: int = 2048
    max_queue_size: int = 256
    max_num_batched_tokens: int = 256
    staging_rows: int = 8

    @property
    def probe_row(self) -> int:
        """The last row, which only probes are written into."""
        return self.max_num_seqs + self.staging_rows

    @property
    def rows(self) -> int:
        """Rows that the cache needs."""
        return self.probe_row + 1


@dataclass(frozen=True)
class Prefill:
    """Prompt tokens to write now: the first ones of several sequences, or the next ones of a single one.

    Attributes:
        sequences: in rows staging, staging + 1, ...
        start, stop: tokens to write; several are written whole, the shorter ones filled up.
    """

    sequences: tuple[Sequence, ...]
    start: int
    stop: int

    @property
    def row(self) -> int:
        """The row of the first sequence."""
        row = self.sequences[0].row
        assert row is not None  # noqa: S101 - staged
        return row

    @property
    def together(self) -> bool:
        """Whether they are written as one batch, which only works from the first token on."""
        return len(self.sequences) > 1

    @property
    def cost(self) -> int:
        """Tokens, those that only fill up included."""
        return len(self.sequences) * (self.stop - self.start)


class Scheduler:
    """Queue, staging and running rows.

    Args:
        limits: see there.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.waiting: deque[Sequence] = deque()
        self.staged: list[Sequence] = []
        self.running: list[Sequence] = []

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.waiting or self.staged or self.running)

    def everyone(self) -> list[Sequence]:
        """All sequences, those in rows first."""
        return [*self.running, *self.staged, *self.waiting]

    @property
    def budget(self) -> int:
        """Prompt tokens that this step may write."""
        return self.limits.max_num_batched_tokens * (1 if self.running else 2)

    def next_prefill(self, budget: int, count_cached: Callable[[Sequence], int]) -> Prefill | None:
        """What to write next, at most `budget` tokens of it; None: nothing, or no row is free.

        Args:
            count_cached: tokens at the beginning of a sequence that the prefix cache holds.
        """
        if budget <= 0:
            return None
        if not self.staged:
            self._stage(budget, count_cached)
        if not self.staged:
            return None
        if len(self.staged) > 1:
            return Prefill(tuple(self.staged), 0, max(len(s.request.prompt) for s in self.staged))
        only = self.staged[0]
        start = only.computed or only.cached
        return _part(only, min(len(only.request.prompt) - start, budget))

    def prefills(self, count_cached: Callable[[Sequence], int]) -> list[Prefill]:
        """What a mixing model is to write in this step: each of them a part of one prompt.

        Args:
            count_cached: see `next_prefill`.
        """
        budget = self.budget
        found: list[Prefill] = []
        for sequence in self.staged:
            if not (count := _fitting(sequence, budget)):
                return found
            found.append(_part(sequence, count))
            budget -= count
        while self.waiting and self.free and len(self.staged) < self.limits.staging_rows:
            head = self.waiting[0]
            head.cached = 0 if head.judged_positions else count_cached(head)
            if not (count := _fitting(head, budget)):
                head.cached = 0  # it may be dropped from the cache before it is asked for again
                return found
            used = {sequence.row for sequence in self.staged}
            rows = range(self.limits.max_num_seqs, self.limits.probe_row)
            head.row = next(row for row in rows if row not in used)
            self.staged.append(self.waiting.popleft())
            found.append(_part(head, count))
            budget -= count
        return found

    def _stage(self, budget: int, count_cached: Callable[[Sequence], int]) -> None:
        """Several that fit together, or one that is longer, scored, or begins with a known prefix."""
        free = min(len(self.staged) + self.free, self.limits.staging_rows)
        longest = 0
        while self.waiting and len(self.staged) < free:
            head = self.waiting[0]
            longest = max(longest, len(head.request.prompt))
            scored = head.judged_positions > 0
            cached = 0 if scored else count_cached(head)
            alone = scored or bool(cached) or longest > budget
            if self.staged and (alone or (len(self.staged) + 1) * longest > budget):
                break
            if len(head.request.prompt) - cached > budget and budget < self.budget:
                break  # a larger part of it fits the next step
            self.waiting.popleft()
            head.row, head.cached = self.limits.max_num_seqs + len(self.staged), cached
            self.staged.append(head)
            if alone:
                break

    @property
    def free(self) -> int:
        """Rows that nobody runs in, or is written for."""
        return self.limits.max_num_seqs - len(self.running) - len(self.staged)

    @property
    def next_row(self) -> int:
        """The row in which the next sequence will run."""
        return len(self.running)

    def promote(self, sequence: Sequence) -> None:
        """A staged sequence is written, and copied to `next_row`: it runs from now on."""
        self.staged.remove(sequence)
        sequence.row = self.next_row
        self.running.append(sequence)

    def remove(self, sequence: Sequence) -> tuple[int, int] | None:
        """Take a sequence out, wherever it is. Returns (source, target) if a row is to be moved."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            return None
        if sequence in self.staged:
            self.staged.remove(sequence)
            sequence.row = None
            return None
        hole = self.running.index(sequence)
        last = self.running.pop()
        sequence.row = None
        if last is sequence:
            return None
        self.running[hole] = last
        source, last.row = len(self.running), hole
        return source, hole

    def clear(self) -> list[Sequence]:
        """Take all sequences out. Returns them, those in rows first."""
        everyone = self.everyone()
        self.waiting.clear()
        self.staged.clear()
        self.running.clear()
        return everyone


def _part(sequence: Sequence, count: int) -> Prefill:
    """The next tokens of a prompt."""
    start = sequence.computed or sequence.cached
    return Prefill((sequence,), start, start + count)


def _fitting(sequence: Sequence, budget: int) -> int:
    """How many of a prompt's next tokens to write, so that no part of it is shorter than `LEAST_TOKENS`.

    0: none now; a whole step's budget is always enough.
    """
    left = len(sequence.request.prompt) - (sequence.computed or sequence.cached)
    count = min(left, budget)
    if 0 < left - count < LEAST_TOKENS:
        count = left - LEAST_TOKENS
    return max(0, count) if count >= min(LEAST_TOKENS, left) else 0
