"""Start a server, watch it, start it again when it does not serve, and stop it in order when asked to."""

from __future__ import annotations

import secrets
import signal
import time
from collections import deque
from collections.abc import Callable, Collection
from http.client import HTTPException
from pathlib import Path
from types import FrameType

import psutil

from serving import embedded, probe
from serving.distribution import Distribution
from serving.embedded import Ports
from serving.supervisor.drift import watch_drift
from serving.supervisor.logs import Pipe, say
from serving.supervisor.metrics import Metrics
from serving.supervisor.settings import CONTROL_HEADER, Settings, read_key
from serving.supervisor.upgrade import Upgrades
from serving.supervisor.watch import LOOK_SECONDS, Watch
from shoal.admin import HEADER
from shoal.errors import ShoalError

# More starts than this in so many seconds: what is wrong is not mended by starting again.
MOST_STARTS = 5
WINDOW_SECONDS = 120.0
# A server that lost a model still has requests of the others; those that wait for the lost one never end.
LOST_GRACE = 2.0


class _Stop(BaseException):
    """SIGTERM or SIGINT came."""


class Supervisor:
    """Keeps one server serving.

    Args:
        settings: what to serve, and to whom.
        distribution: the Triton to start.

    Raises:
        UsageError: the admin key is unusable.
        ServerError: the port for metrics cannot be had.
    """

    def __init__(self, settings: Settings, distribution: Distribution) -> None:
        self._settings = settings
        self._distribution = distribution
        self._key = read_key(settings.admin_key)
        self._control = secrets.token_hex(32)
        self._headers = {CONTROL_HEADER: self._control} | ({HEADER: self._key} if self._key else {})
        self._pipe = Pipe()
        self._starts: deque[float] = deque(maxlen=MOST_STARTS)
        self.metrics = Metrics(settings.address, settings.watch_port)
        self._upgrades = Upgrades(
            settings.repository,
            self._launch_trial,
            self._headers,
            settings.timeout,
            watch=self._look_at,
            told=self._upgraded,
        )
        self._renew_drift = watch_drift(settings, self.metrics.registry) if settings.drift_share else None

    def run(self) -> int:
        """Until SIGTERM or SIGINT, for the main thread.

        Returns:
            The exit code: 0 after such a signal, 1 where the server cannot be kept serving.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        server = None
        try:
            while True:
                server = self._start()
                reason, sentence = self._watch(server)
                self.metrics.ended(sentence)
                say(f"not serving: {sentence}", level="error", reason=reason)
                embedded.stop(server, grace=LOST_GRACE)
                server = None
                if self._hopeless():
                    say(f"{MOST_STARTS} starts within {WINDOW_SECONDS:.0f} s did not help", level="error")
                    return 1
                self.metrics.restarted(reason)
        except _Stop:
            self.metrics.ended("stopping")
            say("stopping: running requests are finished first")
            if server is not None and not embedded.stop(server, grace=self._settings.grace):
                say(f"some did not finish within {self._settings.grace:.0f} s", level="warning")
            return 0
        except ShoalError as error:
            say(error.message, level="error", hint=error.hint)
            return 1
        finally:
            self.metrics.close()

    def _start(self) -> embedded.Server:
        begun = time.monotonic()
        self._starts.append(begun)
        server = self._launch(self._settings.ports, self._settings.address, self._upgrades.view.open)
        seconds = time.monotonic() - begun
        self.metrics.started(server, seconds)
        say("serving", seconds=round(seconds, 2))
        return server

    def _launch_trial(self, view: Callable[[Path], Path]) -> embedded.Server:
        return self._launch(Ports(0, 0, 0), embedded.LOOPBACK, view)

    def _launch(self, ports: Ports, address: str, view: Callable[[Path], Path]) -> embedded.Server:
        return embedded.launch(
            self._distribution,
            self._settings.repository,
            ports,
            address=address,
            timeout=self._settings.timeout,
            arguments=self._settings.arguments(self._key, self._control),
            headers=self._headers,
            output=self._pipe.descriptor,
            view=view,
            grace=self._settings.grace,
        )

    def _watch(self, server: embedded.Server) -> tuple[str, str]:
        watch = None
        try:
            watch = self._look_at(server)
            while (problem := watch.problem()) is None:
                time.sleep(LOOK_SECONDS)
                watch = self._upgrades.look(server, watch)
            return problem
        except (OSError, ValueError, HTTPException) as error:
            return "server died", f"it stopped answering: {probe.reason_of(error)}"
        finally:
            if watch is not None:
                watch.close()

    def _look_at(self, server: embedded.Server, leaving: Collection[psutil.Process] = ()) -> Watch:
        return Watch(server, self._headers, self.metrics.told, leaving)

    def _upgraded(self, refused: bool) -> None:
        self.metrics.upgraded(refused)
        if self._renew_drift is not None and not refused:
            self._renew_drift()

    def _hopeless(self) -> bool:
        return len(self._starts) == MOST_STARTS and time.monotonic() - self._starts[0] < WINDOW_SECONDS

    @staticmethod
    def _stop(number: int, frame: FrameType | None) -> None:
        for one in (signal.SIGTERM, signal.SIGINT):  # the second would break off what the first began
            signal.signal(one, signal.SIG_IGN)
        raise _Stop
