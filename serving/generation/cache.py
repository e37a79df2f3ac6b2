"""Where keys and values lie: a buffer per layer, [rows, heads, max_length, width], allocated once.

In host memory that is one numpy array, and the operating system hands out its pages as they are first
written. On a device ONNX Runtime allocates it, and moves parts of it: a head's tokens of one row are
contiguous, so a graph of nothing but Identity, bound to the right addresses, copies within the device,
to the host and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import OrtValue

# What an IOBinding wants to know of a buffer: device, its number, dtype, shape, address.
Place = tuple[str, int, type, Sequence[int], int]


class Cache(Protocol):
    """Keys and values of all layers, each layer's keys before its values."""

    shape: tuple[int, ...]

    def place(self, layer: int, row: int, count: int) -> Place:
        """Rows [row, row + count) of a layer's keys or values."""
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of a row into another."""
        ...

    def save(self, row: int, start: int, stop: int) -> NDArray:
        """Tokens [start, stop) of a row as a host array [layers * 2, heads, tokens, width]."""
        ...

    def restore(self, row: int, start: int, saved: NDArray) -> None:
        """Write what `save` gave into a row, from token `start` on."""
        ...


class HostCache:
    """See the module.

    Args:
        shape: [layers * 2, rows, heads, max_length, width].
    """

    def __init__(self, shape: tuple[int, ...], dtype: type) -> None:
        self.shape = shape
        self._values: NDArray = np.zeros(shape, dtype)

    def place(self, layer: int, row: int, count: int) -> Place:
        view = self._values[layer, row : row + count]
        return "cpu", 0, view.dtype.type, view.shape, view.ctypes.data

    def copy(self, source: int, target: int, length: int) -> None:
        self._values[:, target, :, :length] = self._values[:, source, :, :length]

    def save(self, row: int, start: int, stop: int) -> NDArray:
        return self._values[:, row, :, start:stop].copy()

    def restore(self, row: int, start: int, saved: NDArray) -> None:
        self._values[:, row, :, start : start + saved.shape[2]] = saved


class DeviceCache:
    """See the module.

    Args:
        shape: [layers * 2, rows, heads, max_length, width].
        mover: of the graph that `export.generation.to_onnx.save_mover` writes.
        device: `cuda`; `cpu` serves to test it.
        number: of the device.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: type,
        mover: onnxruntime.InferenceSession,
        device: str,
        number: int = 0,
    ) -> None:
        self.shape = shape
        self._dtype, self._mover, self._device, self._number = dtype, mover, device, number
        self._buffers = [
            OrtValue.ortvalue_from_shape_and_type(list(shape[1:]), dtype, device, number)
            for _ in range(shape[0])
        ]

    def place(self, layer: int, row: int, count: int) -> Place:
        _, _, heads, length, width = self.shape
        address = self._address(layer, row, 0, 0)
        return self._device, self._number, self._dtype, (count, heads, length, width), address

    def copy(self, source: int, target: int, length: int) -> None:
        self._move(self._pieces(source, 0, length), self._pieces(target, 0, length))

    def save(self, row: int, start: int, stop: int) -> NDArray:
        layers, _, heads, _, width = self.shape
        saved: NDArray = np.empty((layers, heads, stop - start, width), self._dtype)
        self._move(self._pieces(row, start, stop), _host_pieces(saved))
        return saved

    def restore(self, row: int, start: int, saved: NDArray) -> None:
        saved = np.ascontiguousarray(saved)
        self._move(_host_pieces(saved), self._pieces(row, start, start + saved.shape[2]))

    def _address(self, layer: int, row: int, head: int, token: int) -> int:
        _, _, heads, length, width = self.shape
        elements = ((row * heads + head) * length + token) * width
        return int(self._buffers[layer].data_ptr()) + elements * np.dtype(self._dtype).itemsize

    def _pieces(self, row: int, start: int, stop: int) -> list[Place]:
        """Each layer's and head's tokens [start, stop) of a row."""
        layers, _, heads, _, width = self.shape
        size = (stop - start, width)
        return [
            (self._device, self._number, self._dtype, size, self._address(layer, row, head, start))
            for layer in range(layers)
            for head in range(heads)
        ]

    def _move(self, sources: Sequence[Place], targets: Sequence[Place]) -> None:
        binding = self._mover.io_binding()
        for index, (source, target) in enumerate(zip(sources, targets, strict=True)):
            binding.bind_input(f"from_{index}", *source)
            binding.bind_output(f"to_{index}", *target)
        binding.synchronize_inputs()
        self._mover.run_with_iobinding(binding)
        binding.synchronize_outputs()


def _host_pieces(values: NDArray) -> list[Place]:
    """Each layer's and head's part of [layers * 2, heads, tokens, width]."""
    return [("cpu", 0, values.dtype.type, part.shape, part.ctypes.data) for layer in values for part in layer]
