"""`shoal bench peers`: what it makes of the benchmarks' results, without running them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadtest import bench_peers
from shoal.errors import ShoalError

MACHINE = {"cpu": "AMD EPYC", "cpus": 2, "cpu_flags": ["avx2"]}
FIGURES = {"rate": 100.0, "p50_ms": 8.0, "p99_ms": 20.0, "client_cpus": 0.1}


def _block(rate: float) -> dict[str, Any]:
    figures = {"Shoal int8, gRPC": {**FIGURES, "rate": rate}, "infinity-torch fp32, HTTP": FIGURES}
    return {"in process": {"ONNX Runtime int8": 3 * rate}, "loads": {"8 x 1": figures, "4 x 32": figures}}


ENCODERS = {
    "machine": MACHINE,
    "unlike": {"infinity-torch fp32, HTTP": "a cosine with ours is 0.5"},
    "left_out": {"infinity-optimum": "its environment cannot be made"},
    "rows": _block(300.0),
    "blocks": [_block(290.0), _block(300.0), _block(330.0)],
}
ROWS = {
    "machine": MACHINE,
    "unlike": {"forest": {"MLServer": "a score differs by 0.2"}},
    "left_out": {},
    "rows": {"forest": {"16": {"Shoal, gRPC": FIGURES, "MLServer": {**FIGURES, "rate": 40.0}}}},
    "blocks": [{"forest": {"16": {"Shoal, gRPC": FIGURES, "MLServer": {**FIGURES, "rate": 39.0}}}}],
}
CELL = {"concurrency": 4, "tokens_per_second": 450.0, "all": [440.0, 460.0], "ttft_ms_p50": 52.0}
DECODERS = {
    "machine": MACHINE,
    "results": {"30/64": {"Shoal int8": [CELL], "openvino-genai (int8, 2 threads)": [CELL]}},
    "costs": None,
}


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What each benchmark prints as its last line, by module; as a process would."""
    told = {
        "loadtest.bench_encoders": ENCODERS,
        "loadtest.bench_rows": ROWS,
        "loadtest.bench_llm": DECODERS,
    }

    class Done:
        returncode = 0

        def __init__(self, module: str) -> None:
            self.stdout = f"a table\n{json.dumps(told[module])}\n"

    monkeypatch.setattr(bench_peers.subprocess, "run", lambda command, **_: Done(command[2]))
    return told


def test_each_benchmark_becomes_rows_with_the_range_of_its_blocks(said: dict[str, Any]) -> None:
    found = bench_peers.measure("encoders", [])
    alone, ours, theirs, many, _ = found["rows"]
    assert alone["load"] == "in process, sorted by length" and alone["engine"] == "ONNX Runtime int8"
    assert (alone["rate"], alone["low"], alone["high"], alone["p50_ms"]) == (900.0, 870.0, 990.0, None)
    assert (ours["load"], ours["engine"]) == ("8 callers, 1 text a call", "Shoal int8, gRPC")
    assert many["load"] == "4 callers, 32 texts a call"
    assert (ours["rate"], ours["low"], ours["high"]) == (300.0, 290.0, 330.0)
    assert theirs["p99_ms"] == 20.0
    (first, second) = bench_peers.measure("rows", [])["rows"]
    assert (first["load"], second["engine"]) == ("forest, 16 callers", "MLServer")
    assert (second["rate"], second["low"]) == (40.0, 39.0)
    rows = bench_peers.measure("decoders", [])["rows"]
    assert [row["engine"] for row in rows] == ["Shoal int8", "openvino-genai (int8, 2 threads)"]
    assert rows[0]["load"] == "30/64, 4 at once" and rows[0]["ttft_ms"] == 52.0
    assert (rows[0]["low"], rows[0]["high"]) == (440.0, 460.0)


def test_what_went_wrong_is_told(said: dict[str, Any]) -> None:
    assert bench_peers.measure("encoders", [])["notes"] == [
        "infinity-optimum did not run: its environment cannot be made",
        "infinity-torch fp32, HTTP answers otherwise: a cosine with ours is 0.5",
    ]
    assert bench_peers.measure("rows", [])["notes"] == [
        "MLServer answers forest otherwise: a score differs by 0.2"
    ]
    assert bench_peers.measure("decoders", [])["notes"] == []


def test_versions_are_those_that_are_pinned(said: dict[str, Any]) -> None:
    for kind, about in bench_peers.KINDS.items():
        versions = bench_peers.measure(kind, [])["versions"]
        assert versions["nvidia-pytriton"]
        assert set(versions) >= set(about.peers.values()), kind


def test_the_page_and_the_tables(said: dict[str, Any], tmp_path: Path) -> None:
    found = [bench_peers.measure(kind, []) for kind in bench_peers.KINDS]
    bench_peers.write(found, tmp_path)
    html = (tmp_path / "benchmarks.html").read_text()
    assert html.count("<svg") == 5 and "<script" not in html
    assert json.loads((tmp_path / "benchmarks.json").read_text())[1]["rows"] == found[1]["rows"]
    text = bench_peers.markdown(found, "shoal bench peers --blocks 3")
    assert "`shoal bench peers --blocks 3` wrote this page" in text
    assert "| 8 callers, 1 text a call | Shoal int8, gRPC | **300** (290-330) | 8.0 | 20.0 |" in text
    assert "|  | infinity-torch fp32, HTTP | 100 (100-100) | 8.0 | 20.0 |" in text
    assert "\ninfinity-optimum did not run: its environment cannot be made.\n" in text
    assert "| load | engine | tokens/s | first token, ms |" in text


def test_a_benchmark_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failed:
        returncode = 3
        stdout = ""

    monkeypatch.setattr(bench_peers.subprocess, "run", lambda *_, **__: Failed())
    with pytest.raises(ShoalError, match="the benchmark of rows ended with exit code 3"):
        bench_peers.measure("rows", [])
