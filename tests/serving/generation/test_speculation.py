"""Guesses are what followed the last tokens before, and are made only while they pay."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.generation.speculation import GUESSES, LONGEST, RETRY, SHORTEST, Guesser, StepCost

REPEATING = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3]


def _reference(tokens: list[int], most: int) -> list[int]:
    """What followed the latest earlier occurrence of the longest end that has one."""
    for length in range(LONGEST, SHORTEST - 1, -1):
        for place in range(len(tokens) - 1, length - 1, -1):
            if tokens[place - length : place] == tokens[-length:]:
                return tokens[place : place + min(most, GUESSES)]
    return []


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 3), max_size=30),
    st.lists(st.lists(st.integers(0, 3), max_size=4), max_size=20),
    st.integers(1, 6),
)
def test_guesses_are_what_followed_the_last_tokens_before(
    prompt: list[int], parts: list[list[int]], most: int
) -> None:
    guesser, tokens = Guesser(prompt), list(prompt)
    for part in [[], *parts]:
        guesser.extend(part)
        tokens += part
        guesses = guesser.guess(most, 1.0)
        assert guesses == _reference(tokens, most)
        assert len(guesses) <= min(most, GUESSES)


@pytest.mark.parametrize("prompt", [[], [1], [1, 1], [1, 2], [1, 2, 1], [1, 2, 3, 4, 5, 6]])
def test_without_an_earlier_occurrence_of_two_tokens_nothing_is_guessed(prompt: list[int]) -> None:
    assert Guesser(prompt).guess(GUESSES, 1.0) == []


def test_no_more_is_guessed_than_may_come() -> None:
    guesser = Guesser(REPEATING)
    assert [guesser.guess(most, 1.0) for most in (0, 1, 2, 99)] == [[], [4], [4, 5], [4, 5, 6, 7]]


def test_a_request_whose_guesses_are_wrong_gives_up_and_tries_again_later() -> None:
    guesser, cost = Guesser(REPEATING), 2.0
    tries = 0
    while guesser.guess(GUESSES, cost):
        guesser.learn(0)
        tries += 1
        assert tries < 20
    assert tries > 1
    for _ in range(RETRY - 1):
        guesser.extend([1])
        assert guesser.guess(GUESSES, cost) == []
    guesser.extend([1])
    assert guesser.guess(GUESSES, cost) == [1]
    guesser.learn(0)
    assert guesser.guess(GUESSES, cost) == []


def test_a_retry_that_succeeds_brings_the_guesses_back() -> None:
    guesser, cost = Guesser(REPEATING), 1.5
    while guesser.guess(GUESSES, cost):
        guesser.learn(0)
    guesser.extend([1] * RETRY)
    assert guesser.guess(GUESSES, cost)
    guesser.learn(GUESSES)
    assert guesser.guess(GUESSES, cost)


def test_guesses_that_are_right_go_on_at_any_cost_below_their_worth() -> None:
    guesser = Guesser(REPEATING)
    for _ in range(50):
        assert guesser.guess(GUESSES, 1 + GUESSES - 0.01)
        guesser.learn(GUESSES)


def test_guesses_that_cost_more_than_they_can_save_are_not_made() -> None:
    assert Guesser(REPEATING).guess(GUESSES, 1.0 + GUESSES) == []


def test_the_cost_is_the_measured_ratio_once_both_kinds_of_steps_are_known() -> None:
    cost = StepCost()
    assert cost.ratio == 1.0
    cost.record(2.0, guesses=0)
    assert cost.ratio == 1.0
    cost.record(3.0, guesses=4)
    assert cost.ratio == pytest.approx(1.5)
    for _ in range(60):
        cost.record(4.0, guesses=1)
    assert cost.ratio == pytest.approx(2.0, rel=1e-3)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(1e-6, 10), st.integers(0, GUESSES)), max_size=30))
def test_the_cost_lies_within_what_was_measured(steps: list[tuple[float, int]]) -> None:
    cost = StepCost()
    for seconds, guesses in steps:
        cost.record(seconds, guesses=guesses)
    plain = [seconds for seconds, guesses in steps if not guesses]
    checked = [seconds for seconds, guesses in steps if guesses]
    if not plain or not checked:
        assert cost.ratio == 1.0
    else:
        low, high = min(checked) / max(plain), max(checked) / min(plain)
        assert low * (1 - 1e-9) <= cost.ratio <= high * (1 + 1e-9)
