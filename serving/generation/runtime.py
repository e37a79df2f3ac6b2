"""Which library runs a decoder: the file in a version's folder says it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from serving.generation.memory import Memory
from serving.generation.model import Model
from serving.generation.runner import DecoderRunner
from serving.onnxruntime.options import BadConfig

ONNXRUNTIME, OPENVINO = "onnxruntime", "openvino"
# The graph that each of them runs.
FILES = {ONNXRUNTIME: "model.onnx", OPENVINO: "openvino.onnx"}


class Runner(Model, Protocol):
    """A decoder with a cache for several sequences.

    Attributes:
        rows: sequences the cache holds.
        max_length: tokens a row holds.
        vocabulary: width of the logits.
        memory: what it takes.
    """

    rows: int
    max_length: int
    vocabulary: int
    memory: Memory


def graph_in(version: Path) -> Path:
    """The graph in a version's folder."""
    other = version / FILES[OPENVINO]
    return other if other.exists() else version / FILES[ONNXRUNTIME]


def runtime_of(graph: Path) -> str:
    """`onnxruntime` or `openvino`."""
    return OPENVINO if graph.name == FILES[OPENVINO] else ONNXRUNTIME


def difference(runner: Runner) -> float:
    """How much the logits of a sequence differ between its run alone and beside copies of it.

    0.0 is what a runner promises. OpenVINO was seen to keep that promise on a CPU with instructions for
    products of 8 bits (VNNI), and not on one without them, where its matrix products depend on how many rows
    there are. The cache's first rows are overwritten.
    """
    count, length = min(8, runner.rows), min(40, runner.max_length - 1)
    tokens = [1 + 7 * place % (runner.vocabulary - 1) for place in range(length)]
    alone = runner.prefill(0, tokens, 0, [length - 1])
    step = runner.decode([1], [length]).copy()
    together = runner.prefill_together(0, [tokens] * count)
    steps = runner.decode([1] * count, [length] * count)
    return float(max(np.abs(together - alone).max(), np.abs(steps - step).max()))


def open_runner(
    graph: Path, *, rows: int, max_length: int, threads: int | None = None, gpu: int | None = None
) -> Runner:
    """Load a graph, with an empty cache.

    Args:
        rows: sequences the cache holds.
        max_length: tokens a row holds.
        threads: of one step; None: the CPUs this process may use.
        gpu: number of the CUDA device; None: the CPU.

    Raises:
        BadConfig: the library is not installed, or cannot use the device; or not even one full context fits
            into the memory.
        RuntimeError: the library cannot load the graph; the message says why.
    """
    if runtime_of(graph) == ONNXRUNTIME:
        return DecoderRunner(graph, rows=rows, max_length=max_length, threads=threads, gpu=gpu)
    if gpu is not None:
        raise BadConfig(f"{graph} is for CPUs, and config.pbtxt puts it on a GPU")
    try:
        from serving.generation.paged_runner import PagedRunner  # noqa: PLC0415 - where it is needed only
    except ImportError as error:
        if "openvino" not in (error.name or ""):
            raise
        raise BadConfig(
            f"{graph} needs OpenVINO, and here it is missing or too old ({error}): pip install openvino, or"
            " export again with --engine onnxruntime"
        ) from None
    return PagedRunner(graph, rows=rows, max_length=max_length, threads=threads)
