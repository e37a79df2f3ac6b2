"""Prompts and single tokens in one run, where the model can do that."""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.generation.model import Part
from serving.generation.params import SamplingParams
from serving.generation.scheduler import Scheduler
from serving.generation.sequence import Request, Sequence
from tests.serving.generation.callers import LIMITS, Caller, decoded, engine_of, run
from tests.serving.generation.test_failures import Scene
from tests.serving.generation.toy import Toy, answer


class MixingToy(Toy):
    """See `serving.generation.engine.MixingModel`."""

    def run(self, parts: Several[Part]) -> NDArray[np.float32]:
        self._called("run", sum(len(part.tokens) for part in parts))
        self._may_fail(
            "run", len(parts), self.cache[[part.row for part in parts], LIMITS.max_model_len - 1 :]
        )
        logits = []
        for part in parts:
            self.cache[part.row, part.start : part.start + len(part.tokens)] = part.tokens
            logits += [self._logits(part.row, part.start + place + 1) for place in part.wanted]
        return np.stack(logits)


@pytest.mark.parametrize("window", [None, 1])
def test_every_answer_is_the_same(window: int | None) -> None:
    scene = Scene(window=window, toy=MixingToy).play()
    assert scene.check() == 0
    assert scene.toy.counts["run"] >= 5, scene.toy.counts


@pytest.mark.parametrize("operation", ["run", "restore", "save", "move"])
def test_a_run_that_fails_is_done_again_in_parts_and_nobody_notices(operation: str) -> None:
    for number in range(Scene(toy=MixingToy).play().toy.counts[operation]):

        def fails(name: str, before: int, number: int = number) -> bool:
            return name == operation and before == number

        scene = Scene(fails, toy=MixingToy).play()
        ((_, concerned),) = scene.toy.failed
        # A move is of one row, whose request is lost; all else can be done again, or left.
        assert scene.check() == (concerned if operation == "move" else 0), f"call {number} of {operation}"


def test_prompts_that_begin_alike_are_written_in_one_run() -> None:
    engine, toy = engine_of(MixingToy(LIMITS.rows, LIMITS.max_model_len), speculate=False)
    shared = [1 + n % 20 for n in range(33)]
    params = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)
    first = Caller([*shared, 4], params)
    engine.submit(first.request())
    run(engine, [first])
    callers = [Caller([*shared, 5 + n], params) for n in range(3)]
    for caller in callers:
        engine.submit(caller.request())
    del toy.calls[:]
    engine.step()
    assert toy.calls == [("run", 3 * 2)]  # 32 tokens of each are known
    run(engine, callers)
    assert [caller.text for caller in callers] == [
        decoded(answer(caller.prompt, 3, end=False)) for caller in callers
    ]


@pytest.mark.parametrize("budget", [4, 5, 16])
def test_no_prompt_is_cut_into_single_tokens(budget: int) -> None:
    """The model adds up one token in another order than several."""
    limits = replace(LIMITS, max_num_batched_tokens=budget)
    for others in ((), (3,), (5, 2)):
        for length in range(1, 40):
            scheduler = Scheduler(limits)
            sequences = [
                Sequence(Request([1] * size, SamplingParams(), False, print), [0], decoded, 0.0)
                for size in (*others, length)
            ]
            scheduler.waiting.extend(sequences)
            scheduler.running = [Sequence(Request([1], SamplingParams(), False, print), [0], decoded, 0.0)]
            steps = 0
            while scheduler.waiting or scheduler.staged:
                works = scheduler.prefills(lambda sequence: 0)
                assert works and sum(work.cost for work in works) <= budget
                rows = [work.row for work in works]
                assert len(set(rows)) == len(rows)
                for work in works:
                    (only,) = work.sequences
                    assert work.stop - work.start >= 2 or len(only.request.prompt) == 1
                    only.computed = work.stop
                    if work.stop == len(only.request.prompt):
                        scheduler.staged.remove(only)
                steps += 1
            assert steps <= sum(size // (budget - 1) + 1 for size in (*others, length))


def test_staged_rows_are_their_own() -> None:
    """Prompts that are longer than a step's budget are written side by side with short ones."""
    engine, _ = engine_of(MixingToy(LIMITS.rows, LIMITS.max_model_len), speculate=False)
    params = SamplingParams(max_tokens=9, temperature=0, ignore_eos=True)
    callers = [
        Caller([1 + (n * 7 + k) % 28 for k in range(length)], params)
        for n, length in enumerate((20, 50, 3, 44, 5, 61, 17))
    ]
    for caller in callers:
        engine.submit(caller.request())
    run(engine, callers)
    for caller in callers:
        assert caller.text == decoded(answer(caller.prompt, 9, end=False))


def test_while_others_run_a_prompt_costs_no_second_run() -> None:
    engine, toy = engine_of(MixingToy(LIMITS.rows, LIMITS.max_model_len), speculate=False)
    quick = Caller([1, 2], SamplingParams(max_tokens=20, temperature=0, ignore_eos=True))
    engine.submit(quick.request())
    engine.step()
    long = Caller([3 + n % 20 for n in range(60)], SamplingParams(max_tokens=3, temperature=0))
    engine.submit(long.request())
    del toy.calls[:]
    for _ in range(4):  # 16 tokens of the prompt in each
        before = len(quick.parts)
        engine.step()
        assert len(quick.parts) == before + 1  # a token in every step
    assert toy.calls == [("run", 17), ("run", 17), ("run", 17), ("run", 13)]
    assert len(long.parts) == 1
    run(engine, [quick, long])
    assert quick.text == decoded(answer(quick.prompt, 20, end=False))
    assert long.text == decoded(answer(long.prompt, 3))
