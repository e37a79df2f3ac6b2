"""What the benchmarks do with callers and answers, without a server."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

import pytest

from clients.answers import Label
from loadtest.bench_rows import difference
from loadtest.callers import called, medians
from loadtest.peers.server import NotServing, free_port, serving


def test_each_caller_has_one_request_under_way() -> None:
    under_way, most, answered = 0, 0, 0

    async def ask(chance: random.Random) -> int:
        nonlocal under_way, most, answered
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001)
        under_way -= 1
        answered += 2
        return 2

    figures = asyncio.run(called(ask, 3, 0.2))
    assert most == 3 and under_way == 0
    # Of 0.2 seconds and a little more, without the first request, which connects.
    assert 0 < figures["rate"] <= (answered - 2) / 0.2
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]


def test_medians_of_figures_to_any_depth() -> None:
    blocks = [{"a": n, "b": {"c": 10 - n}} for n in (1, 5, 2)]
    assert medians(blocks) == {"a": 2, "b": {"c": 8}}


def test_answers_are_told_apart_by_labels_and_by_scores() -> None:
    ours = [Label("cat", 0.7), Label("dog", 0.2)]
    assert difference(ours, [Label("cat", 0.7005), Label("dog", 0.1995)]) == ""
    assert difference(ours, ours[::-1]) == "dog, cat instead of cat, dog"
    assert "0.1" in difference(ours, [Label("cat", 0.6), Label("dog", 0.2)])


def test_a_server_that_ends_is_told_in_a_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit(7)"]
    with (
        pytest.raises(NotServing, match=r"^the server ended with 7 \(log: .*\)$"),
        serving(command, free_port(), tmp_path / "log", {}),
    ):
        pytest.fail("it does not serve")
