"""Runs a decoder in OpenVINO over pages of a KV cache, on a CPU. All machinery, no policy.

A page holds `PAGE` tokens of one sequence, and a row of the cache is a list of pages. One run takes any mix
of prompts and single tokens, in a line without padding. What is computed of a token depends neither on what
runs beside it nor on where a prompt was cut, with two exceptions. OpenVINO adds up the attention of single
tokens of fewer sequences than it has threads in another order than that of more, so a sequence without tokens
is run beside them, which has it take the order of more. And it adds up one token of a sequence in another
order than several, so the engine cuts no prompt into single tokens (`LEAST_TOKENS`).

Knows OpenVINO and numpy, not Triton.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from serving.generation.memory import Memory
from serving.generation.model import Part
from serving.generation.openvino_graph import (
    BEGINS,
    CONTEXT,
    KEYS,
    PAGE_BEGINS,
    PAGES,
    PAST,
    POSITIONS,
    VALUES,
    group_size,
    read_graph,
)
from serving.generation.runner import INPUT_IDS, LOGIT_ROWS
from serving.onnxruntime.options import BadConfig
from shoal.machine import available_cpus

PAGE = 32  # tokens; what OpenVINO's kernels are made for
# By channel, OpenVINO's default, a page's values would change with each token that is added to it.
CACHE = {"KV_CACHE_PRECISION": "u8", "KEY_CACHE_QUANT_MODE": "BY_TOKEN"}


class PagedRunner:
    """One compiled model and its KV cache: a `serving.generation.model.MixingModel`.

    Args:
        path: a graph from `export.generation.to_openvino`.
        rows: sequences the cache holds.
        max_length: tokens a row holds.
        threads: of one step; None: the CPUs this process may use.

    Attributes:
        vocabulary: width of the logits.
        memory: what it takes.

    Raises:
        BadConfig: not even one full context fits into the memory.
        RuntimeError: OpenVINO cannot load the graph; the message says why.
    """

    def __init__(self, path: Path, *, rows: int, max_length: int, threads: int | None = None) -> None:
        path = path.resolve()  # the weights may lie in a second file beside the graph
        core = openvino.Core()
        model = read_graph(core, path)
        settings = {
            # Without it, a CPU with bfloat16 would compute in that, and answers depend on the machine.
            "INFERENCE_PRECISION_HINT": "f32",
            **CACHE,
            "PERFORMANCE_HINT": "LATENCY",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(group_size(model)),
            "INFERENCE_NUM_THREADS": threads or available_cpus(),
            # Others run on these CPUs, and the system knows best where there is room.
            "ENABLE_CPU_PINNING": False,
        }
        compiled = core.compile_model(model, "CPU", settings)
        self._request = compiled.create_infer_request()
        self.rows, self.max_length = rows, max_length
        self.vocabulary = int(compiled.output(0).partial_shape[1].get_length())
        self._rows = np.arange(rows * -(-max_length // PAGE), dtype=np.int32).reshape(rows, -1)
        caches = [port for port in compiled.inputs if port.any_name.startswith((KEYS, VALUES))]
        self.memory = Memory(
            weights=sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")),
            bytes_per_token=sum(_bytes_per_token(port) for port in caches),
            rows=rows,
            max_length=self._rows.shape[1] * PAGE,
        )
        self.memory.check()
        self._caches = self._allocated(caches)

    def _allocated(self, ports: Sequence[openvino.ConstOutput]) -> list[NDArray]:
        """Memory for the caches of all layers, those of one shape in one array."""
        alike: dict[tuple[Any, ...], list[openvino.ConstOutput]] = {}
        for port in ports:
            _, heads, page, width = (dim.get_max_length() for dim in port.partial_shape)
            kind = np.dtype(port.element_type.to_dtype())
            alike.setdefault((kind, self._rows.size, heads, page, width), []).append(port)
        made = []
        for (kind, *shape), same in alike.items():
            try:
                made.append(np.zeros((len(same), *shape), kind))
            except MemoryError:  # more than the kernel lends, though it would not be written soon
                raise BadConfig(self.memory.describe()[0]) from None
            for port, values in zip(same, made[-1], strict=True):
                self._request.set_tensor(port, openvino.Tensor(values, shared_memory=True))
        return made

    def decode(self, tokens: Sequence[int], lengths: Sequence[int]) -> NDArray[np.float32]:
        """See `Model`."""
        rows = range(len(tokens))
        return self._run(rows, [[token] for token in tokens], lengths, rows)

    def prefill(
        self, row: int, tokens: Sequence[int], start: int, wanted: Sequence[int]
    ) -> NDArray[np.float32]:
        """See `Model`."""
        return self._run([row], [tokens], [start], wanted).copy()

    def prefill_together(self, row: int, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """See `Model`."""
        rows = range(row, row + len(prompts))
        last = np.cumsum([len(prompt) for prompt in prompts]) - 1
        return self._run(rows, prompts, [0] * len(prompts), last).copy()

    def run(self, parts: Sequence[Part]) -> NDArray[np.float32]:
        """See `MixingModel`."""
        begins = _bounds(np.array([len(part.tokens) for part in parts]))
        wanted = [begin + place for begin, part in zip(begins, parts, strict=False) for place in part.wanted]
        return self._run(
            [part.row for part in parts],
            [part.tokens for part in parts],
            [part.start for part in parts],
            wanted,
        )

    def move(self, source: int, target: int, length: int) -> None:
        """See `serving.generation.model.Model.move`: the rows exchange their pages."""
        self._rows[[source, target]] = self._rows[[target, source]]

    def save(self, row: int, start: int, stop: int) -> list[NDArray]:
        """Keys and values of tokens [start, stop) of a row, as copies."""
        places = list(self._places(row, start, stop))
        return [
            np.concatenate([cache[:, page, :, inside] for page, inside in places], axis=2)
            for cache in self._caches
        ]

    def restore(self, row: int, start: int, saved: Sequence[NDArray]) -> None:
        """Write what `save` gave into a row, from token `start` on."""
        for cache, values in zip(self._caches, saved, strict=True):
            done = 0
            for page, inside in self._places(row, start, start + values.shape[2]):
                count = inside.stop - inside.start
                cache[:, page, :, inside] = values[:, :, done : done + count]
                done += count

    def _places(self, row: int, start: int, stop: int) -> Iterator[tuple[int, slice]]:
        """The pages that hold tokens [start, stop) of a row, and where in each of them."""
        while start < stop:
            offset = start % PAGE
            count = min(PAGE - offset, stop - start)
            yield int(self._rows[row, start // PAGE]), slice(offset, offset + count)
            start += count

    def _run(
        self,
        rows: Sequence[int],
        tokens: Sequence[Sequence[int]],
        past: Sequence[int],
        wanted: Sequence[int] | NDArray,
    ) -> NDArray[np.float32]:
        if all(len(part) == 1 for part in tokens):
            rows, tokens, past = [*rows, rows[0]], [*tokens, []], [*past, 0]  # see the module
        counts = np.array([len(part) for part in tokens], np.int32)
        held = np.asarray(past, np.int32)
        totals = held + counts
        pages = -(-totals // PAGE)
        ends = np.cumsum(counts, dtype=np.int32)
        inputs = {
            INPUT_IDS: np.concatenate([np.asarray(part, np.int64) for part in tokens]).reshape(-1, 1),
            # Of each token in its own sequence.
            POSITIONS: np.arange(ends[-1], dtype=np.int32) + np.repeat(held - (ends - counts), counts),
            PAST: held,
            BEGINS: _bounds(counts),
            PAGES: np.concatenate([self._rows[row, :n] for row, n in zip(rows, pages, strict=True)]),
            PAGE_BEGINS: _bounds(pages),
            CONTEXT: np.array(totals.max(), np.int32),
            LOGIT_ROWS: np.asarray(wanted, np.int64),
        }
        for name, value in inputs.items():
            self._request.set_tensor(name, openvino.Tensor(value))
        self._request.infer()
        return self._request.get_output_tensor(0).data


def _bounds(counts: NDArray) -> NDArray[np.int32]:
    """Where each of several parts in a line begins, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def _bytes_per_token(port: openvino.ConstOutput) -> int:
    _, heads, _, width = port.partial_shape
    return heads.get_length() * width.get_length() * np.dtype(port.element_type.to_dtype()).itemsize
