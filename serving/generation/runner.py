"""Runs the decoder graph over a KV cache that is allocated once, on a CPU or a GPU. All machinery, no policy.

A row of the cache is one sequence. `decode` adds one token to each of the first n rows, `prefill` adds
many tokens to one row, or the first tokens to several rows at once. The graph writes keys and values in
place: nothing of the cache is copied or allocated per step, and one IOBinding per shape is kept.

Knows ONNX Runtime and numpy, not Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from serving.generation.cache import Cache, DeviceCache, HostCache
from serving.generation.memory import Memory
from serving.onnxruntime.options import BadConfig, session_options
from serving.onnxruntime.sessions import load_session, providers_of
from shoal.machine import available_cpus

INPUT_IDS, PAST_LENGTHS, TOTAL_LENGTH, LOGIT_ROWS, LOGITS = (
    "input_ids",
    "past_lengths",
    "total_length",
    "logit_rows",
    "logits",
)
_ELEMENTS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}

# Tokens of a prompt that a run on a CPU writes at most. ONNX Runtime's attention computes the products of all
# tokens of the run, also with those that come later: 500 tokens take 11 % less time in two runs.
RUN_TOKENS = 256


class DecoderRunner:
    """One ONNX Runtime session and its KV cache: a `serving.generation.model.Model`.

    Args:
        path: a graph from `export.generation.to_onnx`.
        rows: sequences the cache holds.
        max_length: tokens a row holds.
        threads: of one step; None: the CPUs this process may use.
        gpu: number of the CUDA device; None: the CPU.

    Attributes:
        vocabulary: width of the logits.
        memory: what it takes.

    Raises:
        BadConfig: a GPU is asked for, and this onnxruntime cannot use it; or not even one full context fits
            into the memory.
        RuntimeError: ONNX Runtime cannot load the graph; the message names it.
    """

    def __init__(
        self, path: Path, *, rows: int, max_length: int, threads: int | None = None, gpu: int | None = None
    ) -> None:
        options = session_options(threads or available_cpus())
        providers = providers_of(gpu)
        path = path.resolve()  # the weights may lie in a second file beside the graph
        self._session = load_session(path, options, providers)
        inputs = {value.name: value for value in self._session.get_inputs()}
        self._keys_and_values = [name for name in inputs if name.startswith("past_key_values.")]
        first = inputs[self._keys_and_values[0]]
        heads, width = first.shape[1], first.shape[3]
        self.rows, self.max_length = rows, max_length
        logits = next(value for value in self._session.get_outputs() if value.name == LOGITS)
        self.vocabulary, self._logits_type = int(logits.shape[1]), _ELEMENTS[logits.type]
        shape = (len(self._keys_and_values), rows, heads, max_length, width)
        self._element = _ELEMENTS[first.type]
        self._cache: Cache
        self._most_tokens = RUN_TOKENS if gpu is None else max_length
        self.memory = Memory(
            weights=sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")),
            bytes_per_token=len(self._keys_and_values) * heads * width * np.dtype(self._element).itemsize,
            rows=rows,
            max_length=max_length,
            gpu=gpu is not None,
        )
        if gpu is None:
            self.memory.check()
            try:
                self._cache = HostCache(shape, self._element)
            except MemoryError:  # more than the kernel lends, though it would not be written soon
                raise BadConfig(self.memory.describe()[0]) from None
        else:
            mover = load_session(mover_of(path), options, providers)
            try:
                self._cache = DeviceCache(shape, self._element, mover, "cuda", gpu)
            except RuntimeError as error:  # ONNX Runtime's arena could not be extended
                raise BadConfig(f"the GPU has not enough memory: {self.memory.describe()[0]}") from error
        self._bindings: dict[tuple[int, int], onnxruntime.IOBinding] = {}
        # Fresh pages for a step's logits would cost more than choosing from them.
        self._logits = np.empty((rows, self.vocabulary), self._logits_type)

    def decode(self, tokens: Sequence[int], lengths: Sequence[int]) -> NDArray[np.float32]:
        """See `Model`."""
        ids = np.asarray(tokens, np.int64).reshape(-1, 1)
        wanted = np.arange(len(ids), dtype=np.int64)
        return self._run(0, ids, np.asarray(lengths, np.int32), wanted, self._logits[: len(ids)])

    def prefill(
        self, row: int, tokens: Sequence[int], start: int, wanted: Sequence[int]
    ) -> NDArray[np.float32]:
        """See `Model`."""
        count = -(-len(tokens) // self._most_tokens)
        size = -(-len(tokens) // count)
        found = []
        for begin in range(0, len(tokens), size):
            ids = np.asarray(tokens[begin : begin + size], np.int64).reshape(1, -1)
            past = np.array([start + begin + ids.size - 1], np.int32)
            inside = [place - begin for place in wanted if begin <= place < begin + ids.size]
            logits = self._run(row, ids, past, np.asarray(inside or [ids.size - 1], np.int64))
            if inside:
                found.append(logits)
        return np.concatenate(found) if len(found) > 1 else found[0]

    def prefill_together(self, row: int, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """See `Model`."""
        lengths = np.array([len(prompt) for prompt in prompts])
        ids = np.zeros((len(prompts), int(lengths.max())), np.int64)
        for index, prompt in enumerate(prompts):
            ids[index, : len(prompt)] = prompt  # what is padded is overwritten by the tokens to come
        last = np.arange(len(prompts)) * ids.shape[1] + lengths - 1
        return self._run(row, ids, (lengths - 1).astype(np.int32), last.astype(np.int64))

    def move(self, source: int, target: int, length: int) -> None:
        """See `Model`."""
        self._cache.copy(source, target, length)

    def save(self, row: int, start: int, stop: int) -> NDArray:
        """See `Model`."""
        return self._cache.save(row, start, stop)

    def restore(self, row: int, start: int, saved: NDArray) -> None:
        """See `Model`."""
        self._cache.restore(row, start, saved)

    def _run(
        self,
        row: int,
        ids: NDArray[np.int64],
        past: NDArray[np.int32],
        wanted: NDArray[np.int64],
        logits: NDArray | None = None,
    ) -> NDArray[np.float32]:
        total = np.array(int(past.max()) + 1, np.int32)
        binding = self._binding(row, len(ids))
        binding.bind_cpu_input(INPUT_IDS, ids)
        binding.bind_cpu_input(PAST_LENGTHS, past)
        binding.bind_cpu_input(TOTAL_LENGTH, total)
        binding.bind_cpu_input(LOGIT_ROWS, wanted)
        if logits is None:
            logits = np.empty((len(wanted), self.vocabulary), self._logits_type)
        binding.bind_output(LOGITS, "cpu", 0, self._logits_type, logits.shape, logits.ctypes.data)
        self._session.run_with_iobinding(binding)
        return logits.astype(np.float32, copy=False)

    def _binding(self, row: int, count: int) -> onnxruntime.IOBinding:
        """Rows [row, row + count) of the cache as inputs and outputs, bound once."""
        if (row, count) not in self._bindings:
            binding = self._session.io_binding()
            for layer, name in enumerate(self._keys_and_values):
                place = self._cache.place(layer, row, count)
                binding.bind_input(name, *place)
                binding.bind_output(name.replace("past_key_values", "present"), *place)
            self._bindings[row, count] = binding
        return self._bindings[row, count]


def mover_of(path: Path) -> Path:
    """The graph beside a GPU's that moves parts of its cache."""
    return path.with_name(f"{path.name}.moves")
