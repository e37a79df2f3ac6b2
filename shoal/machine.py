"""What this process may use of the machine it runs on. Knows nothing of models or servers."""

from __future__ import annotations

import math
import os
import platform
import resource
from contextlib import suppress
from functools import cache
from pathlib import Path

# Packages whose files a build of another name brings, for machines with a GPU.
FOR_GPUS = {"onnxruntime": ("onnxruntime-gpu",), "onnxruntime-genai": ("onnxruntime-genai-cuda",)}

# The instruction sets that decide which matrix kernels ONNX Runtime and OpenVINO pick.
CPU_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


@cache
def kernel() -> str:
    """Names what process ids belong to: this machine, this start of it, and the container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{platform.node()} {boot} {Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return platform.node()


def is_elsewhere(named: str) -> bool:
    """Whether a process of a `kernel` so named may live where this one cannot see it; "": it is not known.

    Of this machine before it was started again nothing lives.
    """
    if named in ("", kernel()):
        return False
    there, here = named.split(" "), kernel().split(" ")
    return there[0] != here[0] or there[1:2] == here[1:2]


def available_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs this process may use: the smaller of its affinity mask and its cgroup quota, at least 1.

    `os.cpu_count()` is the host's count; a container limited to 2 CPUs on a 64-core host that starts
    64 threads spends its quota on waiting.

    Args:
        cgroup: where the cgroup file system is mounted; v2 (`cpu.max`) and v1 (`cpu/cpu.cfs_*`) are read.
    """
    affinity = len(os.sched_getaffinity(0))
    quota = _cgroup_cpus(cgroup)
    return max(1, min(affinity, math.ceil(quota) if quota else affinity))


def others_seconds(stat: Path = Path("/proc/stat")) -> float:
    """CPU time that all but this process took since the machine started, with other guests of its hypervisor.

    Args:
        stat: the kernel's counters; where there are none, 0.0.
    """
    try:
        _, user, nice, system, _, _, irq, softirq, steal, *_ = stat.read_text().split(maxsplit=9)
    except (OSError, ValueError):
        return 0.0
    ticks = sum(map(int, (user, nice, system, irq, softirq, steal)))
    own = os.times()
    return ticks / os.sysconf("SC_CLK_TCK") - own.user - own.system


def memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that this process may use: the smaller of the machine's and of its cgroup's limit."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in [*_cgroup_files(cgroup, "memory.max"), cgroup / "memory" / "memory.limit_in_bytes"]:
        with suppress(OSError, ValueError):  # "max": no limit
            limits.append(int(path.read_text()))
    return min(limits)


def allow_all_files() -> int:
    """Let this process, and those that it starts from now on, open as many files and connections as the
    system allows them. What they may open at first is often 1,024.

    Returns:
        The number.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def _cgroup_cpus(root: Path) -> float | None:
    """The CPU quota in CPUs, or None where there is no limit."""
    limits = []
    for path in _cgroup_files(root, "cpu.max"):
        with suppress(OSError, ValueError):
            quota, period = path.read_text().split()
            if quota != "max":
                limits.append(int(quota) / int(period))
    with suppress(OSError, ValueError):
        v1 = root / "cpu"
        micros = int((v1 / "cpu.cfs_quota_us").read_text())
        if micros > 0:
            limits.append(micros / int((v1 / "cpu.cfs_period_us").read_text()))
    return min(limits) if limits else None


def _cgroup_files(root: Path, name: str) -> list[Path]:
    """Where a limit of cgroup v2 may be stated for this process: at the root, and for each group it is in."""
    found = [root / name]
    # A process in a nested group: of systemd, or of a container runtime without a cgroup namespace.
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                group = root / line[3:].lstrip("/")
                found += [p / name for p in (group, *group.parents) if p.is_relative_to(root)]
    return found


def cpu_model() -> str:
    """The processor's own name, e.g. `Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz`."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """Those of `CPU_FLAGS` that this processor has."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                have = set(line.partition(":")[2].split())
                return [flag for flag in CPU_FLAGS if flag in have]
    except OSError:
        pass
    return []


def gpus() -> list[str]:
    """Names of the NVIDIA GPUs the driver shows to this process; empty where there is none."""
    names = []
    for info in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("Model:"):
                names.append(line.partition(":")[2].strip())
    return names


def name() -> str:
    """A line for people: the processor, the CPUs that may be used, and the GPUs."""
    return ", ".join((cpu_model(), f"{available_cpus()} CPUs", *gpus()))


def describe() -> dict[str, object]:
    """One JSON-able record of the machine, for manifests and benchmark tables."""
    return {
        "cpu": cpu_model(),
        "cpus": available_cpus(),
        "cpu_flags": cpu_flags(),
        "gpus": gpus(),
        "os": f"{platform.system()} {platform.release()}",
    }
