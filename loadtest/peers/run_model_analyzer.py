"""NVIDIA's Model Analyzer: its quick search over an ensemble, with its Perf Analyzer, as its manual says.

It starts the server by itself. For Perf Analyzer see `run_perf_analyzer`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

from loadtest.peers.load import give_up, say
from loadtest.peers.server import HOST, free_port

SAID = ("Model Config Path", "Instance Group", "Max Batch Size")  # columns of its table


def perf_analyzer(folder: Path) -> Path:
    """A program that starts Perf Analyzer with the libraries that it needs."""
    program, script = folder / "perf_analyzer", Path(__file__).with_name("run_perf_analyzer.py")
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    program.chmod(0o755)
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or "Perf Analyzer Version" not in done.stdout + done.stderr:
        give_up(f"Perf Analyzer does not start (apt install libb64-0d): {done.stderr.strip()}")
    return program


def main() -> None:
    """Search, and print as the last line what is within the promise, the fastest first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, required=True, help="what the server can read as it is")
    parser.add_argument("--server", type=Path, required=True, help="a program that starts tritonserver")
    parser.add_argument("--model", required=True, help="an ensemble")
    parser.add_argument("--parts", nargs="+", required=True, help="its models")
    parser.add_argument("--percentile", choices=("p90", "p95", "p99"), default="p95")
    parser.add_argument("--milliseconds", type=int, required=True, help="what is promised of it")
    parser.add_argument("--inputs", type=Path, required=True, help="Perf Analyzer's --input-data")
    parser.add_argument("--folder", type=Path, required=True, help="for what it writes")
    options = parser.parse_args()
    folder = options.folder.resolve()
    for name in ("checkpoints", "results"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    http, grpc, metrics = free_port(), free_port(), free_port()
    settings = {
        "model_repository": str(options.repository.resolve()),
        "output_model_repository_path": str(folder / "output"),
        "override_output_model_repository": True,
        "checkpoint_directory": str(folder / "checkpoints"),
        "export_path": str(folder / "results"),
        "run_config_search_mode": "quick",
        "triton_launch_mode": "local",
        "triton_server_path": str(options.server.resolve()),
        "triton_http_endpoint": f"{HOST}:{http}",
        "triton_grpc_endpoint": f"{HOST}:{grpc}",
        "triton_metrics_url": f"http://{HOST}:{metrics}/metrics",
        "triton_output_path": str(folder / "triton.log"),
        "perf_analyzer_path": str(perf_analyzer(folder)),
        "perf_output": True,
        "perf_output_path": str(folder / "perf.log"),
        "client_protocol": "grpc",
        "cpu_only_composing_models": options.parts,
        "profile_models": {
            options.model: {
                "cpu_only": True,
                "objectives": ["perf_throughput"],
                "constraints": {f"perf_latency_{options.percentile}": {"max": options.milliseconds}},
                "perf_analyzer_flags": {"input-data": str(options.inputs.resolve())},
            }
        },
    }
    (folder / "settings.yaml").write_text(json.dumps(settings))  # which is YAML, too
    program = Path(sys.executable).with_name("model-analyzer")
    command = [str(program), "profile", "-f", str(folder / "settings.yaml")]
    say(f"searching (log: {folder / 'model_analyzer.log'})")
    with (folder / "model_analyzer.log").open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=log, env=os.environ | {"CI": "true"}, check=False)
    if done.returncode:
        give_up(f"it ended with exit code {done.returncode} (log: {folder / 'model_analyzer.log'})")
    with (folder / "results" / "results" / "metrics-model-inference.csv").open() as file:
        within = [row for row in csv.DictReader(file) if row["Satisfies Constraints"] == "Yes"]
    within.sort(key=lambda row: -float(row["Throughput (infer/sec)"]))
    rows = [
        {
            "model": row["Model Config Path"].partition(":")[0],
            "says": ", ".join(f"{name} {row[name]}" for name in SAID),
            "throughput": float(row["Throughput (infer/sec)"]),
            "concurrency": int(row["Concurrency"]),
        }
        for row in within
    ]
    sys.stdout.write(json.dumps({"rows": rows}) + "\n")


if __name__ == "__main__":
    main()
