"""Pages for people: one file each, without scripts or links, with pictures as SVG."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jinja2
import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

_FOLDER = Path(__file__).parent
INK, MUTED, GRID = "#1b2733", "#66788a", "#e4eaf0"
COLORS = {"p50": "#0f766e", "p95": "#d97706", "p99": "#be123c", "grpc": "#0f766e", "http": "#6366f1"}
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def render(template: str, **values: Any) -> str:
    """A page from one of the templates of this package, with the time at which it was `made`."""
    loader = jinja2.FileSystemLoader([_FOLDER, _FOLDER / "cost", _FOLDER / "tuning"])
    page = jinja2.Environment(loader=loader, autoescape=True).get_template(template)
    return page.render(made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"), **values)


def draw(paint: Callable[[Any], None]) -> str:
    """A picture as SVG, in the house's style."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 3.1), layout="constrained")
        paint(axes)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    svg = drawn.getvalue()
    return svg[svg.index("<svg") :]
