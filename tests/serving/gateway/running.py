"""A real gateway in front of a real service, as users start them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from serving.ports import free_port


class Behind(Protocol):
    """Where gRPC and `/health` of a service are; `serving.service.Service` is one."""

    @property
    def grpc(self) -> str: ...

    @property
    def health(self) -> str: ...


@dataclass(frozen=True)
class Running:
    """A gateway that runs.

    Attributes:
        url: of its root.
        pid: of its process.
    """

    url: str
    pid: int

    def get(self, path: str, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, body as JSON (or as text, where it is something else), and headers of a GET."""
        return self._send(urllib.request.Request(f"{self.url}{path}", headers=headers))

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """The same of a POST; a body that is not bytes is sent as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._send(urllib.request.Request(f"{self.url}{path}", data=data, headers=headers))

    def _send(self, request: urllib.request.Request) -> tuple[int, Any, dict[str, str]]:
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                content = response.read()
                is_json = response.headers.get_content_type() == "application/json"
                body = json.loads(content) if is_json else content.decode()
                return response.status, body, dict(response.headers)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null"), dict(error.headers)


@contextmanager
def gateway(service: Behind, *arguments: str, log: Path) -> Iterator[Running]:
    """A gateway in a process of its own."""
    port = free_port("gateway", 0)
    command = [sys.executable, "-m", "serving.gateway", f"--port={port}", f"--triton={service.grpc}"]
    command += [f"--catalogue={service.health.replace('/health', '/catalogue')}", *arguments]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            made = Running(f"http://127.0.0.1:{port}", process.pid)
            deadline = time.monotonic() + 60
            while True:
                try:
                    if made.get("/health")[0] == 200:
                        break
                except OSError:
                    pass
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield made
        finally:
            process.terminate()
            process.wait(20)
