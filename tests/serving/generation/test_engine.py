"""The engine on a toy model: whatever arrives, leaves or fails, every answer is the one given alone."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.generation.engine import QueueFull
from serving.generation.params import SamplingParams, Unmet
from serving.generation.sequence import Failure, Request
from tests.serving.generation.callers import LIMITS, Caller, decoded, engine_of, is_empty, run
from tests.serving.generation.toy import END, VOCABULARY, Toy, answer, next_token


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_request_gets_the_answer_it_would_get_alone(data: st.DataObject) -> None:
    """Random prompts, some sharing their beginning, arrive at random steps; some callers leave."""
    window = data.draw(st.sampled_from([None, 2]))
    engine, _ = engine_of(Toy(LIMITS.rows, LIMITS.max_model_len, window))
    shared = data.draw(st.lists(st.integers(1, 28), min_size=40, max_size=40))
    callers: list[Caller] = []
    for _ in range(data.draw(st.integers(1, 16))):
        own = data.draw(st.lists(st.integers(1, 28), min_size=1, max_size=30))
        begin = shared[: data.draw(st.sampled_from([0, 0, 16, 33, 40]))]
        params = SamplingParams(max_tokens=data.draw(st.integers(1, 24)), temperature=0)
        callers.append(Caller(begin + own, params, stream=data.draw(st.booleans())))
    leaving: list[Caller] = []
    for caller in callers:
        engine.submit(caller.request())
        for _ in range(data.draw(st.integers(0, 3))):
            engine.step()
        if data.draw(st.integers(0, 5)) == 0:
            caller.left = True
            leaving.append(caller)
    run(engine, callers)
    for caller in callers:
        assert len(caller.finals) == 1 and caller.parts[-1] is caller.finals[0]
        if caller in leaving and isinstance(caller.finals[0], tuple):
            assert caller.finals[0][0] is Failure.CANCELLED
            continue
        expected = answer(caller.prompt, caller.params.max_tokens, window)
        assert caller.text == decoded(expected)
        assert sum(part.tokens for part in caller.parts) == len(expected)
        assert caller.finals[0].finish_reason == ("stop" if expected[-1] == END else "length")
    assert is_empty(engine)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_failure_of_the_model_ends_only_the_requests_it_was_run_for(data: st.DataObject) -> None:
    engine, toy = engine_of()
    callers = []
    for _ in range(data.draw(st.integers(1, 10))):
        prompt = data.draw(st.lists(st.integers(1, 28), min_size=1, max_size=40))
        callers.append(Caller(prompt, SamplingParams(max_tokens=12, temperature=0)))
        engine.submit(callers[-1].request())
        toy.failing = set(
            data.draw(st.sampled_from([(), (), ("decode",), ("prefill",), ("prefill_together",)]))
        )
        engine.step()
    toy.failing = set()
    run(engine, callers)
    for caller in callers:
        assert len(caller.finals) == 1
        if isinstance(caller.finals[0], tuple):
            assert caller.finals[0][0] is Failure.INTERNAL and "fails" in caller.finals[0][1]
        else:
            assert caller.text == decoded(answer(caller.prompt, 12))
    assert is_empty(engine)


class DeadEnd:
    """A structure that leaves no token after two."""

    finished = False

    def __init__(self) -> None:
        self.taken = 0

    def allowed(self) -> Any:
        if self.taken == 2:
            raise Unmet("structured_outputs: no text can match it")
        return np.ones(VOCABULARY, bool)

    def consume(self, token: int) -> None:
        self.taken += 1


def test_an_answer_that_comes_to_a_dead_end_is_an_error_and_no_other_hears_of_it() -> None:
    engine, _ = engine_of()
    stuck, other = (Caller([1, 2, 3], SamplingParams(max_tokens=6, temperature=0)) for _ in range(2))
    engine.submit(stuck.request(matcher=DeadEnd()))
    engine.submit(other.request())
    run(engine, [stuck, other])
    assert stuck.finals == [(Failure.UNMET, "structured_outputs: no text can match it")]
    assert sum(part.tokens for part in stuck.parts[:-1]) <= 2
    assert other.text == decoded(answer([1, 2, 3], 6)) and len(other.finals) == 1
    assert engine.stats.finished["unmet"] == 1 and engine.stats.finished["internal"] == 0
    assert is_empty(engine)


def test_first_come_first_served() -> None:
    engine, _ = engine_of()
    order: list[int] = []
    for number in range(30):
        request = Caller(
            [1 + number % 28, 5, 9], SamplingParams(max_tokens=3, ignore_eos=True, temperature=0)
        )
        ours = request.request()
        started: list[int] = []

        def deliver(part: Any, number: int = number, started: list[int] = started) -> None:
            if not started:
                started.append(number)
                order.append(number)

        engine.submit(Request(ours.prompt, ours.params, True, deliver))
    for _ in range(200):
        engine.step()
    assert order == sorted(order) and len(order) == 30


def test_a_long_prompt_does_not_hold_up_streams_that_run() -> None:
    engine, toy = engine_of()
    quick = Caller([3, 4], SamplingParams(max_tokens=60, ignore_eos=True, temperature=0))
    engine.submit(quick.request())
    engine.step()
    long = Caller([1 + i % 28 for i in range(90)], SamplingParams(max_tokens=2, temperature=0))
    engine.submit(long.request())
    toy.calls.clear()
    while not long.parts:
        before = len(quick.parts)
        engine.step()
        assert len(quick.parts) == before + 1  # a token in every step
    chunks = [tokens for name, tokens in toy.calls if name == "prefill"]
    assert sum(chunks) == 90 and max(chunks) <= LIMITS.max_num_batched_tokens
    run(engine, [quick, long])
    assert long.text == decoded(answer(long.prompt, 2))


def test_prompts_that_come_together_are_written_together() -> None:
    engine, toy = engine_of()
    callers = [Caller([n, n + 1, n + 2], SamplingParams(max_tokens=4, temperature=0)) for n in (1, 5, 9)]
    for caller in callers:
        engine.submit(caller.request())
    engine.step()
    assert [name for name, _ in toy.calls] == ["prefill_together"]
    assert all(len(caller.parts) == 1 for caller in callers)  # first tokens do not wait for a step
    run(engine, callers)
    assert [caller.text for caller in callers] == [decoded(answer(c.prompt, 4)) for c in callers]


def test_the_next_turn_of_a_chat_pays_for_its_own_tokens_only() -> None:
    engine, toy = engine_of(speculate=False)
    first = Caller(
        [1 + i % 28 for i in range(40)], SamplingParams(max_tokens=9, ignore_eos=True, temperature=0)
    )
    engine.submit(first.request())
    run(engine, [first])
    toy.calls.clear()
    turn = first.prompt + answer(first.prompt, 9, end=False) + [4, 5, 6]
    second = Caller(turn, SamplingParams(max_tokens=5, temperature=0))
    engine.submit(second.request())
    run(engine, [second])
    written = sum(tokens for name, tokens in toy.calls if name == "prefill")
    assert written == len(turn) - 48  # three blocks of 16 of the first turn's 48 written tokens
    assert engine.stats.cached_tokens == 48
    assert second.text == decoded(answer(turn, 5))


def test_without_a_prefix_cache_nothing_is_kept() -> None:
    engine, _ = engine_of(prefix_cache_tokens=0)
    for _ in range(2):
        caller = Caller([1 + i % 28 for i in range(40)], SamplingParams(max_tokens=2, temperature=0))
        engine.submit(caller.request())
        run(engine, [caller])
    assert engine.stats.cached_tokens == 0 and engine.cached_prefix_tokens == 0


def test_guesses_save_steps_and_change_nothing() -> None:
    prompt = [1, 2, 3, 4, 5, 6]
    params = SamplingParams(max_tokens=80, ignore_eos=True, temperature=0)
    steps = {}
    for speculate in (False, True):
        toy = Toy(LIMITS.rows, LIMITS.max_model_len, window=1)
        clock = itertools.count().__next__  # how much is guessed depends on what a step takes
        engine, _ = engine_of(toy, speculate=speculate, clock=clock)
        caller = Caller(prompt, params)
        engine.submit(caller.request())
        run(engine, [caller])
        assert caller.text == decoded(answer(prompt, 80, window=1, end=False))
        steps[speculate] = engine.stats.steps
    assert engine.stats.accepted_tokens > 20
    assert steps[True] < 0.7 * steps[False]


def test_a_caller_who_leaves_frees_the_row_within_two_steps() -> None:
    engine, _ = engine_of()
    callers = [
        Caller([n], SamplingParams(max_tokens=90, ignore_eos=True, temperature=0)) for n in range(1, 5)
    ]
    for caller in callers:
        engine.submit(caller.request())
    engine.step()
    assert engine.running == 4
    callers[1].left = callers[2].left = True
    engine.step()
    engine.step()
    assert engine.running == 2
    assert [c.finals[0][0] for c in callers[1:3]] == [Failure.CANCELLED] * 2


def test_the_deadline_ends_a_request_that_runs_and_one_that_waits() -> None:
    now = [0.0]
    engine, _ = engine_of(clock=lambda: now[0])
    params = SamplingParams(max_tokens=90, ignore_eos=True, temperature=0)
    callers = [Caller([n], params) for n in range(1, 7)]  # four rows: two wait
    for caller in callers:
        engine.submit(caller.request(deadline=5.0))
    engine.step()
    assert engine.running == 4 and engine.waiting == 2
    now[0] = 5.0
    engine.step()
    assert [caller.finals[0][0] for caller in callers] == [Failure.DEADLINE] * 6
    assert is_empty(engine)


def test_a_full_queue_refuses_and_forgets() -> None:
    engine, _ = engine_of()
    together = LIMITS.max_num_seqs + LIMITS.max_queue_size  # though no step has given them their rows
    callers = [Caller([1], SamplingParams()) for _ in range(together)]
    for caller in callers:
        engine.submit(caller.request())
    extra = Caller([1], SamplingParams())
    with pytest.raises(QueueFull, match="queue is full: 64 requests wait"):
        engine.submit(extra.request())
    run(engine, callers)
    assert not extra.parts and is_empty(engine)


@pytest.mark.parametrize("length", [0, 96, 500])
def test_a_prompt_that_does_not_fit_is_told_both_numbers(length: int) -> None:
    engine, _ = engine_of()
    with pytest.raises(ValueError, match=rf"has {length} tokens.*1 to 95.*share 96"):
        engine.submit(Caller([1] * length, SamplingParams()).request())


def test_without_max_tokens_an_answer_fills_the_context() -> None:
    engine, _ = engine_of()
    params = SamplingParams(max_tokens=None, temperature=0, ignore_eos=True)
    caller = Caller([5, 6, 7], params)
    engine.submit(caller.request())
    run(engine, [caller])
    assert sum(part.tokens for part in caller.parts) == LIMITS.max_model_len - 3
    assert caller.finals[0].finish_reason == "length"


def test_the_models_own_end_may_not_come_before_min_tokens_even_where_it_is_ignored() -> None:
    prompt = next([n] for n in range(1, 29) if next_token([n]) == END)
    engine, _ = engine_of()
    tokens = []
    for least in (0, 1):
        params = SamplingParams(max_tokens=1, min_tokens=least, temperature=0, ignore_eos=True, logprobs=0)
        caller = Caller(prompt, params)
        engine.submit(caller.request())
        run(engine, [caller])
        tokens.append(caller.parts[-1].logprobs[0][0].token)
    assert tokens[0] == END and tokens[1] != END


def test_the_context_ends_an_answer() -> None:
    engine, _ = engine_of()
    caller = Caller([1] * 90, SamplingParams(max_tokens=50, ignore_eos=True, temperature=0))
    engine.submit(caller.request())
    run(engine, [caller])
    assert caller.finals[0].finish_reason == "length" and sum(p.tokens for p in caller.parts) == 6


@pytest.mark.parametrize(("streams", "together"), [(1, 1), (2, 1), (3, 2), (4, 2)])
def test_where_streams_are_many_a_response_has_several_tokens(streams: int, together: int) -> None:
    """A step takes 11 ms here, and 200 responses a second are sent."""
    time = [0.0]
    engine, _ = engine_of(responses_per_second=200.0, clock=lambda: time[0])
    params = SamplingParams(max_tokens=40, ignore_eos=True, temperature=0)
    callers = [Caller([n, 2], params) for n in range(1, 1 + streams)]
    for caller in callers:
        engine.submit(caller.request())
    while not all(caller.finals for caller in callers):
        engine.step()
        time[0] += 0.011
    for caller in callers:
        assert caller.text == decoded(answer(caller.prompt, 40, end=False))
        tokens = [part.tokens for part in caller.parts]
        assert sum(tokens) == 40 and set(tokens[1:-1]) == {together}


def test_no_token_is_held_back_for_longer_than_a_tenth_of_a_second() -> None:
    time = [0.0]
    engine, _ = engine_of(responses_per_second=1.0, clock=lambda: time[0])
    callers = [Caller([n, 2], SamplingParams(max_tokens=40, ignore_eos=True, temperature=0)) for n in (1, 2)]
    for caller in callers:
        engine.submit(caller.request())
    while not all(caller.finals for caller in callers):
        engine.step()
        time[0] += 0.030
    for caller in callers:
        assert {part.tokens for part in caller.parts[1:-1]} == {4}


def test_stopping_ends_everything() -> None:
    engine, _ = engine_of()
    callers = [
        Caller([n], SamplingParams(max_tokens=50, ignore_eos=True, temperature=0)) for n in range(1, 9)
    ]
    for caller in callers[:6]:
        engine.submit(caller.request())
    engine.step()
    for caller in callers[6:]:
        engine.submit(caller.request())
    engine.fail_all(Failure.STOPPING, "the server stops")
    assert [caller.finals for caller in callers] == [[(Failure.STOPPING, "the server stops")]] * 8
    assert is_empty(engine)


def test_a_scored_prompt_is_answered_as_any_and_scored_whole() -> None:
    """Among others, in parts, and although the prefix cache knows its beginning."""
    engine, toy = engine_of()
    prompts = [[1, 2, 3], list(range(1, 25)) * 2, list(range(1, 25)) * 2, [5], list(range(2, 22))]
    found: dict[int, float] = {}
    callers = [Caller(prompt, SamplingParams(max_tokens=6, temperature=0.0)) for prompt in prompts]
    for number, caller in enumerate(callers):
        engine.submit(caller.request(scored=partial(found.__setitem__, number) if number != 1 else None))
        if number == 1:
            run(engine, callers[:2])
            toy.calls.clear()
    run(engine, callers)
    assert [caller.text for caller in callers] == [decoded(answer(prompt, 6)) for prompt in prompts]
    assert sum(tokens for name, tokens in toy.calls if name == "prefill") == 48 + 1 + 20
    assert callers[1].finals[0].cached == callers[2].finals[0].cached == 0
    assert found.keys() == {0, 2, 4}  # one token is not followed by any
    for number, perplexity in found.items():
        prompt = prompts[number]
        right = [next_token(prompt[:end]) == prompt[end] for end in range(1, len(prompt))]
        total = math.log(math.exp(5.0) + 28)
        expected = np.mean([total - 5.0 * hit for hit in right])
        assert perplexity == pytest.approx(math.exp(expected), rel=1e-5)


@pytest.mark.parametrize("length", [1, 2, 40, 90])
def test_log_probabilities_of_a_prompt_are_those_of_its_tokens(length: int) -> None:
    """Also where the prompt is written in several parts, and where the prefix cache holds its beginning."""
    prompt = [1 + place * 7 % 28 for place in range(length)]
    engine, _ = engine_of()
    before = Caller(prompt, SamplingParams(max_tokens=1, temperature=0))
    asking = Caller(prompt, SamplingParams(max_tokens=3, temperature=0, prompt_logprobs=2), stream=True)
    for caller in (before, asking):
        engine.submit(caller.request())
        run(engine, [caller])
    told = [position for part in asking.parts for position in part.prompt_logprobs]
    assert asking.parts[0].prompt_logprobs == told and len(told) == length - 1
    for place, position in enumerate(told, start=1):
        logits = np.zeros(VOCABULARY)
        logits[next_token(prompt[:place])] = 5.0  # see `Toy`
        expected = logits - np.log(np.exp(logits).sum())
        assert position[0].token == prompt[place]
        assert position[0].logprob == pytest.approx(expected[prompt[place]], abs=1e-5)
        likeliest = min(position, key=lambda entry: entry.rank)
        assert likeliest.token == next_token(prompt[:place])
    assert asking.text == decoded(answer(prompt, 3))


def test_what_ended_an_answer_is_told() -> None:
    prompt = next(
        [first]
        for first in range(1, 29)
        if END not in answer([first], 4) and len(set(answer([first], 4))) == 4
    )
    tokens = answer(prompt, 4)
    engine, _ = engine_of()
    text = decoded(tokens)
    stop = decoded(tokens[:3])[len(decoded(tokens[:2])) :]
    callers = [
        Caller(prompt, SamplingParams(max_tokens=9, temperature=0, stop_token_ids=(tokens[2],))),
        Caller(prompt, SamplingParams(max_tokens=9, temperature=0, stop=(stop,))),
        Caller(prompt, SamplingParams(max_tokens=4, temperature=0)),
    ]
    for caller in callers:
        engine.submit(caller.request())
    run(engine, callers)
    assert [caller.finals[0].stop_reason for caller in callers] == [tokens[2], stop, None]
    assert callers[2].text == text
