"""A Docker engine and our compose files on it, for tests."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
PROJECT = "shoal-test"


def command() -> list[str]:
    """Compose as a plugin, or as a program of its own."""
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    return ["docker", "compose"] if plugin.returncode == 0 else ["docker-compose"]


def has_engine() -> bool:
    """Whether there is one that answers."""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


class Service:
    """The compose project, with ports and volumes of its own.

    Args:
        files: compose files, relative to the project's root.
    """

    def __init__(self, *files: str, **environment: str) -> None:
        self.files = files or ("docker-compose.yml",)
        names = ("HTTP_PORT", "GRPC_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT", "LOCUST_PORT", "GATEWAY_PORT")
        self.ports = {name: free_port() for name in names}
        ports = {name: str(port) for name, port in self.ports.items()}
        self.environment = os.environ | {"COMPOSE_HTTP_TIMEOUT": "600"} | ports | environment

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.ports['HTTP_PORT']}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.ports['GRPC_PORT']}"

    def compose(self, *arguments: str, timeout: float = 1800) -> str:
        """Run compose; what it printed."""
        files = [part for file in self.files for part in ("-f", file)]
        return self._run([*command(), "-p", PROJECT, *files, *arguments], timeout)

    def shell(self, block: str) -> str:
        """Run the lines of a page as they stand there, on this project."""
        own = f"{' '.join(command())} -p {PROJECT}"
        return self._run(["bash", "-euc", block.replace("docker compose", own)], 600)

    def build(self, service: str) -> None:
        """Its image, with the machine's own network: a build may need its way to the package index."""
        stated = yaml.safe_load(self.compose("--profile", "loadtest", "config"))["services"][service]
        arguments = [f"--build-arg={name}={value}" for name, value in stated["build"]["args"].items()]
        dockerfile = stated["build"]["dockerfile"]
        tag = ["--network=host", "--quiet", "-t", stated["image"], "-f", dockerfile]
        self.docker("build", *tag, *arguments, ".", timeout=1800)

    def docker(self, *arguments: str, timeout: float = 120) -> str:
        """Run docker; what it printed."""
        return self._run(["docker", *arguments], timeout)

    def _run(self, arguments: Sequence[str], timeout: float) -> str:
        done = subprocess.run(
            arguments,
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def container(self, service: str) -> str:
        """Its id."""
        return self.compose("ps", "-q", service).split()[0]

    def state(self, service: str) -> dict[str, Any]:
        """What the engine knows of a service's container."""
        return dict(json.loads(self.docker("inspect", self.container(service)))[0])

    def wait_healthy(self, service: str = "triton", seconds: float = 300.0) -> float:
        """Until the container's own health check passes; how long that took."""
        start = time.monotonic()
        while True:
            try:
                if self.state(service)["State"]["Health"]["Status"] == "healthy":
                    return time.monotonic() - start
            except (IndexError, KeyError):
                pass
            assert time.monotonic() - start < seconds, self.compose("logs", "--tail=30", service)
            time.sleep(0.2)

    def inside(self, service: str, *arguments: str, user: str = "") -> str:
        """Run a command in a service's container."""
        who = ["-u", user] if user else []
        return self.docker("exec", *who, self.container(service), *arguments)

    def watch(self, path: str) -> str:
        """What the supervisor's port, which is not published, answers."""
        code = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:8003{path}').read().decode())"
        return self.inside("triton", "python3", "-c", code)

    def said(self, message: str, since: datetime, missing: Any = None) -> dict[str, Any]:
        """The supervisor's last line with this message since then, and when that was, as `at`.

        Raises:
            KeyError: there is none, and `missing` is not given.
        """
        lines = self.docker("logs", f"--since={since.isoformat()}", self.container("triton")).splitlines()
        for line in reversed(lines):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            named = entry.get("where") == "supervisor" and entry["message"].split(":")[0] == message
            if named and (at := datetime.fromisoformat(entry["time"].replace("Z", "+00:00"))) >= since:
                return {**entry, "at": at}
        if missing is None:
            raise KeyError(f"{message} since {since}")
        return dict(missing)

    def prometheus(self, path: str) -> Any:
        """An answer of Prometheus's API."""
        url = f"http://127.0.0.1:{self.ports['PROMETHEUS_PORT']}/api/v1/{path}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)["data"]
