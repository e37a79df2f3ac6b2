"""A model's process that is stopped for more than a second, e.g. by a debugger or a container's freezer."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from tests.serving.supervisor.supervised import Supervised, supervising

ECHO = """
import random
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        time.sleep(0.01 * random.random())
        given = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", array)]) for array in given]
"""
CONFIG = """backend: "python" max_batch_size: 8 dynamic_batching { }
input { name: "x" data_type: TYPE_FP32 dims: 1 } output { name: "y" data_type: TYPE_FP32 dims: 1 }
instance_group { count: 1 kind: KIND_CPU }"""


def test_nobody_gets_the_answer_to_another_request_after_a_model_was_stopped(tmp_path: Path) -> None:
    """By NVIDIA's client, of a model not ours. Triton alone answers wrongly or ends in most rounds."""
    model = tmp_path / "model_repository" / "echo"
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.py").write_text(ECHO)
    (model / "config.pbtxt").write_text(CONFIG)
    wrong, answered, stop = list[tuple[float, Any]](), [0], threading.Event()

    def call(made: Supervised, which: int) -> None:
        with triton_grpc.InferenceServerClient(made.grpc) as client:
            for number in itertools.count(1):
                if stop.is_set():
                    return
                value = np.array([[1e5 * which + number]], np.float32)
                given = triton_grpc.InferInput("x", [1, 1], "FP32")
                given.set_data_from_numpy(value)
                try:
                    got = client.infer("echo", [given], client_timeout=30.0).as_numpy("y")
                except InferenceServerException:
                    time.sleep(0.05)
                    continue
                except ValueError as error:  # an answer whose shape and bytes do not fit
                    got = error
                answered[0] += 1
                if not np.array_equal(got, value):
                    wrong.append((value, got))

    with supervising(tmp_path / "model_repository", tmp_path) as made, ThreadPoolExecutor(3) as pool:
        callers = [pool.submit(call, made, which) for which in range(1, 4)]
        try:
            for round_ in range(1, 4):
                time.sleep(1.0)
                before = answered[0]
                stub = made.stubs()[0]
                stub.suspend()
                time.sleep(1.3)
                with suppress(psutil.NoSuchProcess):
                    stub.resume()
                _until(lambda round_=round_: made.metric("shoal_restarts_total") == round_)
                made.wait(200)
                _until(lambda before=before: answered[0] > before)
        finally:
            stop.set()  # before the pool waits for the callers
        for caller in callers:
            caller.result()
    assert not wrong
    assert "echo was stopped, and is ended" in made.log.read_text()


def _until(happened: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)
