"""What several commands do: export, start a service, wait for it, connect to it, print."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement

from shoal import show, tensors
from shoal.admin import key_from_environment
from shoal.dialect import TEXT_INPUT
from shoal.errors import MissingDependency, ServerError, ShoalError, UsageError
from shoal.evidence import notes_of, serving_lines
from shoal.progress import Bars

out = Console(soft_wrap=False)
err = Console(stderr=True, soft_wrap=True)
documents: list[Any] = []  # that this command has printed
_WIDEST = 1000  # columns that a table may need


def recipe_from(file: Path | None, **flags: Any) -> Any:
    """A recipe file, then the flags that were given; for what the source is made for.

    Raises:
        UsageError: either is wrong.
    """
    source = str(flags.get("source") or "")
    if source.startswith((".", "/", "~")) and not Path(source).expanduser().exists():
        hint = "give a folder, an installed package or a hub id"
        raise UsageError(f"no checkpoint at {source}", hint=hint)  # before PyTorch is loaded
    run = exporting()  # says what to install, where something is missing
    from export.recipe import read_toml

    values: dict[str, Any] = read_toml(file) if file else {}
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in flags.items()}
    # A zero is given, and may be wrong; a switch that is off is not.
    given = {key: value for key, value in plain.items() if value is not None and value is not False}
    return run.recipe_of(values | given)


def run_export(settings: Any, repository: Path, as_json: bool) -> dict[str, Any]:
    """Export, and show the evidence: of what was published, and of what was refused."""
    run = exporting()
    refused: list[Any] = []
    try:
        outcome = run.export(settings, repository, progress=Bars(err), on_evidence=refused.extend)
    except ShoalError:
        if refused and not as_json:
            show_evidence(refused, settings.name)
        raise
    result: dict[str, Any] = outcome.to_dict()
    versions = {entry["precision"]: entry["version"] for entry in result["published"]}
    for row in result["evidence"]:
        row["version"] = versions.get(row["precision"])
    if not as_json:
        if result["evidence"]:
            show_evidence(outcome.evidence, settings.name, [row["version"] for row in result["evidence"]])
        for note in notes_of(result["evidence"]):
            out.print(f"note: {note}", highlight=False, markup=False)
        served = result["published"][-1]
        out.print(f"task: {result['task']}", highlight=False)
        out.print(
            f"{repository}: version {served['version']} ({served['precision']}) of {settings.name} is chosen",
            highlight=False,
        )
        tell_who_takes_it_up(repository)
    return result


def tell_who_takes_it_up(repository: Path) -> None:
    """Say that a running server needs some seconds for what was just exported."""
    from serving import service

    if running := service.services(repository):
        out.print(f"the server that runs (process {running[-1].pid}) takes it up within some seconds")


def show_evidence(evidence: Sequence[Any], name: str, versions: Sequence[int | None] = ()) -> None:
    """A table of what a model's versions were measured to be; see `export.evidence.evidence_table`."""
    from export.evidence import evidence_table

    made = evidence_table(evidence, f"{name} against the original", versions)
    if any(entry.failures for entry in evidence):
        out.print(made)  # the reasons take as many lines as they need
    else:
        # Figures that do not fit would be cut off, and then they would be others.
        made.width = Measurement.get(out, out.options.update_width(_WIDEST), made).maximum
        out.print(made, crop=False)
    for line in serving_lines([entry.to_dict() for entry in evidence]):
        out.print(line, highlight=False, markup=False)


def exporting() -> Any:
    """The room `export`, which needs torch.

    Raises:
        MissingDependency: its extra is not installed.
    """
    try:
        if "export.run" in sys.modules:
            from export import run
        else:
            with Bars(err).step("Open PyTorch and the libraries of the export"):
                from export import run
    except ModuleNotFoundError as error:
        raise MissingDependency(str(error.name), extra="export") from error
    return run


def verify_over_the_wire(name: str, repository: Path, address: str) -> dict[str, Any]:
    """Compare a running server's answers to raw inputs with the original library's; see `export.run`."""
    manifest, answers = exporting().verify_wire(name, repository, address, progress=Bars(err))
    about = {"model": manifest.model, "version": manifest.version, "precision": manifest.precision}
    return {**about, "url": address, **answers.to_dict()}


def tell_wire(answers: Mapping[str, Any]) -> None:
    """What came of it, in a line."""
    share = f"{100 * answers['agreement']:.4g} % of {answers['inputs']} raw inputs"
    out.print(f"over the wire: {share} are answered as by {answers['original']}", highlight=False)
    for failure in answers["failures"]:
        err.print(f"[red]refused:[/] {escape(failure)}", highlight=False)


def check_startable(
    repository: Path, ports: tuple[int, int, int, int], gateway_port: int | None = None
) -> None:
    """Refuse before a long export what would fail after it.

    Raises:
        ServerError: a port is taken, maybe by this repository's own server.
        MissingDependency: there is to be a gateway, and its packages are not installed.
    """
    if gateway_port is not None:
        check_gateway()
    from serving import service
    from serving.ports import Ports, free_port, free_ports

    try:
        free_ports(Ports(*ports[:3]))
        free_port("health", ports[3])
        if gateway_port is not None:
            free_port("gateway", gateway_port)
    except ServerError as error:
        if not service.services(repository):
            raise
        raise ServerError(
            f"{error.message}: a server of {repository} runs already, and takes up what is exported",
            hint="shoal export; or shoal stop before",
        ) from None


def check_gateway() -> None:
    """Refuse at once what would fail in another process.

    Raises:
        MissingDependency: the packages of the gateway are not installed.
    """
    try:
        import serving.gateway.run  # noqa: F401 - whether it can be
    except ModuleNotFoundError as error:
        raise MissingDependency(str(error.name), extra="gateway") from error


def has_gateway() -> bool:
    """Whether the packages of the gateway are installed."""
    try:
        check_gateway()
    except MissingDependency:
        return False
    return True


def start_service(
    repository: Path,
    ports: tuple[int, int, int, int],
    host: str,
    detach: bool,
    timeout: float,
    arguments: Sequence[str],
    gateway_port: int | None = None,
) -> Any:
    """Start a service, with progress; see `serving.service.start`.

    Args:
        ports: HTTP, gRPC, metrics, health.
        gateway_port: of a gateway; None: there is none.

    Raises:
        MissingDependency: there is to be a gateway, and its packages are not installed.
    """
    if gateway_port is not None:
        check_gateway()
    from serving import service
    from serving.ports import Ports

    for running in service.services(repository):
        err.print(
            f"[yellow]note:[/] {escape(str(repository))} is served already, by process {running.pid};"
            " `shoal stop` ends both",
            highlight=False,
        )
    with Bars(err).step("Start Triton and wait until every model answers"):
        started = service.start(
            repository,
            Ports(*ports[:3]),
            health_port=ports[3],
            gateway_port=gateway_port,
            host=host,
            detach=detach,
            timeout=timeout,
            arguments=arguments,
        )
    for name, reason in started.refused.items():
        err.print(f"[yellow]not served:[/] {escape(name)}: {escape(reason)}", highlight=False)
    return started


def tell_addresses(service: Any, as_json: bool) -> None:
    """Tell where a service listens."""
    facts = service.to_dict()
    if as_json:
        print_json(facts)
        return
    out.print(
        f"serving {facts['repository']}\n  http    {facts['http']}\n  grpc    {facts['grpc']}\n"
        f"  metrics {facts['metrics']}\n  health  {facts['health']}\n  log     {facts['log']}",
        highlight=False,
        soft_wrap=True,
    )
    if facts["gateway"]:
        line = (
            f'  gateway {facts["gateway"]}/v1, for OpenAI(base_url="{facts["gateway"]}/v1", api_key="none")'
        )
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def problems_of(row: dict[str, Any]) -> list[str]:
    """What to tell of a server below the table of `shoal status`: why it does not serve, and what it refused.

    Args:
        row: `Service.to_dict`, with its `problem`.
    """
    told = [f"{row['pid']}: {row['problem']}"] if row["problem"] else []
    for reason in dict.fromkeys(row["refused"].values()):  # the models of one ensemble are refused together
        names = ", ".join(name for name, why in row["refused"].items() if why == reason)
        told.append(f"{row['pid']}: not taken up: {names}: {reason}")
    return told


def serve_until_stopped(running: Any) -> None:
    """Serve until Ctrl-C, SIGTERM (see `main`), `shoal stop`, or the service's own end."""
    from serving import service

    err.print("Ctrl-C stops it", style="dim")
    try:
        while running.alive:
            time.sleep(0.3)
        if error := running.end:
            raise error
    except KeyboardInterrupt:
        err.print("stopping: running requests are finished first")
    finally:
        try:
            service.stop(running)
        except KeyboardInterrupt:
            err.print("the server ends by itself when they are finished; shoal status shows whether it runs")
            raise


def find_service(repository: Path, *, dead: bool = False) -> Any:
    """The newest service of a repository that runs.

    Args:
        dead: where none runs, one that ended by itself.

    Raises:
        ServerError: there is none.
    """
    from serving import service

    running, ended = service.services(repository), service.ended(repository)
    found = running or (ended if dead else [])
    if not found:
        reason = ended[-1].end if ended else None
        why = f": the last one ended: {reason.message}" if reason else ""
        raise ServerError(f"no server of {repository} runs{why}", hint="shoal serve --detach")
    return found[-1]


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
    address = url or getattr(find_service(repository), protocol)
    return kinds[protocol](address, timeout=timeout, admin_key=key_from_environment()), address


def first_answer(protocol: str, server: Any, model: str) -> dict[str, Any]:
    """One row's answer or a few words, so that a person sees that it works."""
    client, address = connect(protocol, getattr(server, protocol), server.repository, 30.0)
    with client:
        metadata = client.metadata(model)
        if is_decoder(metadata):
            arrays = {TEXT_INPUT: np.array([[b"Fish swim in"]], object)}
            start = time.perf_counter()
            shown = client.complete("Fish swim in", model=model, max_tokens=12, temperature=0).text
        else:
            arrays = tensors.sample_arrays(client.config(model), metadata)
            start = time.perf_counter()
            shown = show.one_answer(tensors.as_rows([client.infer(model, arrays)]))
        elapsed = 1e3 * (time.perf_counter() - start)
    return {
        "protocol": protocol,
        "url": address,
        "ms": elapsed,
        "shown": shown,
        "inputs": tensors.as_protocol(arrays),
    }


def is_decoder(metadata: Mapping[str, Any]) -> bool:
    """Whether a served model generates text, by its inputs."""
    return any(entry["name"] == TEXT_INPUT for entry in metadata["inputs"])


def print_json(value: Any) -> None:
    """The one document on stdout."""
    documents.append(value)
    typer.echo(json.dumps(value, indent=2, default=str))
