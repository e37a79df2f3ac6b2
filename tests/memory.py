"""The smallest requests that would take the most memory, and the memory that a process took at most."""

from __future__ import annotations

import io
import re
from pathlib import Path

import psutil
from PIL import Image


def narrow(height: int) -> bytes:
    """The PNG of a strip of one pixel's width."""
    file = io.BytesIO()
    Image.new("1", (1, height)).save(file, "PNG", optimize=True)
    return file.getvalue()


def stub_of(model: str) -> psutil.Process:
    """The process in which Triton runs a Python model."""
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or [""]
        if line[0].endswith("triton_python_backend_stub") and f"/{model}/" in " ".join(line):
            return process
    raise LookupError(f"no process runs {model}")


def peak(process: psutil.Process) -> int:
    """Most bytes that a process ever had in memory."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024
