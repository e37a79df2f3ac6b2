"""The command `shoal`: parses, calls the rooms, prints. Here alone an error becomes one line."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.markup import escape

from shoal import __version__, interrupts, show, traces
from shoal.cli import bench, deploy, keys, loadtest, models, rollout, versions
from shoal.cli.calls import chat, infer
from shoal.cli.canary import canary, shadow
from shoal.cli.cost import cost
from shoal.cli.gateway import gateway
from shoal.cli.options import (
    DEFAULT_REPOSITORY,
    Detach,
    Gateway,
    GatewayPort,
    GrpcPort,
    HealthPort,
    Host,
    HttpPort,
    Json,
    MetricsPort,
    Repository,
    StartTimeout,
)
from shoal.cli.steps import (
    documents,
    err,
    find_service,
    out,
    print_json,
    problems_of,
    serve_until_stopped,
    start_service,
    tell_addresses,
)
from shoal.cli.stores import pull, push
from shoal.cli.tune import tune
from shoal.errors import ExportError, ServerError, ShoalError, UsageError, first_line

app = typer.Typer(
    name="shoal",
    help="From a Hugging Face checkpoint to a proven, load-tested Triton endpoint.\n\n"
    "Start with: shoal doctor, then shoal up",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"shoal {__version__}")
        raise typer.Exit


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine can do, what is missing and how to get it.

    Example: shoal doctor
    """
    from shoal.cli.doctor import examine

    findings = examine()
    missing = [finding for finding in findings if finding.state == "missing"]
    if as_json:
        print_json({"ok": not missing, "findings": [vars(finding) for finding in findings]})
    else:
        made = show.table("", ["", "what", "found", "what to do"], wraps=["found", "what to do"])
        marks = {"ok": "[green]✓[/]", "missing": "[red]✗[/]", "optional": "[yellow]·[/]"}
        for finding in findings:
            made.add_row(marks[finding.state], finding.what, escape(finding.detail), escape(finding.remedy))
        out.print(made)
    raise typer.Exit(1 if missing else 0)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": False})
def serve(
    context: typer.Context,
    repository: Repository = DEFAULT_REPOSITORY,
    detach: Detach = False,
    http_port: HttpPort = 8000,
    grpc_port: GrpcPort = 8001,
    metrics_port: MetricsPort = 8002,
    health_port: HealthPort = 0,
    gateway: Gateway = False,
    gateway_port: GatewayPort = 8080,
    host: Host = "127.0.0.1",
    timeout: StartTimeout = 120.0,
    as_json: Json = False,
) -> None:
    """Serve the model repository on the embedded Triton, on loopback, and follow what changes in it.

    A server that died or hangs is started again, and what promote and rollback ask for is taken up meanwhile.
    What follows a -- goes to tritonserver: options for logs, traces, metrics and TLS, no others.

    Example: shoal serve --detach --gateway

    Example: shoal serve --detach --http-port 0 -- --log-verbose=1
    """
    ports = (http_port, grpc_port, metrics_port, health_port)
    front = gateway_port if gateway else None
    started = start_service(repository, ports, host, detach, timeout, context.args, front)
    tell_addresses(started, as_json)
    if not detach:
        serve_until_stopped(started)


@app.command()
def status(
    repository: Annotated[Path | None, typer.Option("--repository", "-r", help="Only its server.")] = None,
    as_json: Json = False,
) -> None:
    """The embedded servers that run, whether every model answers, and what is asked for but not served.

    Exit code 1 if none runs or one does not answer.

    Example: shoal status --json
    """
    from serving.service import ended, services

    known = [*services(repository), *ended(repository)]
    rows = [{**found.to_dict(), "problem": found.problem} for found in known]
    if as_json:
        print_json({"servers": rows})
    elif not rows:
        of, flag = (f" of {repository}", f" -r {repository}") if repository else ("", "")
        said = f"no embedded server{of} runs; start one: shoal serve --detach{flag}"
        out.print(said, highlight=False, markup=False, soft_wrap=True)
    else:
        front = ["gateway"] if any(row["gateway"] for row in rows) else []
        columns = ["#pid", "http", "grpc", *front, "repository", "state"]
        made = show.table("", columns, wraps=["repository"])
        for row in rows:
            state = "[red]not serving[/]" if row["problem"] else "[green]serving[/]"
            before = [row["gateway"] or ""] if front else []
            made.add_row(str(row["pid"]), row["http"], row["grpc"], *before, row["repository"], state)
        out.print(made)
        for line in (line for row in rows for line in problems_of(row)):
            out.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(0 if rows and not any(row["problem"] for row in rows) else 1)


@app.command()
def logs(
    repository: Repository = DEFAULT_REPOSITORY,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the last lines.")] = 40,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing what is added.")] = False,
    as_json: Json = False,
) -> None:
    """What the server of this repository wrote.

    Example: shoal logs -n 100 --follow
    """
    if as_json and follow:
        raise UsageError("--json prints one document, so it does not go with --follow")
    server = find_service(repository, dead=True)
    text = server.log.read_text(errors="replace").splitlines()[-lines:]
    if as_json:
        print_json({"log": str(server.log), "lines": text})
        return
    typer.echo("\n".join(text))
    if follow:
        with server.log.open(errors="replace") as log:
            log.seek(0, os.SEEK_END)
            while server.alive:
                if line := log.readline():
                    typer.echo(line, nl=False)
                else:
                    time.sleep(0.2)


@app.command()
def stop(
    repository: Repository = DEFAULT_REPOSITORY,
    everything: Annotated[bool, typer.Option("--all", help="Servers of every repository.")] = False,
    as_json: Json = False,
) -> None:
    """Stop the server of this repository: running requests are finished first.

    What one that ended by itself has left, its log, is removed.

    Example: shoal stop --all
    """
    from serving import service

    stopped = []
    chosen = None if everything else repository
    for found in service.services(chosen):
        clean = service.stop(found)
        stopped.append({"pid": found.pid, "repository": str(found.repository), "killed": not clean})
    cleared = service.ended(chosen)
    for found in cleared:
        service.stop(found)
    if not stopped and cleared and not as_json:
        err.print("no server ran; the log of one that had ended by itself was removed")
        return
    if not stopped and not cleared:
        raise ServerError(f"no server of {repository} runs", hint="shoal status shows what runs")
    if as_json:
        print_json({"stopped": stopped})
        return
    for row in stopped:
        err.print(f"stopped {row['pid']}{' (it had to be killed)' if row['killed'] else ''}", highlight=False)


for command in (
    *models.COMMANDS,
    infer,
    chat,
    gateway,
    tune,
    cost,
    push,
    pull,
    canary,
    shadow,
    *versions.COMMANDS,
):
    app.command()(command)
app.add_typer(loadtest.app, help="Run Locust against a served model, or compare two such tests.")
app.add_typer(keys.app, name="keys")
app.add_typer(bench.app, name="bench")
app.add_typer(deploy.app, name="deploy")
app.add_typer(rollout.app, name="rollout")


def main() -> NoReturn:
    """Run the command. Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted, 143 terminated."""
    documents.clear()
    interrupts.install()  # so that what is half done is cleared away
    try:
        code = app(standalone_mode=False)
        if code == 130:  # click turns Ctrl-C into this
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except ShoalError as error:
        # What a library raised behind it is for those who want to know more.
        behind = isinstance(error, ExportError) and not isinstance(
            error.__cause__, ShoalError | OSError | None
        )
        _fail(error.message, error.hint, error.exit_code, error if behind else None)
    except typer.Abort:
        _fail("interrupted", "", 130)
    except KeyboardInterrupt:
        _fail("interrupted", "", 130)
    except BrokenPipeError:
        _mute()
        sys.exit(1)
    except OSError as error:  # a full disk behind standard output, say
        _mute()
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", "", 1, error)
    except Exception as error:
        if hasattr(error, "format_message"):  # click's own: an unknown flag, a missing argument
            if not error.format_message():  # no command: the help was printed
                sys.exit(2)
            _fail(re.sub(r"\s+", " ", error.format_message()), "see --help", 2)
        if os.environ.get("SHOAL_DEBUG"):
            raise
        _fail(f"{type(error).__name__}: {first_line(error)}", "this is a defect of Shoal's own", 1, error)


def _mute() -> None:
    """What is still to be printed would fail as Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, hint: str, code: int, trace: Exception | None = None) -> NoReturn:
    """Print one line, and the way to the whole traceback where there is one, and exit."""
    if trace is not None and (log := traces.keep(trace)) is not None:
        hint = "; ".join(part for part in (hint, f"traceback: {log}") if part)
    if "--json" in sys.argv and not documents:  # what was printed before it failed is the one
        with contextlib.suppress(BrokenPipeError):
            print_json({"error": message, "hint": hint})
    way_out = f" [dim]({escape(hint)})[/]" if hint else ""
    err.print(f"[bold red]error:[/] {escape(message)}{way_out}", highlight=False)
    sys.exit(code)
