"""The virtual environments of peers, as the benchmarks use them: each made once, by `setup.sh`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loadtest.peers.server import HOST, NotServing, free_port, serving
from serving.launch import launch_with
from shoal.paths import cache_dir

HEALTH = {"mlserver": "/v2/models/forest/ready"}  # where it is not /health


def python_of(peer: str) -> Path | None:
    """The Python of a peer's environment; None where that cannot be made, which `setup.sh` tells."""
    setup = Path(__file__).with_name("setup.sh")
    done = subprocess.run([setup, peer], stdout=subprocess.PIPE, text=True, check=False)
    return None if done.returncode else Path(done.stdout.strip()) / "bin" / "python"


def kept_by(peer: str) -> Path:
    """The folder of what a peer keeps between runs, and of its servers' logs."""
    folder = cache_dir() / "peers" / peer / "cache"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def served_by(peer: str, name: str, arguments: Sequence[str | Path]) -> Iterator[str]:
    """The server that a peer's script `run_PEER` becomes; yields its host:port.

    Args:
        name: of its log.
        arguments: of the script, which takes `--port` besides.

    Raises:
        NotServing: its environment cannot be made, or it does not come up.
    """
    python, port = python_of(peer), free_port()
    if python is None:
        raise NotServing("its environment cannot be made")
    # It ends with this process, however that ends.
    script = [*launch_with(os.getpid()), str(python), "-m", f"loadtest.peers.run_{peer}"]
    command = [*script, "--port", str(port), *arguments]
    health = HEALTH.get(peer, "/health")
    with serving(command, port, kept_by(peer) / f"{name}.log", {}, health=health):
        yield f"{HOST}:{port}"
