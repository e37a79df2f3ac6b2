"""Two load tests against each other: what was planted is found, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest import comparing
from shoal.errors import UsageError


def _report(
    seed: int, *, slower: float = 1.0, requests: int = 400, failed: int = 0, users: bool = False
) -> Any:
    """A test whose requests differ from each other as real ones do, and whose machine drifts."""
    work = np.random.default_rng(99).lognormal(3, 0.5, requests)  # the same requests in each test
    chance = np.random.default_rng(seed)
    drift = 1 + 0.03 * np.sin(np.linspace(0, 6, requests) + seed)
    latency = work * slower * drift * chance.lognormal(0, 0.15, requests)
    succeeded = np.ones(requests, dtype=bool)
    succeeded[chance.choice(requests, failed, replace=False)] = False
    return {
        "plan": {"model": "minilm", "users": 8, "rate": None if users else 50.0},
        "machine": {"cpu": "one", "cpus": 2},
        "requests": {
            "index": [-1 if users else n for n in range(requests)],
            "ended": np.linspace(0, 8, requests).tolist(),
            "latency": latency.tolist(),
            "first": [None] * requests,
            "between": [None] * requests,
            "succeeded": succeeded.tolist(),
        },
    }


def test_a_planted_regression_of_ten_percent_is_found_and_no_other() -> None:
    found = [
        comparing.compare(_report(seed), _report(seed + 100, slower=1.1), 0.05)["regression"]
        for seed in range(20)
    ]
    assert sum(found) >= 19
    same = [comparing.compare(_report(seed), _report(seed + 100), 0.05) for seed in range(20)]
    assert not any(compared["regression"] for compared in same)


def test_the_verdicts() -> None:
    before = _report(0)
    slower = comparing.compare(before, _report(1, slower=1.3), 0.5)
    (row,) = slower["metrics"]
    assert row["verdict"] == "slower" and row["ratio"] == pytest.approx(1.3, abs=0.04)
    assert row["interval"][0] < row["ratio"] < row["interval"][1]
    assert not slower["regression"]  # within the tolerance
    assert comparing.compare(_report(1, slower=1.3), before, 0.05)["metrics"][0]["verdict"] == "faster"
    assert comparing.compare(before, before, 0.0)["metrics"][0]["verdict"] == "no difference"


def test_more_failures_are_a_regression() -> None:
    assert comparing.compare(_report(0), _report(1, failed=8), 0.05)["regression"]
    assert not comparing.compare(_report(0), _report(1, failed=3), 0.05)["regression"]
    compared = comparing.compare(_report(0, failed=8), _report(1), 0.05)
    assert not compared["regression"] and compared["failures"] == [pytest.approx(0.02), 0.0]


def test_a_closed_loop_is_compared_by_its_time() -> None:
    compared = comparing.compare(_report(0, users=True), _report(1, users=True, slower=1.2), 0.05)
    assert compared["regression"] and len(compared["metrics"][0]["blocks"]) == 20


def test_what_makes_tests_hard_to_compare_is_said() -> None:
    after = _report(1)
    after["machine"]["cpus"] = 4
    after["plan"]["rate"] = 60.0
    warnings = comparing.compare(_report(0), after, 0.05)["warnings"]
    assert warnings == ["the rate differs: 50 and 60", "the machines differ"]


def test_too_few_requests() -> None:
    with pytest.raises(UsageError, match="39 requests are too few to compare, 40 are needed"):
        comparing.compare(_report(0, requests=39), _report(1, requests=39), 0.05)


def test_a_version_that_answers_nothing_is_a_regression() -> None:
    compared = comparing.compare(_report(0), _report(1, failed=400), 0.05)
    assert compared["regression"] and compared["metrics"] == []
    assert compared["warnings"] == ["too few requests were answered to compare the whole answer"]
    assert comparing.lines(compared)[-1].startswith("a regression")


def test_reports_are_read_from_a_file_or_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text(json.dumps(_report(0)))
    assert comparing.read(file) == comparing.read(tmp_path)
    no_columns = {"plan": {"model": "minilm"}, "requests": {}}
    for content in ("", "{}", "[]", "null", json.dumps(no_columns), "[" * 100_000):
        file.write_text(content)
        with pytest.raises(UsageError, match="is no report of a load test"):
            comparing.read(file)
    with pytest.raises(UsageError, match="is no report"):
        comparing.read(tmp_path / "nothing")
