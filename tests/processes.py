"""Processes below another, for tests: one that ends while the list is made is not in it."""

from __future__ import annotations

from contextlib import suppress

import psutil

SERVER = "tritonserver"
STUB = "triton_python_backend_stub"


def descendants(pid: int, name: str) -> list[psutil.Process]:
    """The running processes below `pid`, children of children too, whose name begins with `name`.

    The kernel keeps the first 15 letters of a name, which psutil lengthens where it can.
    """
    found: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.name().startswith(name[:15]):
                    found.append(process)
    return found
