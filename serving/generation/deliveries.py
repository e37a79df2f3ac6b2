"""Hands parts of answers to their callers, the last part once, whatever a caller does."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field

from serving.generation.sequence import Chunk, Failure, Sequence

# Longest time that a stream's new tokens are held back, in seconds.
MOST_SECONDS = 0.1
_log = logging.getLogger(__name__)


@dataclass
class Stats:
    """Counted since the start, without probes; read by whoever publishes metrics.

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


class Deliveries:
    """What is to be delivered.

    Args:
        stats: counts how requests end, and takes the times to first tokens.
        per_second: see `engine.Engine`.
        clock: seconds, monotonic.
    """

    def __init__(self, stats: Stats, per_second: float, clock: Callable[[], float]) -> None:
        self._stats, self._per_second, self._clock = stats, per_second, clock
        self._finished: deque[Sequence] = deque()

    def finish(self, sequence: Sequence) -> None:
        """An answer is complete, to be given with the others of its step."""
        self._finished.append(sequence)

    def end(self, sequence: Sequence, failure: Failure, message: str) -> None:
        """End a request without an answer, or with a part of one."""
        sequence.finish_reason = failure.value
        self._stats.finished[failure.value] += 1
        self.hand_out(sequence, (failure, message))

    def give(self, running: Tokens[Sequence]) -> list[tuple[Sequence, str]]:
        """Give out what is new, of answers that are complete and of some that are not.

        Returns:
            Whose part could not be delivered, and why.
        """
        interval = min(MOST_SECONDS, len(running) / self._per_second)
        self.give_finished()
        now = self._clock()
        failed = []
        for sequence in running:
            first = self._note_first(sequence)
            due = first or now - sequence.delivered >= interval
            if not (due and sequence.request.stream and sequence.unsent):
                continue
            sequence.delivered = now
            try:
                part = sequence.take_chunk()
            except Exception as error:  # noqa: BLE001 - its text cannot be made; the others go on
                failed.append((sequence, described(error)))
                continue
            if reason := self.hand_out(sequence, part):
                failed.append((sequence, reason))
        return failed

    def give_finished(self) -> None:
        """Give out the answers that are complete."""
        while self._finished:
            sequence = self._finished.popleft()
            self._note_first(sequence)
            error = self.hand_out(sequence, sequence.take_chunk())
            if error:
                self.hand_out(sequence, (Failure.INTERNAL, error))
            self._stats.finished[Failure.INTERNAL.value if error else str(sequence.finish_reason)] += 1

    def hand_out(self, sequence: Sequence, part: Chunk | tuple[Failure, str]) -> str:
        """Deliver a part. Returns why that failed, or ""."""
        try:
            sequence.request.deliver(part)
        except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
            reason = f"a part of the answer was not delivered: {described(error)}"
            _log.warning(reason)
            return reason
        return ""

    def _note_first(self, sequence: Sequence) -> bool:
        """Whether this is its first part; then the time until now is taken."""
        if sequence.first_token is not None:
            return False
        sequence.first_token = self._clock()
        self._stats.first_token_seconds.append(sequence.first_token - sequence.arrived)
        return True


def described(error: Exception) -> str:
    """Describe an error in one line."""
    return f"{type(error).__name__}: {error}"
