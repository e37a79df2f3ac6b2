"""Serves a setting in a copy of the repository and tests it, away from whatever is served to callers."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from clients import ClientError, GrpcClient
from loadtest import headless, queueing, workloads
from loadtest.asking import asker
from loadtest.samples import Samples
from loadtest.tuning.found import Judged
from loadtest.tuning.space import VERSION, Setting, Space
from serving import embedded
from shoal.errors import ServerError
from shoal.locks import Busy, lock
from shoal.paths import link_or_copy, write_atomic
from shoal.progress import Silent

PREFIX = ".shoal-tune-"
SERVERS = 2  # that run at once: what is served now, and one that is compared with it
WARM_SECONDS = 1.0
CALLERS = 8


class Bench:
    """Settings by their servers; to be closed.

    Args:
        repository: whose files are served; it is not changed.
        plan: a test, without addresses and rate.
        folder: for logs.
    """

    def __init__(
        self,
        repository: Path,
        space: Space,
        plan: headless.Plan,
        folder: Path,
        progress: Silent | None = None,
    ) -> None:
        self._repository, self._space, self._plan = repository.resolve(), space, plan
        self._folder, self._progress = folder, progress
        self._servers: OrderedDict[str, tuple[ExitStack, embedded.Server]] = OrderedDict()
        self._kept: dict[tuple[str, float], tuple[Samples, dict[str, Any]]] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for stack, _ in self._servers.values():
            stack.close()
        self._servers.clear()

    def measure(self, setting: Setting, rate: float, number: int) -> Judged:
        """Test a setting at a rate.

        Raises:
            ShoalError: it cannot be served, or its server died.
        """
        samples, summary = self.test(setting, self._plan.at(rate, number))
        judged = summary["slo"]
        if judged["met"]:
            self._kept[_key(setting), rate] = samples, summary
        return Judged(
            judged["met"],
            judged["goodput"],
            {row["bound"]: row["reached"] for row in judged["bounds"]},
            summary["client"]["limited"],
            judged["alone"],
        )

    def kept(self, setting: Setting, rate: float) -> tuple[Samples, dict[str, Any]] | None:
        """The last test of a setting at a rate in which it kept the promise; see `headless.measured`."""
        return self._kept.get((_key(setting), rate))

    def guess(self) -> float:
        """Requests per second of what is served now under callers who wait for their answers.

        Raises:
            ShoalError: it cannot be served, or answers nothing.
        """
        server = self._server(self._space.default)
        seconds = float(self._plan.seconds)
        answered = self._answered(server, seconds)
        if not answered:
            raise ServerError(f"{CALLERS} callers had no answer in {seconds:.0f} s", hint="--seconds 30")
        return answered / seconds

    def test(self, setting: Setting, plan: headless.Plan) -> tuple[Samples, dict[str, Any]]:
        """Run a plan, whose addresses do not matter, against a setting; see `headless.measured`.

        Raises:
            ShoalError: as `measure`.
        """
        server = self._server(setting)
        found = headless.measured(replace(plan, grpc_url=server.grpc), self._folder, progress=self._progress)
        if not server.alive:
            raise ServerError("the server died")
        return found

    def address(self, setting: Setting) -> str:
        """host:port of the gRPC endpoint of a setting's server, which is started if it does not run.

        Raises:
            ServerError: it cannot be served.
        """
        return self._server(setting).grpc

    def queues(self) -> list[str]:
        """The models of what was tested last, those in front of which requests waited longest first."""
        if not self._servers:
            return []
        _, server = next(reversed(self._servers.values()))
        found = queueing.statistics("-", server.http)
        return sorted(found, key=lambda name: found[name]["queue"], reverse=True)

    def _server(self, setting: Setting) -> embedded.Server:
        key = _key(setting)
        if key in self._servers:
            self._servers.move_to_end(key)
            stack, server = self._servers[key]
            if server.alive:
                return server
            stack.close()
            del self._servers[key]
        while len(self._servers) >= SERVERS:
            _, (stack, _) = self._servers.popitem(last=False)
            stack.close()
        with ExitStack() as stack:
            scratch = stack.enter_context(scratch_beside(self._repository))
            models = lay_out(self._repository, self._space, setting, scratch / "model_repository")
            server = stack.enter_context(embedded.running(models))
            self._answered(server, WARM_SECONDS)
            self._servers[key] = (stack.pop_all(), server)
        return server

    def _answered(self, server: embedded.Server, seconds: float) -> int:
        """How many requests callers who wait for their answers have answered in a time."""
        plan, end = self._plan, time.monotonic() + seconds
        requests = workloads.requests(plan.workload, generates=plan.generates)

        def call(number: int) -> int:
            done = 0
            with GrpcClient(server.grpc, timeout=plan.deadline) as client, suppress(ClientError):
                ask = asker(client, plan.model, generates=plan.generates)
                while time.monotonic() < end:
                    ask(client, requests[(number + CALLERS * done) % len(requests)])
                    done += 1
            return done

        with ThreadPoolExecutor(CALLERS) as pool:
            return sum(pool.map(call, range(CALLERS)))


def lay_out(repository: Path, space: Space, setting: Setting, made: Path) -> Path:
    """Make a repository with one setting alone, by links to the files of another on the same file system."""
    manifest = space.manifests[setting.get(VERSION, space.served)]
    for model, text in space.configs(setting).items():
        versions = {Path(name).parts[1] for name in manifest.files if Path(name).parts[0] == model}
        for version in versions or {"1"}:  # an ensemble has no files
            source = repository / model / version
            if source.is_dir():
                shutil.copytree(source, made / model / version, copy_function=link_or_copy)
            else:
                (made / model / version).mkdir(parents=True)
        write_atomic(made / model / "config.pbtxt", text)
    return made


def _key(setting: Setting) -> str:
    return json.dumps(setting, sort_keys=True)


@contextmanager
def scratch_beside(repository: Path) -> Iterator[Path]:
    """A folder beside the repository, to which its files can be linked. What a killed search left goes."""
    for left in repository.parent.glob(f"{PREFIX}*"):
        with suppress(Busy, OSError):  # of a search that runs
            descriptor = lock(left, exclusive=True)
            shutil.rmtree(left, ignore_errors=True)
            os.close(descriptor)
    beside = os.access(repository.parent, os.W_OK)
    with tempfile.TemporaryDirectory(dir=repository.parent if beside else None, prefix=PREFIX) as folder:
        descriptor = lock(Path(folder), exclusive=True)
        try:
            yield Path(folder)
        finally:
            os.close(descriptor)
