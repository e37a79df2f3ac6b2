"""A process of a model ends with its server, whatever it does just then."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

# Stands for tritonserver: it starts the process of a model, and says its pid.
SERVER = """
import subprocess, sys
print(subprocess.Popen([sys.executable, "-c", sys.argv[1]]).pid, flush=True)
sys.stdin.read()
"""
# `ctypes.PyDLL` keeps Python's global lock during a call, as Triton's stub does while it waits.
MODEL = """
import ctypes, time
from serving import heartbeat
heartbeat.DEAF_SECONDS, heartbeat.REARM_BEATS = 2.0, 2
assert heartbeat.start() is not None
time.sleep(0.5)
{then}
"""


@pytest.mark.parametrize(
    "then", ["time.sleep(600)", "ctypes.PyDLL(None).pause()"], ids=["waits", "waits with the global lock"]
)
def test_a_model_ends_with_its_server(tmp_path: Path, then: str) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, MODEL.format(then=then)],
        env={"SHOAL_HEARTBEATS": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None
    model = psutil.Process(int(server.stdout.readline()))
    time.sleep(1.5)
    assert model.is_running()
    server.kill()
    server.wait()
    _, left = psutil.wait_procs([model], timeout=20)
    assert not left


def test_a_model_that_beats_goes_on_for_longer_than_the_deaf_time(tmp_path: Path) -> None:
    model = subprocess.Popen(
        [sys.executable, "-c", MODEL.format(then="time.sleep(600)")],
        env={"SHOAL_HEARTBEATS": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    time.sleep(8)
    assert model.poll() is None
    model.kill()
    model.wait()
