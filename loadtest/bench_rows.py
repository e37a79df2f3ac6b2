"""`make bench-rows`: a table and a picture model through our server, beside what is written without one.

The peers are FastAPI with one uvicorn worker and one ONNX Runtime session of the same ONNX file
(`loadtest/peers/run_fastapi.py`), and for the table FastAPI with the scikit-learn estimator itself, and
MLServer. The table is `example:forest`; the picture model is a vision transformer of
a tiny one's size with random weights. Callers in a process of their own ask for one row a request, at random,
and send the next once they have the answer. All servers run all the time, and one is asked at a time, in
turn. Before that, the answers are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_breast_cancer, load_sample_images
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from clients.answers import Label
from loadtest.bench_rows_client import answers, rows_of
from loadtest.callers import in_a_process, medians
from loadtest.peers.environment import kept_by, served_by
from loadtest.peers.server import NotServing
from serving import service
from serving.ports import Ports
from shoal import machine, show
from shoal.manifest import served_manifests
from shoal.progress import Bars

CALLERS = (1, 16)
TOLERANCE = 1e-3  # of a probability
COMPARED = 16  # rows
# Left, top of the parts that are cut out of scikit-learn's two photos, of 640 x 427 pixels.
PLACES = [(left, top) for left in (0, 60, 120, 160) for top in (0, 67)]
CUT = (480, 360)
err = Console(stderr=True)


@dataclass(frozen=True)
class Case:
    """A model, and what it is asked.

    Attributes:
        name: of the model, and of the case.
        source: what `shoal export` takes.
        rows: see `rows_of`.
        processor: the file with the settings of pictures; None: the model reads a table.
    """

    name: str
    source: str
    rows: Path
    processor: Path | None = None


def main() -> None:
    """Measure, print a table, and JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load in a block")
    options = parser.parse_args()
    progress = Bars(err)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as servers:
        repository = Path(scratch) / "model_repository"
        cases = (table_case(Path(scratch)), picture_case(Path(scratch)))
        for case in cases:
            with progress.step(f"Export {case.name}"):
                export(case, repository)
        running = service.start(repository, ports=Ports(0, 0, 0))
        servers.callback(service.stop, running)
        urls: dict[str, dict[str, str]] = {}
        left_out: dict[str, str] = {}
        for case in cases:
            urls[case.name] = {"Shoal, gRPC": running.grpc, "Shoal, HTTP": running.http}
            started, failed = peers(servers, case, repository)
            urls[case.name] |= started
            left_out |= failed
        unlike = {case.name: differences(case, urls[case.name]) for case in cases}
        blocks = []
        for number in range(options.blocks + 1):
            with progress.step(f"Measure block {number}" if number else "Warm up"):
                blocks.append(_block(cases, urls, options.seconds, backwards=number % 2 == 0))
    blocks = blocks[1:]
    rows = medians(blocks)
    out = Console(width=120)
    out.print(machine.name(), highlight=False)
    for name, loads in rows.items():
        out.print(_table(name, loads, blocks))
    about = {"machine": machine.describe(), "unlike": unlike, "left_out": left_out}
    print(json.dumps({**about, "rows": rows, "blocks": blocks}))


def table_case(folder: Path) -> Case:
    """The forest, asked for the rows of its data set."""
    rows = folder / "table.json"
    rows.write_text(json.dumps(load_breast_cancer(as_frame=False).data.tolist()))
    return Case("forest", "example:forest", rows)


def picture_case(folder: Path) -> Case:
    """A vision transformer with random weights, asked for parts of photos as JPEG files."""
    model, rows = folder / "picture", folder / "pictures"
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768)
    config.num_labels = 1000
    made = ViTForImageClassification(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 2:
                parameter.mul_(3)  # as they are, it hardly looks at the picture
        made.classifier.weight.mul_(4)
    made.save_pretrained(model)
    ViTImageProcessor().save_pretrained(model)
    rows.mkdir()
    for number, photo in enumerate(load_sample_images().images):
        for left, top in PLACES:
            part = Image.fromarray(photo).crop((left, top, left + CUT[0], top + CUT[1]))
            part.save(rows / f"{number}-{left}-{top}.jpg", quality=90)
    return Case("picture", str(model), rows, model / "preprocessor_config.json")


def export(case: Case, repository: Path) -> None:
    """The model in fp32, so that the peer can run the same file."""
    subprocess.run(
        [
            *(sys.executable, "-m", "shoal", "export", case.source, "--name", case.name),
            *("--precision", "fp32", "--repository", str(repository)),
        ],
        stdout=sys.stderr,
        check=True,
    )


def peers(servers: ExitStack, case: Case, repository: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Start the peers of a case: addresses of those that run, and why the others do not, which is told."""
    manifest = next(iter(served_manifests(repository, case.name)))
    onnx = repository / manifest.network / str(manifest.version) / "model.onnx"
    processor = ("--processor", case.processor) if case.processor else ()
    ways: dict[str, tuple[str, Sequence[str | Path]]]
    ways = {"FastAPI": ("fastapi", ("--onnx", onnx, *processor))}
    if case.processor is None:
        ways["FastAPI, scikit-learn"] = ("scikit_learn", ())
        ways["MLServer"] = ("mlserver", ("--cache", kept_by("mlserver")))
    started, left_out = {}, {}
    for way, (environment, arguments) in ways.items():
        try:
            started[way] = servers.enter_context(served_by(environment, case.name, arguments))
        except NotServing as error:
            left_out[f"{way}, {case.name}"] = str(error)
            err.print(f"{way} is left out: {error}", style="yellow", soft_wrap=True)
    return started, left_out


def differences(case: Case, urls: dict[str, str]) -> dict[str, str]:
    """What each server's answers have that those of the first, ours, have not; this is told, too."""
    rows = rows_of(case.rows)[:COMPARED]
    given = {way: asyncio.run(answers(way, url, case.name, rows)) for way, url in urls.items()}
    first = next(iter(given.values()))
    found = {}
    for way, labels in given.items():
        if unlike := next(filter(None, map(difference, first, labels)), ""):
            found[way] = unlike
            err.print(f"{case.name}: {way} answers otherwise: {unlike}", style="yellow", soft_wrap=True)
    return found


def difference(ours: Sequence[Label], theirs: Sequence[Label]) -> str:
    """What differs between two answers to a row, of which scores may by `TOLERANCE`; "": nothing."""
    names, others = [label.label for label in ours], [label.label for label in theirs]
    if names != others:
        return f"{', '.join(others)} instead of {', '.join(names)}"
    most = max(abs(a.score - b.score) for a, b in zip(ours, theirs, strict=True))
    return "" if most <= TOLERANCE else f"a score differs by {most:.2g}"


def _block(
    cases: Sequence[Case], urls: dict[str, dict[str, str]], seconds: float, *, backwards: bool
) -> dict[str, Any]:
    """Each load of each server once, in turn: figures by case, callers and server.

    Args:
        backwards: the last server is the first one, so that a machine that drifts favours none.
    """
    block: dict[str, Any] = {}
    for case in cases:
        asked = {"model": case.name, "rows": str(case.rows), "seconds": seconds}
        for callers in CALLERS:
            for way, url in list(urls[case.name].items())[:: -1 if backwards else 1]:
                load = asked | {"way": way, "url": url, "callers": callers}
                said = in_a_process("loadtest.bench_rows_client", load)
                block.setdefault(case.name, {}).setdefault(str(callers), {})[way] = said
    return block


def _table(name: str, loads: dict[str, Any], blocks: Sequence[dict[str, Any]]) -> Any:
    """Medians of blocks, with their range behind two of them."""
    columns = ["#callers", "server", "#rows/s", "#p50 ms", "#p99 ms", "#client CPUs"]
    made = show.table(f"{name}, one row a request: medians (ranges) of blocks", columns)
    for callers, ways in loads.items():
        for way, row in ways.items():
            of_blocks = [block[name][callers][way] for block in blocks]
            rate, p50 = (_range([block[key] for block in of_blocks], row[key]) for key in ("rate", "p50_ms"))
            made.add_row(callers, way, rate, p50, f"{row['p99_ms']:.1f}", f"{row['client_cpus']:.2f}")
    return made


def _range(values: Sequence[float], median: float) -> str:
    digits = 0 if median >= 100 else 1
    return f"{median:.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


if __name__ == "__main__":
    main()
