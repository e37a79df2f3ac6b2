"""Prompts and single tokens in one run, where the model can do that."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.generation.engine import Part
from serving.generation.params import SamplingParams
from tests.serving.generation.callers import LIMITS, Caller, decoded, engine_of, run
from tests.serving.generation.test_failures import Scene
from tests.serving.generation.toy import Toy, answer


class MixingToy(Toy):
    """See `serving.generation.engine.MixingModel`."""

    def run(self, parts: Sequence[Part]) -> NDArray[np.float32]:
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


def test_a_run_that_fails_is_done_again_in_parts_and_nobody_notices() -> None:
    for number in range(Scene(toy=MixingToy).play().toy.counts["run"]):

        def fails(name: str, before: int, number: int = number) -> bool:
            return name == "run" and before == number

        scene = Scene(fails, toy=MixingToy).play()
        assert scene.toy.failed and scene.check() == 0


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
