"""The page of a rollout: what its guards saw, in pictures and a table; one file without scripts or links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import LogLocator, NullFormatter

from loadtest.pages import COLORS, MUTED, draw, render
from shoal.errors import ShoalError
from shoal.paths import write_atomic

_LINES = ("p99", "p95", "http", "p50")  # colours of guards
Curve = Sequence[tuple[float, float]]  # seconds, and the share of requests that took no longer


def write(
    rollout: Mapping[str, Any], curves: tuple[Curve, Curve], rows: Sequence[Mapping[str, str]], file: Path
) -> None:
    """Write the page.

    Args:
        rollout: as `deploy.canary.rollout.Rollout.to_dict` gives it.
        curves: of the version that is served, and of the new one.
        rows: of the table, by `guard`, `old`, `new`, `interval` and `verdict`, as text.

    Raises:
        ShoalError: the file cannot be written.
    """
    names = (f"version {rollout['before']}", f"version {rollout['version']}")
    pictures = []
    if all(curves):
        pictures.append(("How long requests took", draw(lambda axes: _times(axes, curves, names))))
    if rollout["history"]:
        pictures.append(
            ("How near each guard came to saying worse", draw(lambda axes: _evidence(axes, rollout)))
        )
    shadow = not rollout["split"]["share"]
    html = render("rollout.html", rollout=rollout, pictures=pictures, rows=rows, shadow=shadow)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, html)
    except OSError as error:
        raise ShoalError(f"{file} cannot be written: {error.strerror}") from error


def _times(axes: Any, curves: tuple[Curve, Curve], names: tuple[str, str]) -> None:
    for curve, name, color in zip(curves, names, (COLORS["grpc"], COLORS["p95"]), strict=True):
        seconds, shares = zip(*curve, strict=True)
        axes.step([1e3 * each for each in seconds], [100 * each for each in shares], color=color, label=name)
    axes.set(xscale="log", xlabel="milliseconds", ylabel="% of requests within", ylim=(0, 101))
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")  # the usual one writes TeX
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(loc="lower right")


def _evidence(axes: Any, rollout: Mapping[str, Any]) -> None:
    history = rollout["history"]
    requests = [each["requests"] for each in history]
    for place, row in enumerate(rollout["guards"]):
        evidence = [100 * each["evidence"][place] for each in history]
        axes.plot(requests, evidence, color=COLORS[_LINES[place % len(_LINES)]], label=row["guard"])
    axes.axhline(100, color=MUTED, linewidth=1, linestyle="--")
    axes.text(requests[0], 100, " worse", color=MUTED, va="bottom")
    axes.set(xlabel="requests of the new version", ylabel="% of what it takes", ylim=(0, 118))
    axes.legend(loc="upper right", ncols=3)
