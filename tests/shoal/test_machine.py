"""How many CPUs and how much memory a process may use."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from shoal import machine
from shoal.machine import available_cpus, memory_bytes


def test_without_a_quota_affinity_decides(tmp_path: Path) -> None:
    assert available_cpus(tmp_path) == len(os.sched_getaffinity(0))


def test_affinity_is_respected(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_cpus(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("nonsense", None)],
)
def test_cgroup_v2_quota(tmp_path: Path, text: str, expected: int | None) -> None:
    (tmp_path / "cpu.max").write_text(text + "\n")
    assert available_cpus(tmp_path) == (expected or len(os.sched_getaffinity(0)))


def test_cgroup_v1_quota(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert available_cpus(tmp_path) == 1


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
@pytest.mark.parametrize(("text", "expected"), [("4096", 4096), ("max", None), ("9223372036854771712", None)])
def test_memory_of_a_cgroup(tmp_path: Path, name: str, text: str, expected: int | None) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(f"{text}\n")
    assert memory_bytes(tmp_path) == (expected or psutil.virtual_memory().total)


def test_the_time_of_others_is_what_is_not_idle_and_not_ours(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  1000000 200000 30000 999999 888888 4000 500 60 777 7\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
    expected = 1_234_560 / os.sysconf("SC_CLK_TCK") - time.process_time()
    assert machine.others_seconds(stat) == pytest.approx(expected, abs=0.5)
    assert machine.others_seconds(tmp_path / "none") == 0.0


@pytest.mark.parametrize(
    ("node", "boot", "space", "elsewhere"),
    [
        ("", "", "", False),  # itself
        ("other", "", "", True),
        ("", "another", "", False),  # before it was started again
        ("", "", "7", True),  # another container
        ("other", "another", "7", True),
    ],
)
def test_processes_of_other_machines_are_told_apart(
    node: str, boot: str, space: str, elsewhere: bool
) -> None:
    here = machine.kernel().split(" ")
    there = " ".join(given or own for given, own in zip((node, boot, space), here, strict=True))
    assert machine.is_elsewhere(there) is elsewhere
    assert not machine.is_elsewhere("")


def test_all_files_that_the_system_allows_may_be_opened() -> None:
    lowered = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 96))"
    opened = "print(machine.allow_all_files(), len([open('/dev/null') for _ in range(80)]))"
    code = f"{lowered}; from shoal import machine; {opened}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["96", "80"]
