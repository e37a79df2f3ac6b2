"""What a setting of Triton's dynamic batcher costs the requests that come while the model runs.

A model that takes 3 ms for a batch is served with one setting after the other, and asked at random moments (a
Poisson process), once often and once seldom, through `tritonclient`.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tritonclient.grpc.aio as triton
from rich.console import Console
from rich.table import Table

from serving.embedded import running

SETTINGS = {
    "nothing": "",
    "max_queue_delay": "max_queue_delay_microseconds: 100",
    "priorities": "priority_levels: 2 default_priority_level: 2",
    "queue_limit": "default_queue_policy { max_queue_size: 256 }",
    "timeouts": "default_queue_policy { allow_timeout_override: true }",
}
RATES = {60: 15.0, 5: 40.0}  # requests a second: for so many seconds
MODEL = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        time.sleep(0.003)
        made = np.zeros((1, 1), np.float32)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", made)]) for _ in requests]
"""


def repository(folder: Path) -> None:
    """One model for each setting."""
    for name, setting in SETTINGS.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.py").write_text(MODEL)
        (folder / name / "config.pbtxt").write_text(
            f"""backend: "python" max_batch_size: 64
            input {{ name: "x" data_type: TYPE_FP32 dims: 1 }}
            output {{ name: "y" data_type: TYPE_FP32 dims: 1 }}
            dynamic_batching {{ {setting} }}
            instance_group {{ count: 1 kind: KIND_CPU }}"""
        )


async def ask(address: str, model: str, rate: float, seconds: float) -> list[float]:
    """Times of answers in milliseconds."""
    client = triton.InferenceServerClient(address)
    given = triton.InferInput("x", [1, 1], "FP32")
    given.set_data_from_numpy(np.zeros((1, 1), np.float32))
    taken, chance, tasks = list[float](), random.Random(1), list[asyncio.Task[None]]()  # noqa: S311 - no secret

    async def one() -> None:
        began = time.monotonic()
        await client.infer(model, [given])
        taken.append(1e3 * (time.monotonic() - began))

    for _ in range(20):
        await one()
    taken.clear()
    due = began = time.monotonic()
    while (due := due + chance.expovariate(rate)) < began + seconds:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        tasks.append(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
    await client.close()
    return taken


def row(name: str, rate: float, taken: Sequence[float]) -> list[str]:
    """A row of the table."""
    p50, p99 = np.percentile(taken, [50, 99])
    return [name, f"{rate:g}", f"{len(taken)}", f"{p50:.1f}", f"{p99:.1f}", f"{max(taken):.1f}"]


def main() -> None:
    """`python -m loadtest.bench_queue`."""
    table = Table("setting", "requests/s", "answers", "p50 ms", "p99 ms", "longest ms")
    with tempfile.TemporaryDirectory() as folder:
        repository(Path(folder))
        with running(Path(folder)) as server:
            for name in SETTINGS:
                for rate, seconds in RATES.items():
                    table.add_row(*row(name, rate, asyncio.run(ask(server.grpc, name, rate, seconds))))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
