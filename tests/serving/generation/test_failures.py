"""Whatever fails, in whatever state: one last part for each request, and right answers for all that go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from serving.generation.engine import Engine
from serving.generation.params import SamplingParams, Unmet
from serving.generation.sequence import Chunk, Failure
from tests.serving.generation.callers import LIMITS, Caller, decoded, engine_of, is_empty, run
from tests.serving.generation.toy import VOCABULARY, Toy, answer

OPERATIONS = ("decode", "prefill", "prefill_together", "move", "save", "restore")
SHARED = [1 + i % 28 for i in range(40)]


def never(name: str, before: int) -> bool:
    return False


class DeadEnd:
    """A structure that leaves no token after three."""

    finished = False
    taken = 0

    def allowed(self) -> Any:
        if self.taken == 3:
            raise Unmet("no text can match it")
        return np.ones(VOCABULARY, bool)

    def consume(self, token: int) -> None:
        self.taken += 1


class Scene:
    """Requests that wait, are written in parts or together, run in the first, a middle and the last row, end
    by length, leave, come too late, come to a dead end, and begin with what is known; then the server stops.

    Args:
        fails, window: see `toy.Toy`; with a window answers can be guessed.
        toy: the model.
    """

    def __init__(
        self,
        fails: Callable[[str, int], bool] = never,
        window: int | None = None,
        toy: type[Toy] = Toy,
    ) -> None:
        self.now = 0.0
        self.window = window
        self.toy = toy(LIMITS.rows, LIMITS.max_model_len, window)
        self.toy.fails = fails
        self.engine: Engine
        self.engine, _ = engine_of(self.toy, prefix_cache_tokens=128, clock=self._clock)
        self.callers: list[Caller] = []
        self.stopped: list[Caller] = []

    def _clock(self) -> float:
        self.now += 0.001
        return self.now

    def _ask(self, prompt: list[int], tokens: int, **more: Any) -> Caller:
        params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
        caller = Caller(prompt, params, stream=len(self.callers) % 3 > 0)
        self.engine.submit(caller.request(**more))
        self.callers.append(caller)
        return caller

    def play(self) -> Scene:
        """From the first request to the last."""
        self._ask(SHARED, 40)  # alone, in parts, and guessed for
        for _ in range(9):
            self.engine.step()
        leaving = [self._ask([number, 5], 6 + 7 * number) for number in range(1, 4)]
        self._ask([*SHARED[:33], 9], 5)
        self._ask([7, 7], 4, deadline=10.0)
        self._ask([8, 1, 2], 9, matcher=DeadEnd())
        self._ask([*SHARED[:20], 4], 12, scored=lambda perplexity: None)
        for step in range(24):
            leaving[1].left |= step == 4  # in a middle row
            leaving[2].left |= step == 9
            self.now += 1.0
            self.engine.step()
        for number in range(9, 13):
            self._ask([number, number, 2], 8)
        run(self.engine, self.callers)
        self._ask([5, 5], 80)  # alone, for so long that it repeats itself
        run(self.engine, self.callers)
        self._ask([*SHARED, 2, 3], 6)  # is what is kept still right?
        self._ask(SHARED[:36], 6)
        run(self.engine, self.callers)
        self.stopped = [self._ask([number, 1], 50) for number in range(1, 8)]
        self._ask(SHARED, 50)
        self.engine.step()
        self.engine.step()
        self.stopped.append(self._ask([6], 5))
        self.engine.fail_all(Failure.STOPPING, "the server is stopping")
        return self

    def check(self) -> int:
        """Returns how many requests ended by a failure of the model."""
        assert is_empty(self.engine)
        broken = 0
        for caller in self.callers:
            assert len(caller.finals) == 1 and caller.parts[-1] is caller.finals[0]
            expected = decoded(answer(caller.prompt, caller.params.max_tokens, self.window, end=False))
            texts = "".join(part.text for part in caller.parts if isinstance(part, Chunk))
            final = caller.finals[0]
            if isinstance(final, Chunk):
                assert texts == expected
            else:
                assert expected.startswith(texts)
                if final[0] is Failure.INTERNAL:
                    assert final[1].endswith("fails")
                    broken += 1
        return broken


@pytest.mark.parametrize("window", [None, 1])
def test_the_scene_has_every_state(window: int | None) -> None:
    scene = Scene(window=window).play()
    assert scene.check() == 0
    kinds = {f[0] for c in scene.callers for f in c.finals if isinstance(f, tuple)}
    assert kinds == {Failure.CANCELLED, Failure.DEADLINE, Failure.UNMET, Failure.STOPPING}
    assert all(scene.toy.counts[name] >= 2 for name in OPERATIONS), scene.toy.counts
    assert scene.engine.stats.cached_tokens and (scene.engine.stats.guessed_tokens or not window)


@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_one_failing_call_ends_whom_it_was_for_and_no_other(operation: str, window: int | None) -> None:
    for number in range(Scene(window=window).play().toy.counts[operation]):

        def fails(name: str, before: int, number: int = number) -> bool:
            return name == operation and before == number

        scene = Scene(fails, window).play()
        ((_, concerned),) = scene.toy.failed
        assert scene.check() == concerned, f"call {number} of {operation}"


@pytest.mark.parametrize("others", [(), ("save",), ("move",), ("save", "move", "restore")])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_fails_while_a_failure_is_dealt_with_loses_nobody(
    operation: str, others: tuple[str, ...]
) -> None:
    """From some call on the operation fails for a while, and others with it."""
    for begin in range(0, 40, 3):
        seen = [0]

        def fails(name: str, before: int, begin: int = begin, seen: list[int] = seen) -> bool:
            seen[0] += name == operation
            return begin < seen[0] < begin + 4 and name in (operation, *others)

        scene = Scene(fails).play()
        assert scene.check() <= sum(concerned for _, concerned in scene.toy.failed)


def test_when_everything_fails_everyone_hears_of_it_and_the_next_are_answered() -> None:
    engine, toy = engine_of()
    toy.failing = set(OPERATIONS)
    callers = [Caller([n, 2], SamplingParams(max_tokens=5, temperature=0)) for n in range(1, 20)]
    for caller in callers:
        engine.submit(caller.request())
    run(engine, callers)
    assert {caller.finals[0][0] for caller in callers} == {Failure.INTERNAL}
    toy.failing = set()
    again = Caller([4, 2], SamplingParams(max_tokens=5, temperature=0))
    engine.submit(again.request())
    run(engine, [again])
    assert again.text == decoded(answer([4, 2], 5)) and is_empty(engine)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("refused", range(1, 8))
def test_a_part_that_cannot_be_delivered_ends_its_request_alone(refused: int, stream: bool) -> None:
    """Its caller hears that once more, and once only."""
    engine, _ = engine_of()
    callers = [
        Caller([n, 2], SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)) for n in (1, 2, 3)
    ]
    callers[1].stream = stream
    heard: list[Any] = []

    def deliver(part: Any) -> None:
        heard.append(part)
        if len(heard) == refused:
            raise OSError("the pipe is broken")

    for number, caller in enumerate(callers):
        engine.submit(caller.request(**({"deliver": deliver} if number == 1 else {})))
    run(engine, [callers[0], callers[2]])
    for caller in (callers[0], callers[2]):
        assert caller.text == decoded(answer(caller.prompt, 6, end=False)) and len(caller.finals) == 1
    parts = 6 if stream else 1
    assert len(heard) == min(refused + 1, parts + (refused == parts))
    if refused <= parts:
        assert heard[-1] == (
            Failure.INTERNAL,
            "a part of the answer was not delivered: OSError: the pipe is broken",
        )
    assert is_empty(engine)


def _broken(*args: Any) -> Any:
    raise OSError("the line is dead")


def test_callers_who_cannot_be_asked_or_told_hold_up_nobody() -> None:
    engine, _ = engine_of()
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    callers = [Caller([n, 2, 3], params) for n in range(1, 6)]
    more: list[dict[str, Any]] = [
        {},
        {"is_cancelled": _broken},
        {"scored": _broken},
        {"deliver": _broken},
        {},
    ]
    for caller, options in zip(callers, more, strict=True):
        engine.submit(caller.request(**options))
    run(engine, [callers[place] for place in (0, 1, 2, 4)])
    assert callers[1].finals == [(Failure.INTERNAL, "OSError: the line is dead")]
    for place in (0, 2, 4):  # what is measured of a prompt is no part of its answer
        assert callers[place].text == decoded(answer(callers[place].prompt, 8, end=False))
        assert len(callers[place].finals) == 1
    assert is_empty(engine)


def test_stopping_ends_everyone_though_some_cannot_be_told() -> None:
    engine, toy = engine_of()
    callers = [
        Caller([n], SamplingParams(max_tokens=50, temperature=0, ignore_eos=True)) for n in range(1, 9)
    ]
    for number, caller in enumerate(callers):
        engine.submit(caller.request(**({"deliver": _broken} if number % 3 == 0 else {})))
    engine.step()
    toy.failing = set(OPERATIONS)
    engine.fail_all(Failure.STOPPING, "the server is stopping")
    for number, caller in enumerate(callers):
        assert len(caller.finals) == (number % 3 > 0)
    assert is_empty(engine)
