"""`cost.html` for people, one file without scripts or links, and `cost.json` for machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import NullFormatter
from rich.table import Table

from loadtest.pages import COLORS, GRID, MUTED, draw, render
from shoal import show
from shoal.errors import ShoalError
from shoal.paths import write_atomic, write_json

_DOUBLINGS = 6  # of the rate, to both sides of what is asked, in the second picture


def write(found: dict[str, Any], folder: Path) -> None:
    """Write both files.

    Args:
        found: `machines` and `apis`, rows of `loadtest.cost.calculation`, and `headroom`.

    Raises:
        ShoalError: the folder cannot be written.
    """
    pictures = [("Dollars a month", draw(lambda axes: _bars(axes, found)))]
    pictures.append(("Dollars a month, by rate", draw(lambda axes: _by_rate(axes, found))))
    html = render("cost.html", found=found, pictures=pictures, notes=notes(found), money=money)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "cost.json", found)
        write_atomic(folder / "cost.html", html)
    except OSError as error:
        raise ShoalError(
            f"{folder} cannot be written: {error.strerror}", hint="choose another --report"
        ) from error


def as_tables(found: dict[str, Any]) -> list[Table]:
    """For a terminal."""
    own = show.table(
        f"{found['machines'][0]['requests_per_second']:.4g} requests/s, in USD a month and a million",
        ["option", "on", "#replicas", "#used", "#month", "#requests", "#tokens in", "#out"],
        wraps=["option", "on"],
    )
    for row in found["machines"]:
        own.add_row(
            row["option"],
            row["machine"],
            str(row["replicas"]),
            f"{row['utilisation']:.0%}",
            money(row["usd_per_month"]),
            money(row["usd_per_million_requests"]),
            money(row["usd_per_million_input_tokens"]),
            money(row["usd_per_million_output_tokens"]),
        )
    if not found["apis"]:
        return [own]
    apis = show.table(
        "the same tokens from an API, in USD a month and a million",
        ["option", "API", "#month", "#requests", "own is cheaper", "on"],
        wraps=["option", "API", "own is cheaper", "on"],
    )
    for row in found["apis"]:
        even = row["cheaper_from_rps"]
        apis.add_row(
            row["option"],
            row["api"],
            money(row["usd_per_month"]),
            money(row["usd_per_million_requests"]),
            f"from {even:.3g} requests/s" if even is not None else "at no rate",
            row["beside"],
        )
    return [own, apis]


def notes(found: dict[str, Any]) -> list[str]:
    """What was assumed, and where each figure comes from, each once."""
    rows = [*found["machines"], *found["apis"]]
    said = [
        f"{row['option']} on {row['machine']}: {'; '.join(row['assumptions'])}"
        for row in found["machines"]
        if row["assumptions"]
    ]
    energy = {row["option"]: row for row in found["machines"] if row["kwh_per_million_requests"] is not None}
    for option, row in energy.items():
        dollars = row["usd_of_energy_per_million_requests"]
        paid = f", {money(dollars)} USD" if dollars is not None else ""
        kwh = f"{row['kwh_per_million_requests']:.3g} kWh"
        said.append(f"{option}: {kwh} a million requests, of the whole machine{paid}")
    return [*said, *dict.fromkeys(f"source: {source}" for row in rows for source in row["sources"])]


def money(dollars: float | None) -> str:
    """Dollars with as many digits as are of use."""
    if dollars is None:
        return "-"
    return f"{dollars:,.0f}" if dollars >= 100 else f"{dollars:.2f}" if dollars >= 1 else f"{dollars:.3g}"


def _bars(axes: Any, found: dict[str, Any]) -> None:
    rows = [(f"{row['option']}\n{row['machine']}", row["usd_per_month"], "grpc") for row in found["machines"]]
    rows += [(f"{row['option']}\n{row['api']}", row["usd_per_month"], "http") for row in found["apis"]]
    places = np.arange(len(rows))[::-1]
    axes.barh(places, [row[1] for row in rows], color=[COLORS[row[2]] for row in rows], height=0.6)
    for place, (_, dollars, _) in zip(places, rows, strict=True):
        axes.text(dollars, place, f" {money(dollars)}", va="center", color=MUTED, fontsize=8)
    axes.set_yticks(places, [row[0] for row in rows], fontsize=7)
    axes.set(xlabel="USD a month")
    axes.margins(x=0.15)


def _by_rate(axes: Any, found: dict[str, Any]) -> None:
    """Replicas come in steps; an API is paid by the token."""
    first = found["machines"][0]
    rates = first["requests_per_second"] * np.logspace(-_DOUBLINGS, _DOUBLINGS, 400, base=2)
    planned = first["rate_of_a_replica"] * found["headroom"]
    each = first["usd_per_month"] / first["replicas"]
    label = f"{first['option']} on {first['machine']}"
    axes.plot(rates, (np.ceil(rates / planned) + 1) * each, color=COLORS["grpc"], label=label)
    beside = [row for row in found["apis"] if row["option"] == first["option"]]
    for row, color in zip(beside, ("http", "p95", "p99"), strict=False):
        per_request = row["usd_per_month"] / row["requests_per_second"]
        axes.plot(rates, rates * per_request, color=COLORS[color], label=row["api"])
    axes.axvline(first["requests_per_second"], color=GRID, linewidth=1.5)
    axes.set(xscale="log", yscale="log", xlabel="requests per second", ylabel="USD a month")
    for axis in (axes.xaxis, axes.yaxis):  # its own are formulas
        axis.set_major_formatter(lambda value, _: f"{value:,g}")
        axis.set_minor_formatter(NullFormatter())
    axes.legend(loc="upper left")
