"""Two load tests side by side: is the second one slower, faster, or is there no difference?

Both are cut into blocks, in pairs that hold the same requests (an open loop numbers them; two servers that
are asked in turn have a block in each turn) or the same part of the time, so that what both runs have, as a
warm-up, cancels out. The ratio of a pair is one observation. The
interval of their mean is found by drawing pairs again and again (bootstrap, B. Efron, 1979), so it needs no
assumption on how latencies are spread. Requests within a block may depend on each other; blocks hardly do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from shoal import show
from shoal.errors import ShoalError, UsageError

BLOCKS, LEAST_IN_BLOCK, LEAST_BLOCKS = 20, 5, 8
DRAWS, CONFIDENCE = 5000, 0.99
MOST_MORE_FAILURES = 0.01  # of all requests: one in a hundred
WIDE = 0.1  # how much slower "no difference" may hide without a word
SLOWER, FASTER, SAME = "slower", "faster", "no difference"
_METRICS = {"latency": "whole answer", "first": "time to first token", "between": "time between tokens"}
Floats = NDArray[np.float64]


def read(path: Path) -> dict[str, Any]:
    """A report of `shoal loadtest`, from its `report.json` or the folder that holds it.

    Raises:
        UsageError: it is none, or of an earlier Shoal, which kept no requests.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        columns = report["requests"]
        lengths = {len(columns[name]) for name in ("index", "ended", *_METRICS, "succeeded")}
        if len(lengths) != 1 or not report["plan"]["model"]:
            raise ValueError("its columns differ in length")
    except KeyError as error:
        raise UsageError(
            f"{file} is no report of a load test: it lacks {error}",
            hint="shoal loadtest writes report.json into --report",
        ) from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{file} is no report of a load test: {error}",
            hint="shoal loadtest writes report.json into --report",
        ) from error
    return dict(report)


def compare(
    before: dict[str, Any], after: dict[str, Any], tolerance: float, turns: Floats | None = None
) -> dict[str, Any]:
    """What has become slower or faster.

    Args:
        before, after: reports, see `read`.
        tolerance: how much slower is no regression, as a share.
        turns: of two servers that were asked in turn, the turn of each request by its number: what a turn has
            of the machine all its requests have, so it is one block. None: one was tested before the other.

    Returns:
        `metrics`, each with its `name`, the `ratio` of after to before, its `interval`, the ratios of
        `blocks` and a `verdict`; `failures`, both shares; `warnings`; whether there is a `regression`; and
        whether they were asked `in_turn`.

    Raises:
        UsageError: there are too few requests.
        ShoalError: too few were answered.
    """
    pairs = _pairs(before, after) if turns is None else _by_turns(turns)
    rows: list[dict[str, Any]] = []
    warnings = _warnings(before, after)
    for metric, name in _METRICS.items():
        logs = [np.log(_column(report, metric)) for report in (before, after)]
        if all(np.isnan(values).all() for values in logs):
            continue
        differences = np.array(
            [_mean(logs[1][ours]) - _mean(logs[0][theirs]) for theirs, ours in pairs], dtype=float
        )
        differences = differences[~np.isnan(differences)]
        if len(differences) < LEAST_BLOCKS:
            warnings.append(f"too few requests were answered to compare the {name}")
        else:
            rows.append(_judged(name, differences))
    failures = [1 - float(np.mean(report["requests"]["succeeded"])) for report in (before, after)]
    failed = failures[1] > failures[0] + MOST_MORE_FAILURES
    if not rows and not failed:  # which must not pass for "no regression"
        theirs, ours = ("on the server beside it", "here") if turns is not None else ("before", "after")
        raise ShoalError(
            f"nothing was compared: {failures[0]:.0%} of the requests failed {theirs} and"
            f" {failures[1]:.0%} {ours}",
            hint="the report says why",
        )
    slower = [row["name"] for row in rows if row["verdict"] == SLOWER and row["ratio"] > 1 + tolerance]
    return {
        "metrics": rows,
        "failures": failures,
        "warnings": warnings,
        "tolerance": tolerance,
        "regression": bool(slower) or failed,
        "in_turn": turns is not None,
    }


def _judged(name: str, differences: Floats) -> dict[str, Any]:
    chance = np.random.default_rng(0)
    drawn = chance.choice(differences, (DRAWS, len(differences))).mean(axis=1)
    edge = 100 * (1 - CONFIDENCE) / 2
    low, high = (float(np.exp(value)) for value in np.percentile(drawn, (edge, 100 - edge)))
    return {
        "name": name,
        "ratio": float(np.exp(differences.mean())),
        "interval": [low, high],
        "blocks": np.exp(differences).tolist(),
        "verdict": SLOWER if low > 1 else FASTER if high < 1 else SAME,
    }


def _pairs(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Places of the requests in each pair of blocks."""
    columns = [report["requests"] for report in (before, after)]
    numbers = [np.array(each["index"]) for each in columns]
    if all((each >= 0).all() for each in numbers):
        common, *order = np.intersect1d(numbers[0], numbers[1], return_indices=True)
        least = len(common)
    else:
        order = [np.argsort(each["ended"]) for each in columns]
        least = min(len(each) for each in order)
    count = min(BLOCKS, least // LEAST_IN_BLOCK)
    if count < LEAST_BLOCKS:
        raise UsageError(
            f"{least} requests are too few to compare, {LEAST_BLOCKS * LEAST_IN_BLOCK} are needed",
            hint="test for longer, or with a higher rate",
        )
    return list(zip(*(np.array_split(each, count) for each in order), strict=True))


def _by_turns(turns: Floats) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Both servers had the same requests in each turn."""
    places = [np.flatnonzero(turns == turn) for turn in np.unique(turns)]
    if len(places) < LEAST_BLOCKS:
        raise UsageError(
            f"{len(turns)} requests in {len(places)} turns are too few to compare",
            hint="test for longer, or with a higher rate",
        )
    return [(each, each) for each in places]


def _column(report: dict[str, Any], metric: str) -> Floats:
    columns = report["requests"]
    values = np.array([np.nan if value is None else value for value in columns[metric]], dtype=float)
    return np.where(np.array(columns["succeeded"]) & (values > 0), values, np.nan)


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _warnings(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What makes two tests hard to compare."""
    found = []
    names = {
        "model": "model",
        "users": "number of users",
        "protocol": "protocol",
        "workload": "workload",
        "rate": "rate",
        "arrival": "kind of arrivals",
    }
    plans = [report["plan"] for report in (before, after)]
    if bool(plans[0].get("arrival")) != bool(plans[1].get("arrival")):
        found.append("one is a closed loop, the other an open one")
    for key, name in names.items():
        theirs, ours = (plan.get(key) for plan in plans)
        if theirs != ours and theirs and ours:
            found.append(f"the {name} differs: {_short(theirs)} and {_short(ours)}")
    machines = [report.get("machine", {}) for report in (before, after)]
    if machines[0].get("cpu") != machines[1].get("cpu") or machines[0].get("cpus") != machines[1].get("cpus"):
        found.append("the machines differ")
    for report, which in ((before, "first"), (after, "second")):
        if report.get("client", {}).get("limited"):
            found.append(f"requests of the {which} test were sent late, see its report")
    return found


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def as_table(compared: dict[str, Any]) -> Table:
    """For a terminal."""
    what = "against the server beside it" if compared["in_turn"] else "after against before"
    made = show.table(what, ["", "#change", "#interval", "verdict"])
    for row in compared["metrics"]:
        low, high = row["interval"]
        made.add_row(
            row["name"], _percent(row["ratio"]), f"{_percent(low)} to {_percent(high)}", row["verdict"]
        )
    return made


def lines(compared: dict[str, Any]) -> list[str]:
    """What is to be said below the table."""
    theirs, ours = compared["failures"]
    said = list(compared["warnings"])
    for row in compared["metrics"]:
        if row["verdict"] == SAME and row["interval"][1] > 1 + max(compared["tolerance"], WIDE):
            said.append(f"the interval of the {row['name']} is wide: only a longer test can tell")
    if theirs or ours:
        which = ("beside", "here") if compared["in_turn"] else ("before", "after")
        said.append(f"failed: {theirs:.1%} {which[0]}, {ours:.1%} {which[1]}")
    if compared["regression"]:
        said.append(f"a regression: more than {compared['tolerance']:.0%} slower, or more requests failed")
    return said


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"
