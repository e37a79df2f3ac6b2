"""Start a server, look after it, start it again when it is dead, and stop it in order when asked to."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from serving import embedded, probe
from serving.check import check
from serving.distribution import Distribution
from serving.ports import LOOPBACK, Ports
from serving.supervisor.follow import Follower
from serving.supervisor.gateway import GatewayProcess
from serving.supervisor.liveness import LOOK_SECONDS
from serving.supervisor.logs import Pipe, for_people, say
from serving.supervisor.metrics import Metrics
from serving.supervisor.record import Record, Recorder
from serving.supervisor.rollout import Rollout
from serving.supervisor.served import Served
from serving.supervisor.settings import CONTROL_HEADER, SupervisorSettings, read_key
from serving.supervisor.snapshot import ModelSpec, Snapshot, specs_in
from shoal.admin import HEADER
from shoal.errors import RepositoryError, ServerError, ShoalError
from shoal.leases import Leases
from shoal.rollouts import State

# A server that ends so soon after its start ended early. After a few of these in a row the next starts come
# further apart. What served once is not given up: what made it end may pass, such as a full disk, or a client
# that makes Triton crash.
EARLY_SECONDS = 10.0
EARLY_ENDS = 3
LONGEST_PAUSE_SECONDS = 30.0
# In which a dead server's models end their requests with an error, where they still can.
LOST_GRACE = 2.0
PAUSE_SECONDS = 1.0  # between two starts that fail


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

    def __init__(self, settings: SupervisorSettings, distribution: Distribution) -> None:
        self._settings = settings
        self._repository = settings.repository.resolve()
        self._distribution = distribution
        self._key = read_key(settings.admin_key)
        self._control = secrets.token_hex(32)
        self._headers = {CONTROL_HEADER: self._control} | ({HEADER: self._key} if self._key else {})
        os.environ[probe.PROBE_KEY] = secrets.token_hex(16)  # of its servers, and of its questions
        if settings.folder is not None:
            for_people()
        self._started_before, self._early = False, 0
        self.metrics = Metrics(settings.address, settings.health_port, lambda: self._rollout.served)
        self._state = State(settings.state, self._repository)
        self._rollout = Rollout.load(self._state.path, time.monotonic)
        self._leases = Leases(self._repository)
        self._served: Served | None = None
        record = Record(
            os.getpid(),
            time.time(),
            settings.ports,
            self.metrics.port,
            self._repository,
            self._state.path,
            gateway_port=settings.gateway_port,
        )
        self._gateway = None
        if settings.gateway_port is not None:
            self._gateway = GatewayProcess(settings.gateway_port, settings.ports, self.metrics.port)
        self._recorder = Recorder(settings.folder, record)
        self._renew_drift = _watch_drift(settings, self.metrics) if settings.drift_share else None

    def run(self) -> int:
        """Until SIGTERM or SIGINT, for the main thread.

        Returns:
            The exit code: 0 after such a signal, 1 where the server cannot be started.
        """
        signal.signal(signal.SIGTERM, self._drain)
        signal.signal(signal.SIGALRM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        try:
            if self._gateway is not None:
                self._gateway.start()
            while True:
                served = self._start_again() if self._started_before else self._start()
                self._started_before, begun = True, time.monotonic()
                reason, sentence = self._look_after(served)
                self.metrics.ended(sentence)
                say(f"not serving: {sentence}", level="error", reason=reason)
                served.close()
                embedded.stop(served.server, grace=LOST_GRACE)
                self._served = None
                self._rollout.ended()
                self.metrics.restarted(reason)
                self._early = self._early + 1 if time.monotonic() - begun < EARLY_SECONDS else 0
                self._pause(0.0)
        except _Stop:
            self.metrics.ended("stopping")
            say("stopping: running requests are finished first")
            if self._gateway is not None:
                self._gateway.ask_to_stop()
            running = self._served
            clean = running is None or embedded.stop(running.server, grace=self._settings.grace)
            gateway_clean = self._gateway is None or self._gateway.stop()
            if not clean:
                say(f"some did not finish within {self._settings.grace:.0f} s", level="warning")
            self._rollout.ended()
            self._recorder.ended(clean=clean and gateway_clean)
            return 0
        except ShoalError as error:
            say(error.message, level="error", hint=error.hint)
            self._recorder.ended(error=error)
            return 1
        finally:
            if self._gateway is not None:
                self._gateway.stop()
            self.metrics.close()
            self._state.close()
            self._leases.close()

    def _start_again(self) -> Served:
        """`_start`, until it starts: what keeps it from that may pass, such as a port that is taken."""
        while True:
            try:
                return self._start()
            except ShoalError as error:
                self.metrics.ended(error.message)
                say(f"not serving: {error.message}", level="error", reason="start failed")
                self.metrics.restarted("start failed")
                self._early += 1
                self._pause(PAUSE_SECONDS)

    def _pause(self, seconds: float) -> None:
        """Wait before the next start; longer than asked where starts did not help."""
        if self._early >= EARLY_ENDS:
            seconds = max(seconds, min(LONGEST_PAUSE_SECONDS, 2.0 ** (self._early - EARLY_ENDS)))
            say(
                f"{self._early} servers in a row ended early: the next start is in {seconds:.0f} s",
                level="error",
                hint="shoal rollback",
            )
        time.sleep(seconds)

    def _start(self) -> Served:
        """One server that serves; see `Served.begin`.

        Raises:
            RepositoryError: there is nothing that is what was measured.
            ServerError: it does not start, or serves nothing.
        """
        try:
            return self._begin()
        except OSError as error:  # a full disk, say, or a folder that is removed just now
            raise ServerError(f"the server cannot be started: {error}") from error

    def _begin(self) -> Served:
        begun = time.monotonic()
        self._rollout.see(specs_in(self._repository, self._rollout.desired or self._rollout.good))
        chosen = self._checked()
        snapshot = Snapshot(self._repository, self._distribution.shown)
        server = self._launch(
            self._settings.ports,
            self._settings.address,
            lambda folder: snapshot.open(folder, chosen),
            probe.starting,
            "--exit-on-error=false",
        )
        try:
            served = Served(server, snapshot, self._headers, self._settings.timeout, self.metrics.told)
            loaded, news = served.begin(chosen, self._rollout, self._check)
            self._served = served
        except BaseException:
            embedded.stop(server, grace=LOST_GRACE)
            raise
        self._rollout.started(loaded)
        for error in news:
            self._tell(error)
        seconds = time.monotonic() - begun
        self.metrics.started(server, seconds)
        self.metrics.upgraded(bool(self._rollout.refused))
        if self._gateway is not None and not self._started_before:
            self._gateway.wait()
        say("serving", seconds=round(seconds, 2))
        self._recorder.serving()  # last: whoever waits for it may read the log
        return served

    def _checked(self) -> dict[str, ModelSpec]:
        """What is loaded first.

        Raises:
            RepositoryError: there is nothing that is what was measured.
        """
        chosen, news = self._rollout.choose(self._check)
        if not chosen:
            known = [refusal.reason for refusal in self._rollout.refused]
            reason = known[0] if known else f"{self._repository} holds no models"
            raise news[0] if news else RepositoryError(reason, hint="shoal export")
        for error in news:
            self._tell(error)
        return chosen

    def _check(self, models: Mapping[str, ModelSpec]) -> None:
        """Compare the files of these models with their manifests; see `serving.check`."""
        versions = {name: model.versions for name, model in models.items()}
        check(self._repository, self._distribution.backends, versions)

    @staticmethod
    def _tell(error: ShoalError) -> None:
        say(f"not taken up: {error.message}", level="error", hint=error.hint or "shoal rollback")

    def _trial(self, target: Mapping[str, ModelSpec], asked: Callable[[], bool]) -> None:
        self._check(target)
        trial = Snapshot(self._repository, self._distribution.shown)

        def problem(address: str, **options: Any) -> str | None:
            if not asked():
                raise ServerError("something else is asked for by now")
            return probe.problem(address, **options)

        server = self._launch(Ports(0, 0, 0), LOOPBACK, lambda folder: trial.open(folder, target), problem)
        embedded.stop(server)

    def _launch(
        self,
        ports: Ports,
        address: str,
        open_snapshot: Callable[[Path], Path],
        problem: embedded.Problem,
        *arguments: str,
    ) -> embedded.Server:
        pipe = Pipe()
        try:
            return embedded.launch(
                self._distribution,
                self._repository,
                ports,
                address=address,
                timeout=self._settings.timeout,
                arguments=[*self._settings.arguments(self._key, self._control), *arguments],
                headers=self._headers,
                output=pipe,
                open_snapshot=open_snapshot,
                grace=self._settings.grace,
                problem=problem,
            )
        finally:
            pipe.started()

    def _look_after(self, served: Served) -> tuple[str, str]:
        follower = Follower(self._rollout, self._repository, self._trial, served, self._upgraded)
        while (problem := served.liveness.problem() or served.readiness.dead) is None:
            self.metrics.ready(served.readiness.problem or self._not_served())
            try:
                follower.look(served.liveness.draining)
            except ShoalError as error:  # it went away as it was asked what it serves
                return "models lost", error.message
            self._hold()
            if self._gateway is not None:
                self._gateway.look()
            time.sleep(LOOK_SECONDS)
        return problem

    def _not_served(self) -> str | None:
        """Which model was served before, and is not since the last start; None: each is."""
        for name in sorted(self._rollout.missing):
            return f"{name} is not served: {self._rollout.reason(name) or 'it is tried again'}"
        return None

    def _hold(self) -> None:
        """Keep `shoal prune` from removing what is served, tried, drains or is the last good."""
        try:
            if self._leases.held != self._rollout.held:
                self._leases.hold(self._rollout.held)
        except RepositoryError:  # a version is not there any more, which the next start finds out
            return

    def _upgraded(self, refused: bool) -> None:
        self.metrics.upgraded(refused)
        if self._renew_drift is not None and not refused:
            self._renew_drift()

    def _drain(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM: go on for a while, since whoever balances load does not know of it yet."""
        if not self._settings.drain or self._served is None:
            self._stop(number, frame)
        say(f"draining: new requests should go elsewhere, and are answered for {self._settings.drain:g} s")
        self.metrics.leave()
        signal.signal(signal.SIGTERM, self._stop)  # whoever sends it again does not want to wait
        signal.setitimer(signal.ITIMER_REAL, self._settings.drain)

    @staticmethod
    def _stop(number: int, frame: FrameType | None) -> NoReturn:
        # The second would break off what the first began.
        for one in (signal.SIGTERM, signal.SIGALRM, signal.SIGINT):
            signal.signal(one, signal.SIG_IGN)
        raise _Stop


def _watch_drift(settings: SupervisorSettings, metrics: Metrics) -> Callable[[], None] | None:
    from serving.supervisor.drift import watch_drift  # noqa: PLC0415 - it needs SciPy, which servers do not

    return watch_drift(settings, metrics.registry)
