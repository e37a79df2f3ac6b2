"""Which library runs a decoder's int8 version: the faster one on this machine.

ONNX Runtime is the default. OpenVINO takes its place where it is clearly faster over prompts and steps of
several sizes, on a machine that does nothing else meanwhile, and where its graph stays as close to the fp32
graph as any version in int8 must.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from export.exported import Exported
from export.generation.evidence import LIMITS
from export.generation.verify import greedy, perplexity
from export.likeness import share_equal
from export.speed import Others, Timed, is_crowded, median_seconds
from serving.generation.runtime import ONNXRUNTIME, OPENVINO, Runner, open_runner
from shoal.machine import available_cpus
from shoal.progress import Silent

FASTER = 1.05  # geometric mean of the ratios of times
ROUNDS = 3
CONTEXT = 512  # tokens
PROMPTS = (64, 512)  # tokens
STEPS = (1, 4, 16, 32)  # rows: as many as run at once by default
PROMPT = 24  # tokens of the longest that is answered
REST, REST_SECONDS = ("rest", 0), 0.1


@dataclass(frozen=True)
class Comparison:
    """What was measured of both.

    Attributes:
        faster: how many times as fast OpenVINO is, as the geometric mean over prompts and steps.
        invariance: share of texts whose greedy answer by OpenVINO is the same alone and in a batch.
        rise: of the perplexity of sample text, from the fp32 graph to OpenVINO's, as a fraction.
        others: CPUs that other processes took meanwhile.
        cpus: that this process could use.
    """

    faster: float
    rise: float
    invariance: float
    others: float
    cpus: int

    def to_dict(self) -> dict[str, Any]:
        """Give it as plain JSON types, for the evidence."""
        return {"engine": self.chosen, "crowded": self.crowded, **asdict(self)}

    @property
    def crowded(self) -> bool:
        """Whether others took so much that nothing can be said."""
        return is_crowded(self.others, self.cpus)

    @property
    def chosen(self) -> str:
        """The library's name."""
        limits = LIMITS["int8"]
        close = self.rise <= limits["perplexity_rise"] and self.invariance >= limits["batch_invariance"]
        wins = close and not self.crowded and self.faster >= FASTER
        return OPENVINO if wins else ONNXRUNTIME


def compare(
    plain: Exported, graphs: Mapping[str, Exported], texts: Sequence[Sequence[int]], progress: Silent
) -> Comparison:
    """Measure both, in turn.

    Args:
        plain: the fp32 graph.
        graphs: in int8, by the library's name.
        texts: token ids, each a window of its own that a row of `CONTEXT` tokens holds.
    """
    runners = {
        name: open_runner(graph.path, rows=max(STEPS), max_length=2 * CONTEXT)
        for name, graph in graphs.items()
    }
    others = Others(available_cpus())
    calls = {name: _calls(runner) for name, runner in runners.items()}
    seconds = median_seconds(calls, ROUNDS, progress, "Compare ONNX Runtime and OpenVINO")
    taken = others.taken()
    cases = [case for case in seconds[OPENVINO] if case != REST]
    ratios = [seconds[ONNXRUNTIME][case] / seconds[OPENVINO][case] for case in cases]
    faster = math.exp(sum(map(math.log, ratios)) / len(ratios))
    runner = runners.pop(OPENVINO)
    runners.clear()  # the fp32 graph needs the memory
    prompts = [text[: PROMPT - place] for place, text in enumerate(texts)]
    invariance = share_equal([greedy(runner, [prompt])[0] for prompt in prompts], greedy(runner, prompts))
    exact = open_runner(plain.path, rows=1, max_length=2 * CONTEXT)
    rise = perplexity(runner, texts) / perplexity(exact, texts) - 1
    return Comparison(faster, rise, invariance, taken, available_cpus())


def _calls(runner: Runner) -> dict[tuple[str, int], Timed]:
    # Threads of the other library, which wait for its next run, take CPU time for a while.
    rest: dict[tuple[str, int], Timed] = {REST: (partial(time.sleep, REST_SECONDS), 1)}
    prompts = {("prompt", n): (partial(runner.prefill, 0, [1] * n, 0, [n - 1]), 2) for n in PROMPTS}
    steps = {("step", n): (partial(runner.decode, [1] * n, [CONTEXT] * n), 8) for n in STEPS}
    return rest | prompts | steps
