"""What runs on a Python that Triton does not run with: `make test-newer-python`; elsewhere these pass too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

NEWER = sys.version_info >= (3, 13)


def shoal(*words: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("shoal")), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_clients_are_imported_without_a_server_or_an_exporter() -> None:
    code = "import clients, sys; print(clients.GrpcClient.__name__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "GrpcClient False\n"


@pytest.mark.parametrize("command", ["infer", "chat", "loadtest", "status", "versions", "promote"])
def test_the_command_says_how_it_is_used(command: str) -> None:
    done = shoal(command, "--help")
    assert (done.returncode, "Usage" in done.stdout) == (0, True), done.stderr


def test_a_server_that_is_not_there_is_one_line() -> None:
    done = shoal("infer", "minilm", "a text", "--url", "127.0.0.1:1")
    assert done.returncode != 0
    assert done.stderr.startswith("error: 127.0.0.1:1: ") and len(done.stderr.splitlines()) <= 2


def test_the_doctor_tells_what_is_missing() -> None:
    report = json.loads(shoal("doctor", "--json").stdout)
    assert report


@pytest.mark.skipif(not NEWER, reason="the embedded Triton runs with this Python")
def test_the_embedded_triton_says_which_python_it_needs(tmp_path: Path) -> None:
    (tmp_path / "model" / "1").mkdir(parents=True)
    (tmp_path / "model" / "config.pbtxt").write_text('backend: "python"')
    done = shoal("serve", "--repository", str(tmp_path), "--http-port", "0")
    assert done.returncode != 0
    assert "the embedded Triton is for Python 3.10 to 3.12, this is 3.1" in done.stderr
