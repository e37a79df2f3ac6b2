"""Who is answered when: first come, first served, within a bound that counts steps; and probes before all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.generation.engine import PROBE_TOKENS, Engine, QueueFull
from serving.generation.params import SamplingParams
from serving.generation.scheduler import Limits
from serving.generation.sequence import Failure
from tests.serving.generation.callers import LIMITS, Caller, decoded, engine_of, is_empty, run
from tests.serving.generation.toy import END, Toy, answer


def _caller(prompt: list[int], tokens: int) -> Caller:
    return Caller(prompt, SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True))


def _bound(limits: Limits, prompts: list[int], to_come: int) -> int:
    """See `scheduler`: the step of the first token of the last of some requests.

    Args:
        prompts: tokens to write of each of them, its own last.
        to_come: tokens of the answers of those before it.
    """
    writing = sum(tokens // limits.max_num_batched_tokens + 1 for tokens in prompts)
    return writing + to_come // limits.max_num_seqs


def _steps_to(engine: Engine, caller: Caller) -> int:
    steps = 0
    while not caller.parts:
        engine.step()
        steps += 1
        assert steps < 10_000
    return steps


def test_a_short_request_behind_as_many_long_ones_as_may_run() -> None:
    limits = Limits(max_num_seqs=32, max_model_len=256, max_num_batched_tokens=128, staging_rows=8)
    engine = Engine(Toy(limits.rows, limits.max_model_len), limits, ends=[END], decode=decoded)
    long = [_caller([1 + n % 28, n % 7] * 20, 100 + 3 * n) for n in range(32)]
    short = _caller([5, 6, 7], 1)
    for caller in [*long, short]:
        engine.submit(caller.request())
    steps = _steps_to(engine, short)
    assert sum(bool(caller.finals) for caller in long) == 1  # the first row that became free is its own
    answers = sum(caller.params.max_tokens or 0 for caller in long)
    assert 100 <= steps <= _bound(limits, [len(c.prompt) for c in [*long, short]], answers)
    assert short.text == decoded(answer(short.prompt, 1, end=False))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_request_waits_longer_than_those_before_it_account_for(data: st.DataObject) -> None:
    engine, _ = engine_of(prefix_cache_tokens=data.draw(st.sampled_from([0, 256])), speculate=False)
    callers: list[Caller] = []
    due: dict[int, int] = {}

    def step() -> None:
        engine.step()
        for number, caller in enumerate(callers):
            assert caller.parts or engine.stats.steps < due[number], f"request {number} is late"

    shared = [1 + i % 28 for i in range(40)]
    for _ in range(data.draw(st.integers(1, 14))):
        own = data.draw(st.lists(st.integers(1, 28), min_size=1, max_size=40))
        prompt = shared[: data.draw(st.sampled_from([0, 17, 40]))] + own
        callers.append(_caller(prompt, data.draw(st.integers(1, 12))))
        ahead = [caller for caller in callers[:-1] if not caller.finals]
        unwritten = [len(caller.prompt) for caller in ahead if not caller.parts] + [len(prompt)]
        to_come = sum(
            (caller.params.max_tokens or 0) - sum(part.tokens for part in caller.parts) for caller in ahead
        )
        due[len(callers) - 1] = engine.stats.steps + _bound(LIMITS, unwritten, to_come)
        engine.submit(callers[-1].request())
        for _ in range(data.draw(st.integers(0, 4))):
            step()
    while not all(caller.finals for caller in callers):
        step()
    assert is_empty(engine)


def test_a_probe_is_answered_in_the_next_step_whoever_runs_and_waits() -> None:
    engine, toy = engine_of(speculate=False)
    together = LIMITS.max_num_seqs + LIMITS.max_queue_size
    callers = [_caller([1 + n % 28, 3, n % 5] * 7, 70) for n in range(together)]
    for caller in callers:
        engine.submit(caller.request())
    with pytest.raises(QueueFull):
        engine.submit(_caller([1], 1).request())
    for _ in range(6):
        engine.step()  # rows run, and a prompt is half written
        while engine.waiting < LIMITS.max_queue_size:
            callers.append(_caller([4, 4], 3))
            engine.submit(callers[-1].request())
        probe = _caller(list(range(1, PROBE_TOKENS + 1)), 1)
        engine.submit(probe.request(probe=True))
        kept, waiting, toy.calls = engine.cached_prefix_tokens, engine.waiting, []
        # One more than may wait was taken for each row that is free.
        free = LIMITS.max_num_seqs - engine.running
        assert kept <= 256 and 0 <= waiting - LIMITS.max_queue_size <= max(1, free)
        with pytest.raises(QueueFull, match="another probe is not answered yet"):
            engine.submit(_caller([1], 1).request(probe=True))
        engine.step()
        assert toy.calls[0] == ("prefill", PROBE_TOKENS)
        assert probe.text == decoded(answer(probe.prompt, 1, end=False)) and len(probe.finals) == 1
        assert probe.finals[0].cached == 0  # though the same was asked before
    run(engine, callers)
    for caller in callers:
        assert caller.text == decoded(answer(caller.prompt, caller.params.max_tokens or 0, end=False))
    assert is_empty(engine) and engine.stats.finished["length"] == len(callers)


def test_a_probe_keeps_nothing_in_the_prefix_cache() -> None:
    engine, _ = engine_of()
    probe = _caller([3] * PROBE_TOKENS, 1)
    engine.submit(probe.request(probe=True))
    assert not engine.idle
    engine.step()
    assert engine.cached_prefix_tokens == 0 and len(probe.finals) == 1 and engine.idle
    assert engine.stats.prompt_tokens == engine.stats.generated_tokens == 0


@pytest.mark.parametrize(("tokens", "wanted"), [(PROBE_TOKENS + 1, 1), (3, 2), (3, None)])
def test_a_probe_may_not_ask_for_more(tokens: int, wanted: int | None) -> None:
    engine, _ = engine_of()
    request = Caller([1] * tokens, SamplingParams(max_tokens=wanted)).request(probe=True)
    with pytest.raises(ValueError, match=f"1 to 16 tokens and max_tokens 1, not {tokens} and {wanted}"):
        engine.submit(request)
    assert engine.idle


def test_a_probe_that_fails_is_told_so_and_so_is_one_that_waits_as_the_server_stops() -> None:
    engine, toy = engine_of()
    toy.failing = {"prefill"}
    probe, second, third = (_caller([1, 2], 1) for _ in range(3))
    engine.submit(probe.request(probe=True))
    engine.step()
    assert probe.finals == [(Failure.INTERNAL, "RuntimeError: prefill fails")]
    engine.submit(second.request(probe=True))
    engine.fail_all(Failure.STOPPING, "the server is stopping")
    assert second.finals == [(Failure.STOPPING, "the server is stopping")]
    toy.failing = set()
    engine.submit(third.request(probe=True))
    engine.step()
    assert third.text == decoded(answer([1, 2], 1, end=False))
