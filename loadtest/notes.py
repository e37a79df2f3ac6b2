"""What is said of a load test in words, on the terminal and in the report."""

from __future__ import annotations

from typing import Any

from loadtest import comparing


def notes(summary: dict[str, Any]) -> list[str]:
    """What is to be said below the table, a line each."""
    lines = []
    if streams := summary.get("streams"):
        lines.append(f"{streams['tokens']} tokens, {streams['tokens_per_second']:.0f} a second")
    if judged := summary.get("slo"):
        for row in judged["bounds"]:
            reached = f"{row['reached']:.1f} ms" if row["reached"] is not None else "no answer"
            lines.append(f"{row['bound']}: {'met' if row['holds'] else 'missed'}, {reached}")
        lines.append(f"goodput: {judged['goodput']:.1%} of the requests within it")
    if trials := summary.get("trials"):
        best = summary["max_rate"]
        if best is not None:
            lines.append(f"the promise holds at up to {best:.1f} requests/s, confirmed by a second test")
        else:
            lowest = min(trials, key=lambda trial: trial["rate"])
            lines.append(
                f"no rate keeps the promise: the figures are of the nearest, and at {lowest['rate']:.2f}"
                f" requests/s {lowest['goodput']:.1%} were within it"
            )
    if compared := summary.get("compared"):
        lines += comparing.lines(compared)
    client = summary.get("client")
    if client and client["limited"]:
        lines.append(
            f"the client was the limit: {client['cpu']:.0%} of a CPU in a process, requests sent up to"
            f" {client['lag_ms_p99']:.0f} ms late (p99); the server may be faster than these figures"
        )
    return lines
