"""Guess the next tokens from the text so far, and check all guesses in one step.

Prompt lookup (Saxena 2023; in transformers as `prompt_lookup_num_tokens`, in vLLM as n-gram
speculation): where the last few tokens have stood before, what followed them then is the guess. An
answer that quotes its prompt, as summaries and code edits do, comes several tokens a step.

The step that checks k guesses costs more than a plain one, so a request guesses only while it pays: the
accepted tokens of its last guesses against the measured cost of checking them.
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST, SHORTEST = 4, 2  # tokens that must match
GUESSES = 4
MEMORY = 0.8  # weight of the past in moving averages
RETRY = 32  # tokens after which a request that gave up tries once more


class Guesser:
    """Guesses for one request. It learns when somebody asks it, and costs nothing before.

    Args:
        prompt: token ids that it learns at once.
    """

    def __init__(self, prompt: Sequence[int] = ()) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._accepted = float(GUESSES)  # hopeful at first
        self._silent = 0
        self.extend(prompt)

    @property
    def known(self) -> int:
        """How many tokens it has learned."""
        return len(self._tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Learn tokens of the prompt or the answer."""
        for token in tokens:
            for length in range(SHORTEST, LONGEST + 1):
                if len(self._tokens) >= length:
                    self._after[tuple(self._tokens[-length:])] = len(self._tokens)
            self._tokens.append(token)
        self._silent += len(tokens)

    def guess(self, most: int, cost: float) -> list[int]:
        """At most `most` tokens that may come next; [] where none is likely or it would not pay.

        Args:
            cost: of a step that checks guesses, in plain steps.
        """
        if 1 + self._accepted <= cost and self._silent < RETRY:
            return []
        for length in range(LONGEST, SHORTEST - 1, -1):
            place = self._after.get(tuple(self._tokens[-length:]))
            if place is not None and len(self._tokens) >= length:
                return self._tokens[place : place + min(most, GUESSES)]
        return []

    def learn(self, accepted: int) -> None:
        """How many of the last guesses were right."""
        self._accepted = MEMORY * self._accepted + (1 - MEMORY) * accepted
        self._silent = 0


class StepCost:
    """What a step that checks guesses costs, in plain steps, as measured."""

    def __init__(self) -> None:
        self._plain = self._checked = 0.0

    @property
    def ratio(self) -> float:
        """1 until both kinds have been seen."""
        return self._checked / self._plain if self._plain and self._checked else 1.0

    def record(self, seconds: float, *, guesses: int) -> None:
        """Learn the duration of a step."""
        if guesses:
            self._checked = MEMORY * self._checked + (1 - MEMORY) * seconds if self._checked else seconds
        else:
            self._plain = MEMORY * self._plain + (1 - MEMORY) * seconds if self._plain else seconds
