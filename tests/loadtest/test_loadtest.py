"""Real Locust against the real server; failures are failures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from loadtest import headless
from loadtest.samples import Samples
from serving.embedded import Server
from tests.conftest import ROOT


def test_figures_of_known_samples() -> None:
    rows = [
        [
            100.0 + n / 10,
            "grpc",
            float(n + 1),
            "" if n % 10 else "Timeout: late",
            1,
            None,
            None,
            None,
            None,
            None,
        ]
        for n in range(100)
    ]
    samples = Samples.from_rows(rows)
    summary = samples.summary()
    assert summary["total"]["requests"] == 100
    assert summary["total"]["failures"] == 10
    assert summary["failures"] == [{"reason": "Timeout: late", "count": 10}]
    answered = [row[2] for row in rows if not row[3]]
    assert summary["total"]["p95"] == pytest.approx(np.percentile(answered, 95, method="inverted_cdf"))
    series = samples.over_time()
    width = series["time"][1] - series["time"][0]
    assert (series["per_second"] * width).sum() == pytest.approx(90)
    assert (series["failed_per_second"] * width).sum() == pytest.approx(10)


def test_a_run_and_its_report(server: Server, tmp_path: Path) -> None:
    plan = headless.Plan("minilm", 4, 3, "both", server.grpc, server.http)
    summary = headless.run(plan, tmp_path)
    assert summary["total"]["failures"] == 0
    assert set(summary["protocols"]) == {"grpc", "http"}
    counts = [row["requests"] for row in summary["protocols"].values()]
    assert min(counts) > 0 and summary["total"]["requests"] == sum(counts)
    written = json.loads((tmp_path / "report.json").read_text())
    requests = written.pop("requests")
    assert written == summary
    assert {len(column) for column in requests.values()} == {summary["total"]["requests"]}
    html = (tmp_path / "report.html").read_text()
    assert html.count("<svg") == 4
    assert "<script" not in html and "http-equiv" not in html
    assert f"<b>{summary['total']['requests']:,}</b>" in html


def test_failures_are_counted_as_failures(server: Server, tmp_path: Path) -> None:
    plan = headless.Plan("nope", 2, 2, "both", server.grpc, server.http)
    summary = headless.run(plan, tmp_path)
    assert summary["total"]["requests"] == summary["total"]["failures"] > 0
    assert all("UnknownModel" in failure["reason"] for failure in summary["failures"])
    assert "unknown model" in (tmp_path / "report.html").read_text()


def test_locusts_own_web_page(server: Server) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--web-host", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--web-port", str(port), "--grpc-url", server.grpc, "--http-url", server.http],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stderr=subprocess.DEVNULL,
    )
    try:
        page = ""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and "locust" not in page.lower():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2) as reply:
                    page = reply.read().decode()
            except OSError:
                time.sleep(0.2)
        assert "<title>Locust</title>" in page
        swarm = b"user_count=2&spawn_rate=2&host="
        urllib.request.urlopen(f"http://127.0.0.1:{port}/swarm", data=swarm, timeout=5).close()
        stats: dict = {}
        while time.monotonic() < deadline and not stats.get("total_rps"):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats/requests", timeout=5) as reply:
                stats = json.load(reply)
            time.sleep(0.2)
        assert {entry["method"] for entry in stats["stats"]} >= {"grpc", "http"}
        assert stats["fail_ratio"] == 0
    finally:
        process.terminate()
        process.wait(timeout=20)
