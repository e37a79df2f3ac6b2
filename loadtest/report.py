"""`report.html` for people, one file without scripts or links, and `report.json` for machines.

`report.json` holds the summary, and `requests`: columns of every request, by which two reports are compared.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.notes import notes
from loadtest.pages import COLORS, GRID, MUTED, draw, render
from loadtest.samples import BINS, Samples
from loadtest.slo import percentile
from shoal.paths import write_atomic


def write(summary: dict[str, Any], samples: Samples, folder: Path) -> None:
    """Write both files.

    Args:
        summary: from `headless.run` or `searching.find_max`; shown, and stored.
        folder: must exist.
    """
    pictures = [
        ("Latency over time", draw(lambda axes: _latency(axes, samples))),
        ("Throughput over time", draw(lambda axes: _throughput(axes, samples))),
        ("Latency of all requests", draw(lambda axes: _histogram(axes, samples))),
    ]
    if "streams" in summary:
        pictures += [
            (name.capitalize(), draw(partial(_part, milliseconds=values)))
            for name, values in samples.parts().items()
        ]
        pictures.append(("Tokens over time", draw(lambda axes: _tokens(axes, samples))))
    if summary.get("queueing"):
        pictures.append(("Waiting and running", draw(lambda axes: _queueing(axes, summary["queueing"]))))
    compared = summary.get("compared")
    if compared is not None and compared["metrics"]:
        pictures.append(("Both runs, block by block", draw(lambda axes: _blocks(axes, compared))))
    if trials := summary.get("trials"):
        pictures.insert(0, ("Goodput by rate", draw(lambda axes: _goodput(axes, trials))))
    html = render(
        "report.html",
        summary=summary,
        pictures=pictures,
        rows=rows(summary),
        parts=summary.get("streams", {}).get("parts", {}),
        compared=compared,
        notes=notes(summary),
    )
    document = {**summary, "requests": samples.columns()}
    write_atomic(folder / "report.json", json.dumps(document))  # without a line for each figure
    write_atomic(folder / "report.html", html)


def rows(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Figures by protocol, of all requests, and of the server that was asked in turn, by their names."""
    found = {**summary["protocols"], "total": summary["total"]}
    if other := summary.get("beside"):
        found[f"beside: {summary['plan']['beside']}"] = other["total"]
    return found


def _latency(axes: Any, samples: Samples) -> None:
    series = samples.over_time()
    for name in ("p99", "p95", "p50"):
        axes.plot(series["time"], series[name], color=COLORS[name], label=name)
    axes.set(xlabel="seconds", ylabel="milliseconds", ylim=(0, None), xlim=(0, None))
    axes.legend(ncols=3, loc="upper right")
    axes.margins(y=0.25)


def _throughput(axes: Any, samples: Samples) -> None:
    series = samples.over_time()
    axes.fill_between(series["time"], series["per_second"], color=COLORS["grpc"], alpha=0.18, linewidth=0)
    axes.plot(series["time"], series["per_second"], color=COLORS["grpc"], label="answered")
    if series["failed_per_second"].any():
        axes.plot(series["time"], series["failed_per_second"], color=COLORS["p99"], label="failed")
        axes.legend(loc="upper right")
    axes.set(xlabel="seconds", ylabel="requests per second", ylim=(0, None), xlim=(0, None))


def _histogram(axes: Any, samples: Samples) -> None:
    """Up to the 99.5th percentile: a single straggler would squeeze everything else into one bar."""
    answered = samples.latency[samples.succeeded]
    if not len(answered):
        axes.text(0.5, 0.5, "no request was answered", ha="center", va="center", transform=axes.transAxes)
        return
    edges = np.linspace(0, float(np.percentile(answered, 99.5)) * 1.02, 49)
    protocols = sorted(set(samples.protocol.tolist()))
    axes.hist(
        [samples.latency[samples.succeeded & (samples.protocol == p)] for p in protocols],
        bins=edges,
        stacked=True,
        color=[COLORS[p] for p in protocols],
        label=protocols,
        edgecolor="white",
        linewidth=0.4,
    )
    for name, height in (("p50", 0.97), ("p95", 0.97), ("p99", 0.85)):
        value = percentile(answered, float(name[1:]))
        axes.axvline(value, color=COLORS[name], linestyle="--", linewidth=1.2)
        axes.text(
            value,
            height,
            f" {name} {value:.0f}",
            color=COLORS[name],
            transform=axes.get_xaxis_transform(),
            va="top",
        )
    axes.set(xlabel="milliseconds", ylabel="requests", xlim=(0, edges[-1]))
    axes.legend(loc="center right")


def _part(axes: Any, milliseconds: Any) -> None:
    """How long one part of an answer took, up to the 99.5th percentile."""
    if not len(milliseconds):
        axes.text(0.5, 0.5, "nothing was measured", ha="center", va="center", transform=axes.transAxes)
        return
    edges = np.linspace(0, float(np.percentile(milliseconds, 99.5)) * 1.02 + 1e-9, 49)
    axes.hist(milliseconds, bins=edges, color=COLORS["grpc"], edgecolor="white", linewidth=0.4)
    for name, height in (("p50", 0.97), ("p95", 0.85)):
        value = percentile(milliseconds, float(name[1:]))
        axes.axvline(value, color=COLORS[name], linestyle="--", linewidth=1.2)
        place = axes.get_xaxis_transform()
        axes.text(value, height, f" {name} {value:.0f}", color=COLORS[name], transform=place, va="top")
    axes.set(xlabel="milliseconds", ylabel="answers", xlim=(0, edges[-1]))


def _tokens(axes: Any, samples: Samples) -> None:
    """Tokens per second, each answer's counted where it ended."""
    edges = np.linspace(0, float(samples.ended.max()) + 1e-9, BINS + 1)
    tokens = np.where(samples.succeeded, samples.size, 0)
    rate = np.histogram(samples.ended, bins=edges, weights=tokens)[0] / edges[1]
    middle = (edges[:-1] + edges[1:]) / 2
    axes.fill_between(middle, rate, color=COLORS["http"], alpha=0.18, linewidth=0)
    axes.plot(middle, rate, color=COLORS["http"])
    axes.set(xlabel="seconds", ylabel="tokens per second", ylim=(0, None), xlim=(0, None))


def _queueing(axes: Any, rows: dict[str, dict[str, float]]) -> None:
    """How long a request waited in front of each model, and ran in it."""
    names = sorted(rows, reverse=True)
    waited, ran = ([rows[name][key] for name in names] for key in ("queue_ms", "run_ms"))
    axes.barh(names, waited, color=COLORS["p95"], height=0.6, label="waited")
    axes.barh(names, ran, left=waited, color=COLORS["grpc"], height=0.6, label="ran")
    axes.set(xlabel="milliseconds a request, on average (an ensemble: its steps)")
    axes.legend(loc="lower right")


def _blocks(axes: Any, compared: dict[str, Any]) -> None:
    """How much longer a request took than before, in each pair of blocks, with the interval of all."""
    row = compared["metrics"][0]
    ratios = 100 * (np.array(row["blocks"]) - 1)
    low, high = (100 * (edge - 1) for edge in row["interval"])
    axes.axhspan(low, high, color=COLORS["grpc"], alpha=0.18, linewidth=0)
    axes.axhline(0, color=MUTED, linewidth=1)
    axes.plot(np.arange(1, len(ratios) + 1), ratios, "o", color=COLORS["grpc"], markersize=4)
    axes.xaxis.get_major_locator().set_params(integer=True)
    than = "beside it" if compared["in_turn"] else "before"
    axes.set(xlabel="pair of blocks", ylabel=f"{row['name']}: % more than {than}")


def _goodput(axes: Any, trials: list[dict[str, Any]]) -> None:
    """The share of requests within what was promised, at each rate that was tried."""
    rows = sorted(trials, key=lambda trial: trial["rate"])
    axes.plot([row["rate"] for row in rows], [100 * row["goodput"] for row in rows], color=GRID)
    for met, color, label in ((True, COLORS["grpc"], "met"), (False, COLORS["p99"], "missed")):
        chosen = [row for row in rows if row["met"] is met]
        if chosen:
            rates, shares = [row["rate"] for row in chosen], [100 * row["goodput"] for row in chosen]
            axes.plot(rates, shares, "o", color=color, label=label)
    axes.set(xlabel="requests per second", ylabel="% within the promise", ylim=(0, 105))
    axes.legend(loc="lower left")
