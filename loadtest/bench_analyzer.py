"""`make bench-analyzer`: what `shoal tune` picks beside what NVIDIA's Model Analyzer picks.

Model Analyzer searches an ensemble by its quick mode, with Perf Analyzer, within the same bound of the same
percentile. Its rates are of a closed loop, so what it picked is measured again by open loops, in turn with
what is served now and with what `shoal tune` found (`--tuned`, the folder of its report): the highest rate
within the bound, on the same requests at the same times, for several lists of requests.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from loadtest import headless, workloads
from loadtest.neighbours import watched
from loadtest.peers.environment import python_of
from loadtest.peers.server import ROOT
from loadtest.slo import parse
from loadtest.tuning.bench import Bench, lay_out, scratch_beside
from loadtest.tuning.found import Judged
from loadtest.tuning.search import Search
from loadtest.tuning.space import Setting, Space, space_of
from serving import embedded
from serving.distribution import Embedded
from shoal import dialect, machine, model_config, show
from shoal.manifest import manifests, served_manifests
from shoal.paths import write_json

NOW, TUNED, ANALYZER = "served now", "shoal tune", "Model Analyzer"
NEAR = 1.1  # to the next rate
err, out = Console(stderr=True), Console(width=120)


def main() -> None:
    """Measure, print a table, and keep JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--model", default="minilm", help="an ensemble that takes one text a request")
    parser.add_argument("--slo", default="p95=60ms", help="one bound, of the whole answer")
    parser.add_argument("--workload", default="short")
    parser.add_argument("--seconds", type=int, default=6, help="of a test")
    parser.add_argument("--lists", type=int, default=3, help="of requests, which all get")
    parser.add_argument("--tuned", type=Path, default=Path("reports/tune-minilm"))
    parser.add_argument("--folder", type=Path, default=Path("reports/bench-analyzer"))
    options = parser.parse_args()
    served = next(served_manifests(options.repository, options.model))
    space = space_of(options.model, served, list(manifests(options.repository, options.model)))
    plan = headless.Plan(options.model, 0, options.seconds, "grpc", "-", "-", workload=options.workload)
    plan = replace(plan, arrival="poisson", slo=options.slo)
    options.folder.mkdir(parents=True, exist_ok=True)
    picked = searched(options, space, plan)
    told = json.loads((options.tuned / "tune.json").read_text())
    settings = {NOW: space.default, TUNED: told["winner"] or space.default}
    rates: dict[str, list[float]] = {NOW: [], TUNED: [], ANALYZER: []}
    with (
        watched(err),
        Bench(options.repository, space, plan, options.folder) as bench,
        _served(options.folder / "output", picked["model"], options.repository) as server,
    ):
        for number in range(options.lists):
            for way in list(rates)[:: 1 if number % 2 == 0 else -1]:
                guess = rates[way][0] if rates[way] else told["same"][0]
                if way == ANALYZER:
                    there = replace(plan, grpc_url=server.grpc, model=picked["model"])
                    rates[way].append(_highest(space, there, guess, number, options.folder))
                else:
                    search = Search(space, bench.measure, 0, options.folder / "journal.json", seed=number)
                    rates[way].append(search.highest(settings[way], guess, NEAR))
                err.print(f"list {number}: {way}: {rates[way][-1]:.1f} requests/s", highlight=False)
    table = show.table(f"{options.slo}, requests/s: median (range)", ["", "#requests/s", "#of served now"])
    base = statistics.median(rates[NOW])
    for way, found in rates.items():
        median = statistics.median(found)
        table.add_row(way, f"{median:.1f} ({min(found):.1f}-{max(found):.1f})", f"{median / base:.0%}")
    out.print(machine.name(), highlight=False)
    out.print(table)
    out.print(f"Model Analyzer: {picked['says']}", highlight=False)
    out.print(f"shoal tune: {told['says']}", highlight=False)
    result = {"machine": machine.describe(), "rates": rates, "picked": picked, "tuned": settings[TUNED]}
    write_json(options.folder / "analyzer.json", result)


def searched(options: argparse.Namespace, space: Space, plan: headless.Plan) -> dict[str, Any]:
    """Model Analyzer's pick: the name of its ensemble in its output, and what it says of it."""
    file = options.folder / "picked.json"
    if file.exists():
        return dict(json.loads(file.read_text()))
    python = python_of("model_analyzer")
    if python is None:
        sys.exit("the environment of Model Analyzer cannot be made")
    (bound,) = parse(plan.slo)
    inputs = options.folder / "inputs.json"
    texts = [request["text"] for request in workloads.requests(plan.workload, generates=False)]
    inputs.write_text(json.dumps({"data": [{dialect.TEXT: [text]} for text in texts]}))
    parts = space.manifests[space.served].configs
    with scratch_beside(options.repository.resolve()) as scratch:
        repository = _as_served(options.repository.resolve(), space, scratch)
        command = [
            *(str(python), "-m", "loadtest.peers.run_model_analyzer"),
            *("--repository", str(repository), "--server", str(_server(scratch))),
            *("--model", plan.model, "--parts", *(name for name in parts if name != plan.model)),
            *("--percentile", f"p{bound.percentile:g}", "--milliseconds", f"{bound.milliseconds:.0f}"),
            *("--inputs", str(inputs), "--folder", str(options.folder)),
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit("Model Analyzer failed, as told above")
    rows = json.loads(done.stdout.strip().splitlines()[-1])["rows"]
    if not rows:
        sys.exit("Model Analyzer found nothing within the bound")
    write_json(file, rows[0])
    return dict(rows[0])


def _as_served(repository: Path, space: Space, scratch: Path) -> Path:
    """What is served now, with the configs as the embedded server reads them."""
    made = lay_out(repository, space, space.default, scratch / "as_served")
    configs = space.configs(space.default)
    for name in configs:
        (made / name / "config.pbtxt").write_text(Embedded.find().shown(name, configs))
    return made


def _server(scratch: Path) -> Path:
    """A program that starts the embedded tritonserver with more arguments."""
    distribution, program = Embedded.find(), scratch / "tritonserver"
    environment = distribution.environment()
    exports = [f"export {name}='{environment[name]}'" for name in ("LD_LIBRARY_PATH", "PATH")]
    command = " ".join(f"'{word}'" for word in distribution.command(scratch))
    program.write_text("\n".join(["#!/bin/sh", *exports, f'exec {command} "$@"']) + "\n")
    program.chmod(0o755)
    return program


@contextmanager
def _served(output: Path, model: str, repository: Path) -> Iterator[embedded.Server]:
    """A server of one ensemble of Model Analyzer's output."""
    config = model_config.parse((output / model / "config.pbtxt").read_text())
    names = [model, *(step.model_name for step in config.ensemble_scheduling.step)]
    with tempfile.TemporaryDirectory(dir=repository.resolve().parent, prefix=".bench-") as scratch:
        made = Path(scratch) / "model_repository"
        for name in names:
            shutil.copytree(output / name, made / name)
            own = model_config.parse((output / name / "config.pbtxt").read_text())
            own.name = name  # it leaves the name of the model that it is a variant of
            (made / name / "config.pbtxt").write_text(model_config.to_text(own))
        with embedded.running(made) as server:
            yield server


def _highest(space: Space, plan: headless.Plan, guess: float, number: int, folder: Path) -> float:
    def measure(setting: Setting, rate: float, which: int) -> Judged:
        _, summary = headless.measured(plan.at(rate, which), folder)
        judged = summary["slo"]
        return Judged(judged["met"], judged["goodput"], {})

    return Search(space, measure, 0, folder / "journal.json", seed=number).highest(space.default, guess, NEAR)


if __name__ == "__main__":
    main()
