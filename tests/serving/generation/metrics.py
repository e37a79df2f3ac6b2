"""What the served decoder says of itself on Triton's metrics port."""

from __future__ import annotations

import time
import urllib.request

from serving.embedded import Server


def page_of(server: Server) -> str:
    """The whole page."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.ports.metrics}/metrics", timeout=10) as page:
        return str(page.read().decode())


def metric(server: Server, name: str, label: str = "") -> float:
    """The sum over all labels of a metric of ours, or over those with one label."""
    lines = page_of(server).splitlines()
    return sum(
        float(line.split()[-1])
        for line in lines
        if line.startswith(f"shoal_generation_{name}{{") and label in line
    )


def settled(server: Server, name: str, expected: float = 0.0, label: str = "") -> bool:
    """Metrics are published four times a second; how long the work takes is the machine's affair."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if metric(server, name, label) == expected:
            return True
        time.sleep(0.1)
    return False
