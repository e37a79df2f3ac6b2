"""What is said of a load test in words, on the terminal and in the report."""

from __future__ import annotations

from typing import Any

from loadtest import comparing

MOST_FAILURES = 3  # kinds of them that are told


def notes(summary: dict[str, Any]) -> list[str]:
    """What is to be said below the table, a line each."""
    lines = []
    if streams := summary.get("streams"):
        lines.append(f"{streams['tokens']} tokens, {streams['tokens_per_second']:.0f} a second")
    if judged := summary.get("slo"):
        for row in judged["bounds"]:
            reached = f"{row['reached']:.1f} ms" if row["reached"] is not None else "no answer"
            lines.append(f"{row['bound']}: {'met' if row['holds'] else 'missed'}, {reached}")
        if not judged["steady"]:
            lines.append("missed: more and more requests waited, so the promise would not hold for long")
        if not judged["enough"]:
            lines.append(
                "there were so few requests that a percentile is the longest of them: test for longer"
            )
        lines.append(f"goodput: {judged['goodput']:.1%} of the requests within it")
    lines += _of_trials(summary)
    if compared := summary.get("compared"):
        lines += comparing.lines(compared)
    client = summary.get("client")
    if client and client["limited"]:
        late = f"requests were sent up to {client['lag_ms_p99']:.0f} ms late (p99)"
        if client["busy"]:
            lines.append(f"the client was the limit, at {client['cpu']:.0%} of a CPU in a process: {late}")
        else:
            lines.append(f"{late}, since other processes took the CPUs; latencies hold that time")
    for failure in summary["failures"][:MOST_FAILURES]:
        lines.append(f"failed {failure['count']} times: {failure['reason']}")
    for failure in summary.get("beside", {"failures": []})["failures"][:MOST_FAILURES]:
        where = summary["plan"]["beside"]
        lines.append(f"failed {failure['count']} times on {where}: {failure['reason']}")
    return lines


def _of_trials(summary: dict[str, Any]) -> list[str]:
    trials, best = summary.get("trials"), summary.get("max_rate")
    if not trials:
        return []
    if best is not None:
        return [f"the promise holds at up to {best:.1f} requests/s, confirmed by a second test"]
    lowest = min(trials, key=lambda trial: float(trial["rate"]))
    twice = " twice" if any(trial["met"] for trial in trials) else ""
    return [
        f"no rate keeps the promise{twice}: the figures are of the nearest that missed it",
        f"at {lowest['rate']:.2f} requests/s {lowest['goodput']:.1%} were within it",
    ]
