"""The server of a canary: a Triton with another version than what is served, and whether it can go on."""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal import repository as versions
from shoal.cli.steps import err
from shoal.errors import ShoalError, first_line
from shoal.progress import Bars

if TYPE_CHECKING:
    from shoal.manifest import Manifest

_START_SECONDS, _GRACE_SECONDS = 600.0, 4.0
_FINISH_SECONDS, _IDLE = 60.0, 0.1  # in which answers may end; seconds of CPU time in a second
# How often it is asked whether a canary can go on; by so many silent looks, of so many seconds, it cannot.
_LOOK_SECONDS, _SILENT, _PROBE_SECONDS = 5.0, 3, 10.0


@contextmanager
def serve(place: Any, repository: Path, manifest: Manifest, served: int) -> Iterator[Watch]:
    """A server of the repository with a version in the place of the one that is served.

    Args:
        place: the folder of the canary, which says where it listens.
        manifest: of the canary's version.
        served: the version that the others have.
    """
    from serving import embedded, probe
    from serving.check import check
    from serving.distribution import Embedded
    from serving.ports import Ports
    from serving.supervisor.settings import CONTROL_HEADER, SupervisorSettings
    from serving.supervisor.snapshot import ModelSpec, Snapshot, specs_in
    from shoal.model_config import selected_versions

    found = specs_in(repository)
    before = found.copy()
    for model, config in manifest.configs.items():
        found[model] = ModelSpec(config, tuple(sorted(selected_versions(config))))
    distribution, ports = Embedded.find(), Ports(http=place.http, grpc=place.grpc, metrics=0)
    snapshot = Snapshot(repository, distribution.shown)
    os.environ[probe.PROBE_KEY] = secrets.token_hex(16)  # no full queue refuses what asks whether it answers
    control = secrets.token_hex(32)  # callers get here, too: what they may not ask of the others is closed
    headers = {CONTROL_HEADER: control}
    with Bars(err).step(f"start a server of {manifest.model} {manifest.version}"):
        check(repository, distribution.backends, {model: spec.versions for model, spec in found.items()})
        server = embedded.launch(
            distribution,
            repository,
            ports,
            timeout=_START_SECONDS,
            arguments=SupervisorSettings(repository).arguments("", control),
            headers=headers,
            open_snapshot=lambda folder: snapshot.open(folder, found),
            death=signal.SIGKILL,
        )
    try:
        time.sleep(3 * place.probe_seconds)  # Envoy must have seen it, or it asks the others
        with Watch(server, headers, repository, manifest, served, before) as watch:
            yield watch
    finally:
        # No request comes any more. Triton would wait for Envoy's connections until it is killed: they stay.
        _wait_until_idle(server)
        embedded.stop(server, grace=_GRACE_SECONDS)


def _wait_until_idle(server: Any) -> None:
    """Until the processes of a server have used hardly any CPU time for a second: answers have ended."""
    import psutil

    def used() -> float:
        with suppress(psutil.NoSuchProcess):
            first = psutil.Process(server.pid)
            times = [one.cpu_times() for one in (first, *first.children(recursive=True))]
            return float(sum(each.user + each.system for each in times))
        return 0.0

    deadline, before = time.monotonic() + _FINISH_SECONDS, -1.0
    while server.alive and time.monotonic() < deadline:
        time.sleep(1.0)
        now = used()
        if before >= 0.0 and now - before < _IDLE:
            return
        before = now


class Watch:
    """Looks every few seconds, in a thread, whether a canary can go on.

    Args:
        manifest: of the canary.
        served: the version that is served to the others.
        others: what the repository serves now.
    """

    def __init__(
        self,
        server: Any,
        headers: dict[str, str],
        repository: Path,
        manifest: Manifest,
        served: int,
        others: dict[str, Any],
    ) -> None:
        self._server, self._headers, self._repository = server, headers, repository
        self._manifest, self._served, self._others = manifest, served, others
        self._found: str | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    @property
    def problem(self) -> str | None:
        """Why it cannot go on; None: it can."""
        return self._found if self._server.alive else "the canary's server has ended"

    def _run(self) -> None:
        silent = 0
        while not self._done.wait(_LOOK_SECONDS):
            said = self._silence()
            silent = silent + 1 if said else 0
            if silent == _SILENT:
                self._found = f"the canary's server does not answer: {said}"
            elif changed := self._changed():
                self._found = changed

    def _silence(self) -> str | None:
        """Why its server does not answer; a refusal because it has too much to do is an answer."""
        from serving import probe

        try:
            asked = probe.questions(self._server.http, timeout=_PROBE_SECONDS, headers=self._headers)
            for question in asked:
                probe.send(question.request(), timeout=_PROBE_SECONDS)
        except urllib.error.HTTPError as error:
            return None if error.code in probe.BUSY else probe.reason_of(error)
        except Exception as error:  # noqa: BLE001 - whatever it says is no answer
            return first_line(error)
        return None

    def _changed(self) -> str | None:
        """What of the repository is not as it was when the canary's server read it."""
        from serving.supervisor.snapshot import specs_in

        try:
            now = versions.served_version(self._repository, self._manifest.network)
            if now != self._served:
                return f"version {now} was promoted, and the canary was compared with {self._served}"
            found = specs_in(self._repository)
        except (ShoalError, OSError):  # it is being changed
            return None
        for model, spec in found.items():
            if model not in self._manifest.configs and spec != self._others.get(model):
                return f"{model} was changed or is new, which the canary's server does not know"
        return None
