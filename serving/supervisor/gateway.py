"""The gateway of a service on this machine: a process that the supervisor starts, looks after and ends."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from http.client import HTTPException

from serving import probe
from serving.launch import launch_with, python
from serving.ports import LOOPBACK, Ports
from serving.supervisor.logs import say
from shoal.errors import ServerError

START_SECONDS = 30.0
# In which the streams of a gateway may end; uvicorn's own limit is shorter, see `serving.gateway.run`.
STOP_SECONDS = 15.0
PAUSE_SECONDS = 2.0  # between two starts
_POLL_SECONDS = 0.05
_ANSWER_SECONDS = 2.0


class GatewayProcess:
    """One gateway, which starts again when it has ended.

    Args:
        port: where it listens, on loopback.
        ports: of the Triton behind it.
        health_port: of the supervisor, which tells it what is served.
    """

    def __init__(self, port: int, ports: Ports, health_port: int) -> None:
        self.port = port
        self._command = [
            *launch_with(os.getpid()),
            *(*python(), "-m", "serving.gateway", f"--port={port}"),
            f"--triton={LOOPBACK}:{ports.grpc}",
            f"--catalogue=http://{LOOPBACK}:{health_port}/catalogue",
        ]
        self._started = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it does not listen yet."""
        self._started = time.monotonic()
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, start_new_session=True)

    def wait(self) -> None:
        """Until it answers, and has been told what is served.

        Raises:
            ServerError: it has ended, or does not answer in time.
        """
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self._process is None or self._process.poll() is not None:
                raise ServerError("the gateway ended as it started", hint="shoal logs says why")
            with suppress(OSError, HTTPException):
                probe.send(probe.request(f"{LOOPBACK}:{self.port}/health"), timeout=_ANSWER_SECONDS)
                return
            time.sleep(_POLL_SECONDS)
        raise ServerError(f"the gateway on port {self.port} does not serve after {START_SECONDS:.0f} s")

    def look(self) -> None:
        """Start it again where it has ended."""
        if self._process is None or self._process.poll() is None:
            return
        if time.monotonic() - self._started > PAUSE_SECONDS:
            code = self._process.returncode
            say(f"the gateway ended with {code}: it is started again", level="error")
            with suppress(OSError):  # no process or memory left just now: the next look tries again
                self.start()

    def ask_to_stop(self) -> None:
        """Have it take no more requests, and let its streams end."""
        if self._process is not None:
            self._process.terminate()

    def stop(self) -> bool:
        """End it; whether it did so by itself."""
        self.ask_to_stop()
        if self._process is None:
            return True
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False
        return True
