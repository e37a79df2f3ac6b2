"""`make bench-load`: is `shoal loadtest` right? The same rate, asked by it and by NVIDIA's Perf Analyzer.

Both send the same texts to the same server over gRPC, at random times with the same rate, in turn. Perf
Analyzer counts latency from when it sent a request, and ours from when the request was due, so ours cannot
be lower where the sender is late; at rates that both can send they agree.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from loadtest import headless, workloads
from loadtest.neighbours import watched
from loadtest.peers.environment import python_of
from loadtest.peers.server import ROOT
from serving import embedded
from shoal import dialect, machine, show

OURS, THEIRS = "shoal loadtest", "Perf Analyzer"
FIGURES = ("p50", "p95", "p99")
err, out = Console(stderr=True), Console(width=120)


def main() -> None:
    """Measure, print a table, and JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--model", default="minilm", help="it takes one text a request")
    parser.add_argument("--workload", default="short")
    parser.add_argument("--rates", type=float, nargs="+", default=[10, 20, 40])
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--blocks", type=int, default=3)
    options = parser.parse_args()
    python = python_of("model_analyzer")
    if python is None:
        sys.exit("the environment of Perf Analyzer cannot be made")
    found: dict[float, dict[str, list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as scratch, embedded.running(options.repository) as server:
        folder = Path(scratch)
        inputs = folder / "inputs.json"
        texts = [request["text"] for request in workloads.requests(options.workload, generates=False)]
        inputs.write_text(json.dumps({"data": [{dialect.TEXT: [text]} for text in texts]}))
        with watched(err):
            for block in range(options.blocks + 1):
                for rate in options.rates:
                    plan = headless.Plan(options.model, 0, options.seconds, "grpc", server.grpc, "-")
                    ours = ours_of(plan, options.workload, rate, block, folder)
                    theirs = perf_analyzer(python, plan, rate, inputs, folder)
                    if block:  # the first warms up
                        rows = found.setdefault(rate, {OURS: [], THEIRS: []})
                        rows[OURS].append(ours)
                        rows[THEIRS].append(theirs)
    out.print(machine.name(), highlight=False)
    out.print(_table(found))
    print(json.dumps({"machine": machine.describe(), "found": found}))


def ours_of(plan: headless.Plan, workload: str, rate: float, seed: int, folder: Path) -> dict[str, float]:
    """Percentiles in ms, of `shoal loadtest`."""
    asked = replace(plan, workload=workload, rate=rate, arrival="poisson", seed=seed)
    _, summary = headless.measured(asked, folder)
    return {"rate": float(summary["total"]["per_second"])} | {
        name: float(summary["total"][name]) for name in FIGURES
    }


def perf_analyzer(
    python: Path, plan: headless.Plan, rate: float, inputs: Path, folder: Path
) -> dict[str, float]:
    """The same of Perf Analyzer, in three windows that take as long together."""
    table = folder / "perf.csv"
    command: Sequence[str] = [
        *(str(python), "-m", "loadtest.peers.run_perf_analyzer", "-m", plan.model, "-u", plan.grpc_url),
        *("-i", "grpc", "--async", "--input-data", str(inputs), "-f", str(table)),
        *("--request-rate-range", str(rate), "--request-distribution", "poisson"),
        # It puts its last three windows together, and 999 % lets it stop after them.
        *("--measurement-interval", str(1000 * plan.seconds // 3), "--max-trials", "5"),
        *("--stability-percentage", "999"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if not table.exists():
        sys.exit(f"Perf Analyzer failed: {(done.stderr or done.stdout).strip()[-500:]}")
    with table.open() as file:
        (row,) = csv.DictReader(file)
    table.unlink()
    return {"rate": float(row["Inferences/Second"])} | {
        name: float(row[f"{name} latency"]) / 1e3 for name in FIGURES
    }


def _table(found: dict[float, dict[str, list[dict[str, float]]]]) -> Any:
    columns = ["#asked for a second", "by", "#answered a second", *(f"#{name} ms" for name in FIGURES)]
    made = show.table("medians (ranges) of blocks", columns)
    for rate, ways in found.items():
        for name, blocks in ways.items():
            cells = [_range([block[figure] for block in blocks]) for figure in ("rate", *FIGURES)]
            made.add_row(f"{rate:g}", name, *cells)
    return made


def _range(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


if __name__ == "__main__":
    main()
