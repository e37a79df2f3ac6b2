"""The cache on a device does what the one in host memory does; here the device is the CPU."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export.generation.to_onnx import save_mover
from serving.generation.cache import Cache, DeviceCache, HostCache, Place

LAYERS, ROWS, HEADS, LENGTH, WIDTH = 4, 3, 2, 8, 16
SHAPE = (LAYERS, ROWS, HEADS, LENGTH, WIDTH)


@pytest.fixture
def caches(tmp_path: Path) -> tuple[Cache, Cache]:
    """The same values in both."""
    names = [f"past_key_values.{n}.{kind}" for n in range(LAYERS // 2) for kind in ("key", "value")]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["batch", HEADS, "past", WIDTH])
        for name in names
    ]
    save_mover(helper.make_model(helper.make_graph([], "decoder", inputs, [])), tmp_path / "moves")
    mover = onnxruntime.InferenceSession(str(tmp_path / "moves"), providers=["CPUExecutionProvider"])
    chance = np.random.default_rng(0)
    host, device = HostCache(SHAPE, np.float16), DeviceCache(SHAPE, np.float16, mover, "cpu")
    for layer in range(LAYERS):
        values = chance.normal(size=SHAPE[1:]).astype(np.float16)
        for cache in (host, device):
            _at(cache.place(layer, 0, ROWS))[:] = values
    return host, device


def _at(place: Place) -> NDArray[np.float16]:
    """The memory that a place names."""
    *_, shape, address = place
    count = int(np.prod(shape))
    memory = (ctypes.c_uint16 * count).from_address(address)
    return np.frombuffer(memory, np.float16).reshape(shape)


def _everything(cache: Cache) -> NDArray[np.float16]:
    return np.stack([_at(cache.place(layer, 0, ROWS)) for layer in range(LAYERS)])


def test_both_place_rows_alike(caches: tuple[Cache, Cache]) -> None:
    for cache in caches:
        rows = _at(cache.place(2, 1, 2))
        np.testing.assert_array_equal(rows, _everything(cache)[2, 1:3])
        assert rows.shape == (2, HEADS, LENGTH, WIDTH)


def test_both_copy_the_tokens_that_are_asked_for_and_no_others(caches: tuple[Cache, Cache]) -> None:
    before = _everything(caches[0])
    for cache in caches:
        cache.copy(2, 0, 5)
    after = [_everything(cache) for cache in caches]
    np.testing.assert_array_equal(*after)
    np.testing.assert_array_equal(after[1][:, 0, :, :5], before[:, 2, :, :5])
    np.testing.assert_array_equal(after[1][:, 0, :, 5:], before[:, 0, :, 5:])
    np.testing.assert_array_equal(after[1][:, 1:], before[:, 1:])


def test_what_one_saves_the_other_restores(caches: tuple[Cache, Cache]) -> None:
    host, device = caches
    saved = device.save(1, 2, 6)
    assert saved.shape == (LAYERS, HEADS, 4, WIDTH) and saved.dtype == np.float16
    np.testing.assert_array_equal(saved, host.save(1, 2, 6))
    for cache in caches:
        cache.restore(0, 3, saved)
    np.testing.assert_array_equal(_everything(host), _everything(device))
    np.testing.assert_array_equal(device.save(0, 3, 7), saved)
