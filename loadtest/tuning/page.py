"""`tune.html` for people, one file without scripts or links, and `tune.json` for machines."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from rich.markup import escape
from rich.table import Table

from loadtest.pages import COLORS, GRID, MUTED, draw, render
from loadtest.tuning.found import Found, Tried
from loadtest.tuning.space import VERSION, Space
from shoal import show
from shoal.paths import write_atomic, write_json

_LEAST_FOR_IMPORTANCE = 6
_SHOWN = 8


def summary(space: Space, found: Found, about: dict[str, Any]) -> dict[str, Any]:
    """What `tune.json` holds.

    Args:
        about: of the search: `model`, `slo`, `workload`, `seconds` of a test, `budget`, `machine`.
    """
    return {
        **about,
        "knobs": [
            {"name": knob.name, "model": knob.model, "values": knob.values, "served_now": knob.default}
            for knob in space.knobs
        ],
        **found.to_dict(),
        "noise": found.noise,
        "rate": found.rate,
        "better": found.rate / found.base,
        "best_single_test": max([found.base, *(tried.rate or 0.0 for tried in found.tried if tried.kept)]),
        "says": space.text(found.winner) if found.winner else "no difference",
        "importance": importance(space, found),
    }


def in_flight(test: dict[str, Any]) -> float:
    """Requests under way at once in a test, by Little's law: a scaler's goal for one replica is below it."""
    return float(test["total"]["per_second"] * test["total"]["mean"] / 1e3)


def importance(space: Space, found: Found) -> dict[str, float]:
    """How much of the differences between rates each knob explains; empty where too few settings were tried.

    The method is PED-ANOVA (S. Watanabe et al., IJCAI 2023). The rate of a setting that missed the promise is
    an estimate, so this is one, too.
    """
    rated = [tried for tried in found.tried if tried.rate is not None]
    if len(rated) < _LEAST_FOR_IMPORTANCE:
        return {}
    study = optuna.create_study(direction="maximize")
    spread: dict[str, Any] = {
        knob.name: optuna.distributions.CategoricalDistribution(knob.values) for knob in space.knobs
    }
    for setting, rate in [(space.default, found.base), *((tried.setting, tried.rate) for tried in rated)]:
        study.add_trial(optuna.trial.create_trial(params=setting, distributions=spread, value=rate))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            return {
                name: float(value)
                for name, value in optuna.importance.get_param_importances(study, evaluator=evaluator).items()
            }
    except (ValueError, RuntimeError):  # all rates are alike
        return {}


def write(space: Space, found: Found, told: dict[str, Any], folder: Path) -> None:
    """Write both files.

    Args:
        told: of `summary`.
        folder: must exist.
    """
    pictures = [
        ("Rate and accuracy", draw(lambda axes: _pareto(axes, space, found))),
        ("Settings", draw(lambda axes: _parallel(axes, space, found))),
    ]
    if told["importance"]:
        pictures.append(
            ("What the rate depends on, estimated", draw(lambda axes: _importance(axes, told["importance"])))
        )
    html = render(
        "tune.html",
        told=told,
        pictures=pictures,
        rows=[(space.text(tried.setting), rate_of(tried), tried) for tried in _best(found)],
    )
    write_json(folder / "tune.json", told)
    write_atomic(folder / "tune.html", html)


def as_table(space: Space, found: Found) -> Table:
    """The best settings, for a terminal."""
    made = show.table("within the promise", ["setting", "#requests/s", "#tests", ""], wraps=["setting"])
    again = " and ".join(f"{rate:.1f}" for rate in found.same)
    made.add_row(space.text(space.default), again, "", "served now, each time")
    for tried in _best(found):
        mark = "[green]wins[/]" if tried.setting == found.winner else escape(tried.error)
        made.add_row(space.text(tried.setting), rate_of(tried), str(tried.tests), mark)
    return made


def rate_of(tried: Tried) -> str:
    """The rate at which a setting kept the promise, or below which it is."""
    if tried.kept:
        return f"{tried.rate:.1f}"
    return f"< {tried.asked:.1f}" if tried.asked is not None else "-"


def _best(found: Found) -> list[Any]:
    order = sorted(found.tried, key=lambda tried: (tried.kept, tried.rate or 0.0), reverse=True)
    return order[:_SHOWN]


def _accuracy(space: Space, version: int) -> tuple[str, float] | None:
    evidence = space.manifests[version].evidence
    for name in ("min_cosine", "perplexity", "agreement"):
        if isinstance(evidence.get(name), (int, float)):
            return name.replace("_", " "), float(evidence[name])
    return None


def _pareto(axes: Any, space: Space, found: Found) -> None:
    """Each version's accuracy, and the rates of its settings."""
    rows = [(space.default, found.base, True), *((t.setting, t.rate, t.kept) for t in found.tried)]
    name = ""
    for setting, rate, kept in rows:
        accuracy = _accuracy(space, setting.get(VERSION, space.served))
        if rate is None or accuracy is None:
            continue
        name = accuracy[0]
        axes.plot(rate, accuracy[1], "o", color=COLORS["grpc"] if kept else GRID, markersize=5)
    axes.axvline(found.base, color=MUTED, linewidth=1, linestyle="--")
    axes.set(xlabel="requests per second within the promise (grey: less than was asked)", ylabel=name)


def _parallel(axes: Any, space: Space, found: Found) -> None:
    """A line for each setting through its values, the darker the higher its rate."""
    knobs = space.knobs
    places = np.arange(len(knobs))
    rates = [tried.rate for tried in found.tried if tried.rate] + [found.base]
    low, high = min(rates), max(rates)
    rows = [(tried.setting, tried.rate or low) for tried in found.tried] + [(space.default, found.base)]
    for setting, rate in sorted(rows, key=lambda row: row[1]):
        heights = [knob.values.index(setting[knob.name]) / max(1, len(knob.values) - 1) for knob in knobs]
        share = (rate - low) / (high - low) if high > low else 1.0
        axes.plot(places, heights, color=COLORS["grpc"], alpha=0.1 + 0.9 * share**2, linewidth=1 + share)
    for place, knob in zip(places, knobs, strict=True):
        for index, value in enumerate(knob.values):
            height = index / max(1, len(knob.values) - 1)
            axes.text(place, height, f" {value}", fontsize=8, color=MUTED, va="bottom")
    axes.set_xticks(places, [knob.name for knob in knobs], fontsize=8)
    axes.set_yticks([])
    axes.margins(x=0.12, y=0.15)


def _importance(axes: Any, values: dict[str, float]) -> None:
    names = list(values)[::-1]
    axes.barh(names, [100 * values[name] for name in names], color=COLORS["http"], height=0.6)
    axes.set(xlabel="% of what is explained")
