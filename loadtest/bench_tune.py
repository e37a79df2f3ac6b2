"""`make bench-tune`: whether `shoal tune` and `shoal loadtest --beside` find what is there.

All is measured on a real service of a real model:

    grid     the highest rate of every setting of a model within a promise, once; `--without` says which
             values stay out
    search   five searches with a tenth of that time as their budget; then what each chose and the best of
             the grid are measured again, in turn and by tests of twice the length
    same     twenty searches among settings that are equal
    planted  ten times two comparisons of two servers, as by `shoal loadtest --beside`: of what is served
             and the same, and of what is served and the same with a delay of a tenth of the median latency
             in front of the network

Each part keeps its figures in `reports/bench-tune` as it goes; a grid that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from loadtest import comparing, headless
from loadtest.neighbours import watched
from loadtest.tuning.bench import Bench
from loadtest.tuning.found import Found
from loadtest.tuning.search import Search
from loadtest.tuning.space import Knob, Setting, Space, space_of
from shoal import machine, show
from shoal.errors import ShoalError
from shoal.manifest import manifests, served_manifests
from shoal.paths import write_json

DELAY = "waits for others, us"
SHARE = 0.1  # of the grid's time that a search has
USUALLY_OUT = ["run tokens=512", "waits for others, us=5000", "tokenizer instances=4"]
FACTOR = 1.1  # from a neighbour's rate to the next one that is tried
AGAIN = 3  # how often the picks are measured at the end
err, out = Console(stderr=True), Console(width=120)


def main() -> None:
    """Measure, print tables, keep JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts: dict[str, Callable[[argparse.Namespace, Space, headless.Plan], None]]
    parts = {"grid": grid, "search": searches, "same": same, "planted": planted}
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts)}; default: all")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--slo", default="p95=60ms")
    parser.add_argument("--workload", default="short")
    parser.add_argument("--seconds", type=int, default=4, help="of a test")
    parser.add_argument(
        "--without",
        nargs="*",
        default=USUALLY_OUT,
        help="values that stay out",
    )
    parser.add_argument("--seeds", type=int, default=5, help="searches")
    parser.add_argument("--searches", type=int, default=20, help="among equal settings")
    parser.add_argument("--budget", type=float, default=75, help="seconds of each of those")
    parser.add_argument("--pairs", type=int, default=10, help="comparisons of each kind")
    parser.add_argument("--rate", type=float, default=40, help="of the tests that are compared")
    parser.add_argument("--pair-seconds", type=int, default=30, help="of each of their servers")
    parser.add_argument("--folder", type=Path, default=Path("reports/bench-tune"))
    options = parser.parse_args()
    if unknown := set(options.parts) - set(parts):
        parser.error(f"there is no part {', '.join(unknown)}")
    served = next(served_manifests(options.repository, options.model), None)
    if served is None:
        sys.exit(f"{options.repository} serves no version of {options.model}")
    proven = [each for each in manifests(options.repository, options.model) if each.evidence.get("proven")]
    space = _without(space_of(options.model, served, proven), options.without)
    plan = headless.Plan(options.model, 0, options.seconds, "grpc", "-", "-", workload=options.workload)
    plan = replace(plan, arrival="poisson", slo=options.slo)
    options.folder.mkdir(parents=True, exist_ok=True)
    out.print(machine.name())
    for part in options.parts or parts:
        with watched(err):
            parts[part](options, _alike(space) if part == "same" else space, plan)


def grid(options: argparse.Namespace, space: Space, plan: headless.Plan) -> None:
    """The rate of every setting, in a file that grows."""
    about = {"model": plan.model, "slo": plan.slo, "workload": plan.workload, "seconds": plan.seconds}
    kept = _read(options, "grid") if (options.folder / "grid.json").exists() else {}
    if kept and any(kept.get(name, value) != value for name, value in about.items()):
        sys.exit(f"{options.folder / 'grid.json'} is of another grid: remove it, or choose another --folder")
    done: list[dict[str, Any]] = kept.get("settings", [])
    known = [row["setting"] for row in done]
    names = [knob.name for knob in space.knobs]
    with Bench(options.repository, space, plan, options.folder) as bench:
        guess = next((row["rate"] for row in reversed(done) if row["rate"]), None) or bench.guess()
        for values in itertools.product(*(knob.values for knob in space.knobs)):
            setting = dict(zip(names, values, strict=True))
            if setting in known:
                continue
            began, rate = time.monotonic(), 0.0
            search = _search(options, space, bench)  # so that each setting gets the same requests
            try:
                rate = guess = search.highest(setting, guess, FACTOR)
            except ShoalError as error:
                err.print(f"{space.text(setting)}: {error.message}", highlight=False)
            done.append({"setting": setting, "rate": rate, "seconds": time.monotonic() - began})
            err.print(f"{len(done)} of {space.size}: {space.text(setting)}: {rate:.1f}", highlight=False)
            _keep(options, "grid", {**about, "settings": done})
    seconds = sum(row["seconds"] for row in done)
    best = max(done, key=lambda row: row["rate"])
    out.print(f"{len(done)} settings in {seconds / 60:.0f} minutes; the best, {space.text(best['setting'])}:")
    out.print(f"{best['rate']:.1f} requests/s; served now: {_of(done, space.default):.1f}")


def searches(options: argparse.Namespace, space: Space, plan: headless.Plan) -> None:
    """What searches with a tenth of the grid's time choose, and how near the best that is."""
    done = _read(options, "grid")["settings"]
    if len(done) != space.size:
        sys.exit(f"the grid has {len(done)} of {space.size} settings: run its part first")
    budget = SHARE * sum(row["seconds"] for row in done)
    picks: list[Setting] = []
    took: list[float] = []
    for seed in range(options.seeds):
        began = time.monotonic()
        found = _found(options, space, plan, budget, seed)
        picks.append(found.winner or space.default)
        took.append(time.monotonic() - began)
        told = f"{space.text(picks[-1])}, {_of(done, picks[-1]):.1f} in the grid"
        err.print(f"seed {seed}, {took[-1]:.0f} s: {told}", highlight=False)
        _keep(options, "search", {"budget": budget, "seconds": took, "picks": picks})
    ranked = sorted(done, key=lambda row: -row["rate"])
    compared = [row["setting"] for row in ranked[:3]] + [*picks, space.default]
    compared = [setting for place, setting in enumerate(compared) if setting not in compared[:place]]
    rates: list[list[float]] = [[] for _ in compared]
    longer = replace(plan, seconds=2 * plan.seconds)
    with Bench(options.repository, space, longer, options.folder) as bench:
        for turn in range(AGAIN):  # in turn, for the machine's speed changes
            for place in range(len(compared))[:: 1 if turn % 2 == 0 else -1]:
                guess = rates[place][0] if rates[place] else _of(done, compared[place])
                search = _search(options, space, bench)
                rates[place].append(search.highest(compared[place], guess, FACTOR))
    medians = [statistics.median(each) for each in rates]
    table = show.table(
        f"{len(done)} settings, searches of {min(took):.0f} to {max(took):.0f} s, requests/s at {plan.slo}",
        ["setting", "#in the grid", "#again, median", "#of the best", "chosen by"],
    )
    for setting, median in zip(compared, medians, strict=True):
        seeds = [str(seed) for seed, pick in enumerate(picks) if pick == setting]
        share = f"{median / max(medians):.0%}"
        cells = (f"{_of(done, setting):.1f}", f"{median:.1f}", share, ", ".join(seeds))
        table.add_row(space.text(setting), *cells)
    out.print(table)
    found_at_last = {"budget": budget, "seconds": took, "picks": picks, "settings": compared, "rates": rates}
    _keep(options, "search", found_at_last)


def same(options: argparse.Namespace, space: Space, plan: headless.Plan) -> None:
    """Searches among settings that are equal: every one that is called better is wrong."""
    rows: list[dict[str, Any]] = []
    better = 0
    for seed in range(options.searches):
        try:
            found = _found(options, space, plan, options.budget, seed)
        except ShoalError as error:  # the machine was slow, and its budget over before a setting was tried
            rows.append({"error": error.message, "better": False})
        else:
            better += found.winner is not None
            row = {"same": found.same, "tried": len(found.tried), "confirmed": found.confirmed}
            rows.append({**row, "better": found.winner is not None})
        err.print(f"search {seed}: {rows[-1]}", highlight=False)
        _keep(options, "same", {"searches": rows})
    out.print(f"of {len(rows)} searches among equal settings {better} said that one is better")


def planted(options: argparse.Namespace, space: Space, plan: headless.Plan) -> None:
    """How often a delay of a tenth of the median latency is called slower, and how often nothing is."""
    plan = replace(plan, rate=options.rate, seconds=options.pair_seconds, slo="")

    def compared(setting: Setting, number: int) -> dict[str, Any]:
        """A setting and what is served, by two servers that are started for it."""
        with (
            Bench(options.repository, space, plan, options.folder) as here,
            Bench(options.repository, space, plan, options.folder) as there,
        ):
            # The one that was started first may have the better memory, so each is that one in turn.
            first, second = (here, there) if number % 2 == 0 else (there, here)
            first.address(setting if first is here else space.default)
            second.address(setting if second is here else space.default)
            plan_of_two = replace(plan, beside=there.address(space.default), seed=number)
            samples, summary = here.test(setting, plan_of_two)
        report = {**summary, "requests": samples.columns()}
        turns = plan_of_two.due // plan_of_two.turn
        return comparing.compare(summary["beside"], report, 0.05, turns)

    with Bench(options.repository, space, plan, options.folder) as bench:
        usual = bench.test(space.default, plan)[1]["total"]["p50"]
    waits = space.default[DELAY] if isinstance(space.default[DELAY], int) else 0
    late = {**space.default, DELAY: waits + round(100 * usual)}
    rows = []
    for number in range(options.pairs):
        told = {"nothing": compared(space.default, number), "a delay": compared(late, number)}
        row = {
            name: {key: result["metrics"][0][key] for key in ("ratio", "interval", "verdict")}
            | {"regression": result["regression"]}
            for name, result in told.items()
        }
        rows.append(row)
        err.print(f"pair {number}: {row}", highlight=False)
        _keep(options, "planted", {"median_ms": usual, "delay_us": late[DELAY], "pairs": rows})
    for name in ("nothing", "a delay"):
        ratios = [row[name]["ratio"] for row in rows]
        said = sum(row[name]["regression"] for row in rows)
        told_ratios = f"ratios {min(ratios):.3f} to {max(ratios):.3f}"
        out.print(f"planted {name}: {said} of {len(rows)} comparisons say regression, {told_ratios}")


def _without(space: Space, left_out: Sequence[str]) -> Space:
    """The space without values that are written as `knob=value`."""

    known = {f"{knob.name}={value}" for knob in space.knobs for value in knob.values}
    if unknown := [each for each in left_out if each not in known and each not in USUALLY_OUT]:
        sys.exit(f"--without {unknown[0]!r} is no value of a knob; known: {', '.join(sorted(known))}")

    def rest(knob: Knob) -> Knob:
        return replace(knob, values=tuple(v for v in knob.values if f"{knob.name}={v}" not in left_out))

    return replace(space, knobs=tuple(rest(knob) for knob in space.knobs))


def _alike(space: Space) -> Space:
    """Nine settings that are all what is served now."""

    def nothing(config: Any, value: Any) -> None:
        """Leave the config as it is."""

    names = ("one thing", "another thing")
    return replace(space, knobs=tuple(Knob(name, "", (0, 1, 2), 0, nothing) for name in names))


def _found(options: argparse.Namespace, space: Space, plan: headless.Plan, budget: float, seed: int) -> Found:
    with Bench(options.repository, space, plan, options.folder) as bench:
        return _search(options, space, bench, budget, seed).run(bench.queues)


def _search(
    options: argparse.Namespace, space: Space, bench: Bench, budget: float = 0.0, seed: int = 0
) -> Search:
    journal = options.folder / "journal.json"
    journal.unlink(missing_ok=True)
    say = (lambda line: err.print(f"  {line}", highlight=False)) if budget else (lambda line: None)
    return Search(space, bench.measure, budget, journal, seed=seed, say=say, guess=bench.guess)


def _read(options: argparse.Namespace, part: str) -> dict[str, Any]:
    return dict(json.loads((options.folder / f"{part}.json").read_text()))


def _keep(options: argparse.Namespace, part: str, found: dict[str, Any]) -> None:
    write_json(options.folder / f"{part}.json", {"machine": machine.describe(), **found})


def _of(done: list[dict[str, Any]], setting: Setting) -> float:
    return next(float(row["rate"]) for row in done if row["setting"] == setting)


if __name__ == "__main__":
    main()
