"""Run Locust without its web page, and turn what it saw into a report."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from loadtest import arrivals, comparing, queueing, report, slo, workloads
from loadtest.energy import Meter
from loadtest.peers.server import free_port
from loadtest.samples import Row, Samples
from shoal import machine, show
from shoal.errors import ShoalError, UsageError
from shoal.manifest import Manifest
from shoal.paths import write_atomic
from shoal.progress import Silent

PROTOCOLS = ("both", "grpc", "http")
_USERS = {"both": ("Grpc", "Http"), "grpc": ("Grpc",), "http": ("Http",)}
STRAGGLERS_SECONDS, WRITING_SECONDS = 30, 60
MOST_SECONDS = 120  # of a test that is made longer since its rate is low
CONNECT_SECONDS = 60  # which the users of a closed loop have, before the time of the test begins
START_SECONDS = 6.0  # in which several processes start, before the first request is due
# Beyond these the time of the processes that send is in the figures.
MOST_CPU, MOST_LAG_MS, MOST_LAG_SHARE = 0.85, 5.0, 0.1
# Of each of two servers that are asked in turn; longer than most answers, else one slows the other's turn.
TURN_SECONDS, TURN_SECONDS_OF_STREAMS = 2.0, 20.0
RATE_OF_A_PROCESS = 250  # requests per second: some 200 ms of CPU time for short texts


@dataclass(frozen=True)
class Plan:
    """One load test.

    Attributes:
        model: what is called.
        users: how many at once, in a closed loop; with `both`, half of each protocol.
        seconds: how long.
        protocol: one of `PROTOCOLS`.
        grpc_url, http_url: host:port.
        generates: whether the model generates text.
        workload: see `loadtest.workloads.requests`.
        rate: requests per second of an open loop; None: a closed loop, unless `arrival` is a trace.
        arrival: see `loadtest.arrivals.due_times`; "": a closed loop.
        slo: what was promised.
        served: what is known of the version that answers: `version`, `precision`, `task`, and of a decoder
            `speeds`, tokens per second of `prefill` and `decode`; None: nothing.
        seed: of an open loop's times and requests.
        beside: host:port of a second server, which gets the same requests in turn with the first; "": none.
    """

    model: str
    users: int
    seconds: int
    protocol: str
    grpc_url: str
    http_url: str
    generates: bool = False
    workload: str = ""
    rate: float | None = None
    arrival: str = ""
    slo: str = ""
    served: dict[str, Any] | None = None
    seed: int = 0
    beside: str = ""

    @property
    def turn(self) -> float:
        """Seconds for which one of two servers is asked, before the other is."""
        return TURN_SECONDS_OF_STREAMS if self.generates else TURN_SECONDS

    @property
    def lasts(self) -> int:
        """How long requests come, in seconds, to one server or to two."""
        return self.seconds * (2 if self.beside else 1)

    @property
    def deadline(self) -> float:
        """Of a request, in seconds."""
        return 120.0 if self.generates else 10.0

    @property
    def grace(self) -> float:
        """How long the last answers of an open loop are waited for, in seconds."""
        return 30.0 if self.generates else self.deadline

    def at(self, rate: float, seed: int) -> Plan:
        """The same with another rate, and longer where that would give too few requests for a percentile."""
        least = slo.least_requests(slo.parse(self.slo))
        seconds = max(self.seconds, min(MOST_SECONDS, math.ceil(least / rate)))
        return replace(self, rate=rate, seconds=seconds, seed=seed)

    @property
    def due(self) -> NDArray[np.float64]:
        """When the requests of an open loop are due, see `loadtest.arrivals.due_times`."""
        return arrivals.due_times(self.arrival, self.rate, self.seconds, seed=self.seed)

    @property
    def processes(self) -> int:
        """That send. More than CPUs would wait for each other."""
        wanted = 1 + int(len(self.due) / self.seconds // RATE_OF_A_PROCESS)
        return min(wanted, machine.available_cpus())


def about(manifest: Manifest) -> dict[str, Any]:
    """What `Plan.served` says of a version."""
    evidence = manifest.evidence
    told = {
        "version": manifest.version,
        "precision": manifest.precision,
        "task": evidence.get("task") or manifest.recipe.get("task"),
    }
    rates = evidence.get("decode_tokens_per_second", {}).items()
    decode = max(rates, key=lambda item: int(item[0]), default=None)
    if decode is not None:
        told["speeds"] = {"prefill": evidence["prefill_tokens_per_second"], "decode": decode[1]}
    return told


def run(
    plan: Plan,
    folder: Path,
    before: dict[str, Any] | None = None,
    tolerance: float = 0.0,
    *,
    progress: Silent | None = None,
) -> dict[str, Any]:
    """Run the plan and write `report.html`, `report.json` and Locust's own log into a folder.

    Args:
        before: a report to compare with; see `loadtest.comparing`. With `Plan.beside` it is that of the
            second server.
        tolerance: how much slower is no regression, as a share.

    Returns:
        What `report.json` holds, without every request.

    Raises:
        ShoalError: Locust did not run, or no request was made.
        UsageError: the plan contradicts itself.
    """
    samples, summary = measured(plan, folder, progress=progress)
    turns = None
    if plan.beside:
        before, turns = summary["beside"], plan.due // plan.turn
        summary["beside"] = {key: value for key, value in before.items() if key != "requests"}
    try:
        if before is not None:
            after = {**summary, "requests": samples.columns()}
            summary["compared"] = comparing.compare(before, after, tolerance, turns)
    finally:  # also where there is too little to compare
        report.write(summary, samples, folder)
    return summary


def measured(plan: Plan, folder: Path, *, progress: Silent | None = None) -> tuple[Samples, dict[str, Any]]:
    """Run the plan, without a report; see `run`.

    With `Plan.beside`, what is returned is of the first server, at the times of its own turns put together.
    `beside` in the summary is the report of the second.
    """
    bounds = slo.parse(plan.slo) if plan.slo else ()  # errors are told before anything starts
    slo.check(bounds, generates=plan.generates, seconds=plan.seconds if plan.arrival else None)
    if plan.beside:
        _check_turns(plan)
    workloads.requests(plan.workload, generates=plan.generates)
    due = plan.due if plan.arrival else None
    _make(folder)
    meter, before = Meter(), queueing.statistics(plan.grpc_url, plan.http_url)
    log = folder / "locust.log"
    with tempfile.TemporaryDirectory() as scratch:
        code = _locust(plan, Path(scratch), log, progress or Silent(), meter)
        written = [json.loads(file.read_text()) for file in sorted(Path(scratch).glob("*.json"))]
    if not written:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        raise ShoalError(f"Locust ended with exit code {code} and no samples:\n{tail}")
    joules, after = meter.joules(), queueing.statistics(plan.grpc_url, plan.http_url)
    rows: list[Row] = [row for process in written for row in process["rows"]]
    if not rows:
        raise ShoalError(f"no request was made in {plan.seconds} s", hint=f"see {log}")
    expected = None if due is None else len(due) * (2 if plan.beside else 1)
    if expected is not None and len(rows) != expected:
        raise ShoalError(
            f"{expected - len(rows)} of {expected} requests left no record: a process that sends ended early",
            hint=f"see {log}",
        )
    rows, theirs = (rows, []) if due is None or not plan.beside else _apart(rows, due, plan.turn)
    samples = Samples.from_rows(rows)
    about, least = asdict(plan), float(plan.seconds) if plan.arrival in arrivals.KINDS else 0.0
    served = about.pop("served")
    summary = {"plan": about, "served": served, "machine": machine.describe(), **samples.summary(least)}
    summary["queueing"] = queueing.between(before, after, plan.model)  # of all callers in this time
    # Of the whole machine: the processes that send, and not those of a second server.
    summary["joules"] = None if plan.beside else joules
    if plan.generates:
        summary["streams"] = samples.streams(least)
    if plan.arrival:
        summary["client"] = _client(samples, [process["sender"] for process in written])
    if theirs:
        second = Samples.from_rows(theirs)
        shared = {key: summary[key] for key in ("plan", "machine")}
        client = _client(second, [process["sender"] for process in written])
        summary["beside"] = {
            **shared,
            "client": client,
            **second.summary(least),
            "requests": second.columns(),
        }
    if bounds:
        steady = not plan.arrival or samples.steady(plan.seconds)
        summary["slo"] = slo.judged(bounds, samples.metrics(generates=plan.generates), steady=steady)
        summary["slo"]["alone"] = bool(plan.arrival) and samples.alone(plan.seconds)
        summary["slo"]["enough"] = len(samples) >= slo.least_requests(bounds)
    return samples, summary


def _check_turns(plan: Plan) -> None:
    least = comparing.LEAST_BLOCKS * plan.turn
    if plan.seconds < least:
        raise UsageError(
            f"--beside needs {least:g} --seconds at least: each server has turns of {plan.turn:g} s"
        )
    if plan.slo:
        raise UsageError(
            "--slo does not go with --beside: a server that rests while the other is asked keeps more",
            hint="test each by itself",
        )


def _apart(rows: Sequence[Row], due: NDArray[np.float64], turn: float) -> tuple[list[Row], list[Row]]:
    """Rows of two servers that were asked in turn, numbered and timed as if each had been asked alone."""
    sides: tuple[list[Row], list[Row]] = ([], [])
    shifts = [arrivals.in_turn(due, side, turn) for side in (0, 1)]
    for ended, protocol, latency, failure, size, index, *more in rows:
        side, place = divmod(index, len(due))
        sides[side].append((ended - shifts[side][place], protocol, latency, failure, size, place, *more))
    return sides


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "locust.log", "")
    except OSError as error:
        raise ShoalError(
            f"{folder} cannot be written: {error.strerror}", hint="choose another --report"
        ) from error


def _client(samples: Samples, senders: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Whether the processes that send kept up; else their own time is in the figures."""
    cpu = [sender["cpu_seconds"] / sender["seconds"] for sender in senders if sender]
    busy = max(cpu, default=0.0) > MOST_CPU
    lag = slo.percentile(samples.lag, 99)  # those that were never sent have none
    latency = samples.latency[samples.succeeded]
    usual = slo.percentile(latency, 50)
    return {
        "processes": len(cpu),
        "cpu": max(cpu, default=0.0),
        "lag_ms_p99": lag,
        "busy": busy,
        "limited": busy or lag > max(MOST_LAG_MS, MOST_LAG_SHARE * usual),
    }


def _locust(plan: Plan, recorded: Path, log: Path, progress: Silent, meter: Meter) -> int:
    if plan.arrival:
        said = f"{plan.rate:.4g} requests/s" if plan.rate else f"the requests of {plan.arrival}"
    else:
        said = f"{plan.users} users"
    said += f", in turn with {plan.beside}," if plan.beside else ""
    title = f"Load {plan.model} with {said} for {plan.lasts} s"
    with ExitStack() as stack, progress.step(title, total=plan.lasts * 4) as advance:
        output = stack.enter_context(log.open("wb"))
        processes = [_started(command, output) for command in _commands(plan, recorded)]
        stack.callback(_end, processes)
        deadline = time.monotonic() + CONNECT_SECONDS + plan.lasts + plan.grace + STRAGGLERS_SECONDS + 60
        while processes[0].poll() is None and time.monotonic() < deadline:
            time.sleep(0.25)
            advance()
            meter.tick()
    return processes[0].returncode


def _commands(plan: Plan, recorded: Path) -> list[list[str]]:
    """Of the process that leads, and of those that send for it."""
    about = [
        *("--model", plan.model, "--grpc-url", plan.grpc_url, "--http-url", plan.http_url),
        *("--samples", str(recorded), "--workload", plan.workload),
        *("--deadline", str(plan.deadline)),
    ]
    headless = ["--headless", "--only-summary", "--exit-code-on-error", "0"]
    if not plan.arrival:
        file, kind = ("locustfile_chat.py", "Chat") if plan.generates else ("locustfile.py", "Row")
        return [
            [
                *_python(file),
                *headless,
                *("--users", str(plan.users), "--spawn-rate", str(plan.users)),
                *("--lasts", str(plan.seconds), "--run-time", f"{plan.seconds + CONNECT_SECONDS}s"),
                *("--stop-timeout", str(STRAGGLERS_SECONDS)),
                *about,
                *(f"{protocol}{kind}User" for protocol in _USERS[plan.protocol]),
            ]
        ]
    count = plan.processes
    begins = START_SECONDS if count > 1 else 0.0
    about += [
        *("--begins-at", str(time.time() + begins if begins else 0.0)),
        *("--arrival", plan.arrival, "--seconds", str(plan.seconds), "--grace", str(plan.grace)),
        *(("--rate", str(plan.rate)) if plan.rate is not None else ()),
        *("--processes-in-all", str(count), "--seed", str(plan.seed)),
        *(("--generates",) if plan.generates else ()),
        *(("--beside", plan.beside, "--turn", str(plan.turn)) if plan.beside else ()),
    ]
    leads = [
        *_python("locustfile_open.py"),
        *headless,
        *("--users", str(count), "--spawn-rate", str(count)),
        *(
            "--run-time",
            f"{begins + plan.lasts + plan.grace + 2:.0f}s",
            "--stop-timeout",
            str(STRAGGLERS_SECONDS),
        ),
    ]
    user = f"{plan.protocol.capitalize()}OpenLoop"
    if count == 1:
        return [[*leads, *about, user]]
    port = str(free_port())
    leads += ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port]
    leads += ["--expect-workers", str(count), "--expect-workers-max-wait", "60"]
    sends = [*_python("locustfile_open.py"), "--worker", "--master-host", "127.0.0.1", "--master-port", port]
    return [[*leads, *about, user], *([[*sends, *about, user]] * count)]


def _python(file: str) -> list[str]:
    return [sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name(file))]


def _started(command: Sequence[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Those that send end with the one that leads, and then still write what they saw."""
    for process in processes:
        try:
            process.wait(timeout=WRITING_SECONDS if processes[0].poll() is not None else 0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def as_table(summary: dict[str, Any]) -> Table:
    """The short table for a terminal."""
    columns = ["", "#requests", "#failed", "#per second", "#p50 ms", "#p95 ms", "#p99 ms", "#max ms"]
    made = show.table(f"load on {summary['plan']['model']}", columns)
    for name, row in report.rows(summary).items():
        made.add_row(
            name,
            str(row["requests"]),
            f"[red]{row['failures']}[/]" if row["failures"] else "0",
            f"{row['per_second']:.1f}",
            *(f"{row[key]:.1f}" if row[key] is not None else "-" for key in ("p50", "p95", "p99", "max")),
        )
    for name, row in summary.get("streams", {}).get("parts", {}).items():
        figures = (f"{row[key]:.1f}" for key in ("p50", "p95", "p99", "max"))
        made.add_row(name, str(row["requests"]), "", "", *figures)
    return made
