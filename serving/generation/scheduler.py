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

# Tokens of a prompt that are written at once, where it has as many: one alone is added up in another order.
LEAST = 2


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
        return self._part(self.staged[0], budget)

    def prefills(self, count_cached: Callable[[Sequence], int]) -> list[Prefill]:
        """What to write in one run of this step: each of them one sequence.

        Args:
            count_cached: see `next_prefill`.
        """
        budget, found = self.budget, []
        for sequence in self.staged:
            found.append(self._part(sequence, budget))
            budget -= found[-1].cost
            if budget < LEAST:
                return found
        while budget >= LEAST and self.waiting and self.free and len(self.staged) < self.limits.staging_rows:
            head = self.waiting.popleft()
            head.cached = count_cached(head) if head.judged_positions == 0 else 0
            used = {sequence.row for sequence in self.staged}
            rows = range(self.limits.max_num_seqs, self.limits.probe_row)
            head.row = next(row for row in rows if row not in used)
            self.staged.append(head)
            found.append(self._part(head, budget))
            budget -= found[-1].cost
        return found

    def _part(self, sequence: Sequence, budget: int) -> Prefill:
        """The next tokens of a prompt."""
        start, length = sequence.computed or sequence.cached, len(sequence.request.prompt)
        stop = min(length, start + budget)
        return Prefill((sequence,), start, stop - 1 if stop == length - 1 and stop - 1 > start else stop)

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
