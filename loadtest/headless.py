"""Run Locust without its web page, and turn what it saw into a report."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from loadtest import report
from loadtest.samples import STREAM_PARTS, Samples, Streams
from shoal import machine, show
from shoal.errors import ShoalError
from shoal.progress import Silent

PROTOCOLS = ("both", "grpc", "http")
_KINDS = {"both": ("Grpc", "Http"), "grpc": ("Grpc",), "http": ("Http",)}
STRAGGLERS_SECONDS = 30


@dataclass(frozen=True)
class Plan:
    """One load test.

    Attributes:
        model: what is called.
        users: how many at once; with `both`, half of each protocol.
        seconds: how long.
        protocol: one of `PROTOCOLS`.
        grpc_url, http_url: host:port.
        generates: whether the model generates text; then the users chat.
    """

    model: str
    users: int
    seconds: int
    protocol: str
    grpc_url: str
    http_url: str
    generates: bool = False


def run(plan: Plan, folder: Path, *, progress: Silent | None = None) -> dict[str, Any]:
    """Run the plan and write `report.html`, `report.json` and Locust's own log into a folder.

    Returns:
        What `report.json` holds.

    Raises:
        ShoalError: Locust did not run, or no request was made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ShoalError(
            f"{folder} cannot be made: {error.strerror}", hint="choose another --report"
        ) from error
    log = folder / "locust.log"
    with tempfile.TemporaryDirectory() as scratch:
        recorded = Path(scratch) / "samples.json"
        code = _locust(plan, recorded, log, progress or Silent())
        if not recorded.exists():
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
            raise ShoalError(f"Locust ended with exit code {code} and no samples:\n{tail}")
        rows = json.loads(recorded.read_text())
    if not rows:
        raise ShoalError(f"no request was made in {plan.seconds} s", hint=f"see {log}")
    samples = Samples.from_rows([row for row in rows if row[4] not in STREAM_PARTS])
    streams = Streams.from_rows(rows) if plan.generates else None
    summary = {"plan": asdict(plan), "machine": machine.describe(), **samples.summary()}
    if streams is not None:
        summary["streams"] = streams.summary(samples.ended.max())
    report.write(summary, samples, folder, streams)
    return summary


def _locust(plan: Plan, recorded: Path, log: Path, progress: Silent) -> int:
    file, kind = ("locustfile_chat.py", "Chat") if plan.generates else ("locustfile.py", "Row")
    command = [
        *(sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name(file))),
        *("--headless", "--only-summary", "--exit-code-on-error", "0"),
        *("--users", str(plan.users), "--spawn-rate", str(plan.users)),
        *("--run-time", f"{plan.seconds}s", "--stop-timeout", str(STRAGGLERS_SECONDS)),
        *("--model", plan.model, "--grpc-url", plan.grpc_url, "--http-url", plan.http_url),
        *("--samples", str(recorded)),
        *(f"{protocol}{kind}User" for protocol in _KINDS[plan.protocol]),
    ]
    title = f"Load {plan.model} with {plan.users} users for {plan.seconds} s"
    ticks = plan.seconds * 4
    with log.open("wb") as output, progress.step(title, total=ticks) as advance:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + plan.seconds + STRAGGLERS_SECONDS + 60
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.25)
                advance()
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
    return process.returncode


def as_table(summary: dict[str, Any]) -> Table:
    """The short table for a terminal."""
    columns = ["", "#requests", "#failed", "#per second", "#p50 ms", "#p95 ms", "#p99 ms", "#max ms"]
    made = show.table(f"load on {summary['plan']['model']}", columns)
    for name, row in {**summary["protocols"], "total": summary["total"]}.items():
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


def in_tokens(summary: dict[str, Any]) -> str:
    """One line on tokens, of a test of text generation."""
    streams = summary["streams"]
    return f"{streams['tokens']} tokens, {streams['tokens_per_second']:.0f} a second"
