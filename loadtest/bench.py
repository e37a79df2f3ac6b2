"""`make bench`: what serving costs. The ONNX session in process, and the same through Triton over gRPC.

Everything is measured in one run, a few calls of each way in turn: shared machines change their speed by
a quarter from one second to the next, and slow all ways alike only if these are close in time. Ratios are
taken turn by turn; their median is shown, and held against the aims.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from clients import GrpcClient
from export.encoder.rows import TextEncoder
from export.encoder.tasks.task import Row
from serving.embedded import running
from serving.onnxruntime.options import Options
from serving.onnxruntime.sessions import open_session
from shoal import corpus, machine, show
from shoal.errors import RepositoryError, ShoalError
from shoal.manifest import manifests, served_versions
from shoal.paths import write_json
from shoal.progress import Bars

SHAPES = ((1, 16), (1, 128), (32, 16), (32, 128))
CALLS_A_TURN = 4
SECONDS_A_SHAPE = 40.0
LEAST_TURNS = 8
LENGTHS = (16, 128)

# name -> (needs at least / at most, threshold)
AIMS = {
    "triton_throughput_share_32x16": (">=", 0.90),
    "triton_added_ms_1x16": ("<=", 2.5),
    "int8_speedup_32x16": (">=", 2.0),
    "int8_speedup_32x128": (">=", 1.7),
}


def text_of(tokens: int, encode: TextEncoder, count: int) -> list[str]:
    """Texts of exactly `tokens` tokens: long passages, cut word by word."""
    found: list[str] = []
    for passage in corpus.passages():
        words = passage.split()
        if _length(passage, encode) < tokens:
            continue
        for end in range(tokens // 3, len(words) + 1):
            length = _length(" ".join(words[:end]), encode)
            if length == tokens:
                found.append(" ".join(words[:end]))
            if length >= tokens:
                break
        if len(found) == count:
            return found
    raise ValueError(f"the corpus has no {count} passages of {tokens} tokens")


def _rows(texts: Sequence[str]) -> list[Row]:
    return [{"text": [text]} for text in texts]


def _length(text: str, encode: TextEncoder) -> int:
    return int(encode(_rows([text]))["input_ids"].shape[1])


def measure(repository: Path, model: str) -> dict[str, Any]:
    """All shapes, all ways; seconds per call by round."""
    known = {manifest.precision: manifest for manifest in manifests(repository, model)}
    versions = {precision: known[precision] for precision in ("fp32", "int8") if precision in known}
    if len(versions) < 2:
        raise RepositoryError(
            f"{repository} needs an fp32 and an int8 version of {model}", hint="shoal export"
        )
    served = versions["int8"]
    if served_versions(repository / served.network) != {served.version}:
        raise RepositoryError(f"{served.network} does not serve its int8 version", hint="shoal promote")
    tokenizer = next(repository / name for name in served.files if name.endswith("tokenizer.json"))
    encode = TextEncoder(tokenizer, "text", 256, 0, ("input_ids", "attention_mask"))
    texts = {tokens: text_of(tokens, encode, 32) for tokens in LENGTHS}
    settings = Options.from_config({"instance_group": [{"count": 1}]})
    sessions = {
        precision: open_session(
            repository / manifest.network / str(manifest.version) / "model.onnx", settings
        )
        for precision, manifest in versions.items()
    }
    seconds: dict[str, dict[str, list[float]]] = {}
    progress = Bars(Console(stderr=True))
    with running(repository) as server, GrpcClient(server.grpc) as client:
        for batch, tokens in SHAPES:
            part = texts[tokens][:batch]
            feed = encode(_rows(part))
            assert feed["input_ids"].shape == (batch, tokens)  # noqa: S101 - what the table claims
            ways: dict[str, Callable[[], Any]] = {
                "fp32": partial(sessions["fp32"].run, None, feed),
                "int8": partial(sessions["int8"].run, None, feed),
                "triton": partial(client.embed, part, model=model),
                "tokenize": partial(encode, _rows(part)),
            }
            with progress.step(f"Measure {batch} x {tokens} tokens"):
                _take_turns(ways, seconds, f"{batch}x{tokens}")
    return {"seconds": seconds, "machine": machine.describe(), "model": model, **_figures(seconds)}


def _take_turns(
    ways: dict[str, Callable[[], Any]], seconds: dict[str, dict[str, list[float]]], shape: str
) -> None:
    """A few calls of each way, again and again; keeps the median of each turn but for its first call."""
    for call in ways.values():
        call()
    end = time.perf_counter() + SECONDS_A_SHAPE
    turns = 0
    while time.perf_counter() < end or turns < LEAST_TURNS:
        for way, call in ways.items():
            samples = []
            for _ in range(CALLS_A_TURN + 1):
                start = time.perf_counter()
                call()
                samples.append(time.perf_counter() - start)
            seconds.setdefault(way, {}).setdefault(shape, []).append(statistics.median(samples[1:]))
        turns += 1


def _figures(seconds: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    def ratio(over: str, under: str, shape: str) -> float:
        return statistics.median(np.divide(seconds[over][shape], seconds[under][shape]).tolist())

    added = np.subtract(seconds["triton"]["1x16"], seconds["int8"]["1x16"])
    figures = {
        "triton_throughput_share_32x16": ratio("int8", "triton", "32x16"),
        "triton_throughput_share_32x128": ratio("int8", "triton", "32x128"),
        "triton_added_ms_1x16": 1e3 * statistics.median(added.tolist()),
        "int8_speedup_32x16": ratio("fp32", "int8", "32x16"),
        "int8_speedup_32x128": ratio("fp32", "int8", "32x128"),
    }
    met = {
        name: figures[name] >= limit if sign == ">=" else figures[name] <= limit
        for name, (sign, limit) in AIMS.items()
    }
    return {"figures": figures, "aims_met": met}


def print_tables(result: dict[str, Any], out: Console) -> None:
    """Texts per second of each way, then each aim with what was reached."""
    out.print(f"{result['machine']['cpu']}, {result['machine']['cpus']} CPUs", highlight=False)
    columns = ["texts x tokens", "#fp32", "#int8", "#int8 on Triton", "#ms", "#Triton ms", "#tokenizer ms"]
    made = show.table("texts per second, in process and through Triton over gRPC", columns)
    for batch, tokens in SHAPES:
        key = f"{batch}x{tokens}"
        rates = [batch / statistics.median(result["seconds"][way][key]) for way in ("fp32", "int8", "triton")]
        parts = [
            1e3 * statistics.median(result["seconds"][way][key]) for way in ("int8", "triton", "tokenize")
        ]
        made.add_row(
            f"{batch} x {tokens}", *(f"{rate:.0f}" for rate in rates), *(f"{ms:.1f}" for ms in parts)
        )
    out.print(made)
    aims = show.table("aims", ["figure", "#reached", "aim", ""])
    for name, (sign, limit) in AIMS.items():
        verdict = "[green]met[/]" if result["aims_met"][name] else "[yellow]missed[/]"
        aims.add_row(name, f"{result['figures'][name]:.2f}", f"{sign} {limit}", verdict)
    out.print(aims)


def main() -> None:
    """Measure, print the tables, and the result as JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--output", type=Path, default=Path("reports/bench.json"))
    options = parser.parse_args()
    try:
        result = measure(options.repository, options.model)
    except ShoalError as error:
        sys.exit(f"error: {error.message} ({error.hint})")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, result)
    print_tables(result, Console(width=120))
    print(json.dumps(result["figures"]))


if __name__ == "__main__":
    main()
