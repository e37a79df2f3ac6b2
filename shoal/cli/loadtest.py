"""`shoal loadtest`: load on a served model, and two such tests side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from shoal.cli.calls import decoder_at
from shoal.cli.options import DEFAULT_REPOSITORY, Json, Repository
from shoal.cli.steps import err, find_service, out, print_json
from shoal.errors import MissingDependency, UsageError
from shoal.manifest import served_manifests
from shoal.progress import Bars

USERS = 8
TOLERANCE = 0.05


class _RunsByDefault(TyperGroup):
    """`shoal loadtest MODEL` is `shoal loadtest run MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="loadtest", cls=_RunsByDefault, context_settings={"help_option_names": ["-h", "--help"]}
)

Tolerance = Annotated[
    float, typer.Option(min=0.0, max=10.0, help="How much slower is no regression; 0.05 is 5 %.")
]


@app.command()
def run(
    model: Annotated[str, typer.Argument(help="The model to load.")] = "minilm",
    users: Annotated[
        int | None,
        typer.Option(min=1, help=f"Closed loop: simulated users who wait for each answer. Default: {USERS}."),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(help="Open loop: requests per second, whether or not earlier ones are answered."),
    ] = None,
    arrival: Annotated[
        str,
        typer.Option(
            help="Open loop: poisson (the default), constant, or a file of JSON lines with at, in seconds."
        ),
    ] = "",
    workload: Annotated[
        str,
        typer.Option(
            help="short, chat, rag, batch, mixed, or a file of JSON lines (docs/loadtest.md)."
            " Default: mixed, and chat for a model that generates text."
        ),
    ] = "",
    seconds: Annotated[int, typer.Option(min=1, max=86_400, help="How many seconds.")] = 10,
    slo: Annotated[
        str,
        typer.Option(help="What is promised: p99=80ms, or ttft_p95=500ms,itl_p95=60ms. Missed: exit code 1."),
    ] = "",
    find_max: Annotated[
        bool, typer.Option("--find-max", help="Search the highest rate that keeps --slo.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(help="An earlier report.json to compare with. A regression: exit code 1."),
    ] = None,
    beside: Annotated[
        str,
        typer.Option(
            help="host:port of a second server, asked in turn, --seconds each. Slower than it: exit code 1."
        ),
    ] = "",
    tolerance: Tolerance = TOLERANCE,
    protocol: Annotated[str, typer.Option(help="grpc, http or both.")] = "both",
    grpc_url: Annotated[
        str | None, typer.Option(help="host:port. Default: the server of --repository.")
    ] = None,
    http_url: Annotated[
        str | None, typer.Option(help="host:port. Default: the server of --repository.")
    ] = None,
    report: Annotated[Path, typer.Option(help="Folder for report.html and report.json.")] = Path(
        "reports/latest"
    ),
    repository: Repository = DEFAULT_REPOSITORY,
    as_json: Json = False,
) -> None:
    """Run Locust against a served model and write a report with plots.

    Exit code 1 if --slo was missed, or --against or --beside shows a regression; without them, if a request
    failed. A machine that becomes slower is slower for both servers of --beside; a report of yesterday does
    not know it. To compare two reports: shoal loadtest diff BEFORE AFTER. Locust's web page:
    locust -f loadtest/locustfile.py

    Example: shoal loadtest --users 16 --seconds 30

    Example: shoal loadtest minilm --rate 50 --slo p99=80ms

    Example: shoal loadtest minilm --rate 40 --protocol grpc --seconds 32 --beside 127.0.0.1:18001

    Example: shoal loadtest smollm2 --workload rag --slo ttft_p95=500ms,itl_p95=60ms --find-max
    """
    headless, comparing, notes, searching = _rooms()
    is_open = rate is not None or bool(arrival) or find_max
    _check(protocol, users if is_open else None, against if find_max else None)
    if beside:
        _check_beside(protocol, is_open and not find_max, against)
        beside = beside.replace("localhost", "127.0.0.1")
    _check_words(slo, [url for url in (grpc_url, http_url, beside or None) if url is not None])
    served = None
    before = comparing.read(against) if against is not None else None
    if (grpc_url is None and protocol != "http") or (http_url is None and protocol != "grpc"):
        server = find_service(repository)
        grpc_url, http_url = grpc_url or server.grpc, http_url or server.http
        manifest = next(served_manifests(repository, model), None)
        served = headless.about(manifest) if manifest else None
    plan = headless.Plan(
        model,
        0 if is_open else users or USERS,
        seconds,
        protocol,
        grpc_url or "-",
        http_url or "-",
        decoder_at(protocol, grpc_url, http_url, model),
        workload,
        rate,
        (arrival or "poisson") if is_open else "",
        slo,
        served,
        beside=beside,
    )
    if beside and beside in [url.replace("localhost", "127.0.0.1") for url in (plan.grpc_url, plan.http_url)]:
        raise UsageError(f"--beside {beside} is the server itself", hint="give the address of another one")
    progress = Bars(err)
    if find_max:
        summary = searching.find_max(plan, report, progress=progress)
    else:
        summary = headless.run(plan, report, before, tolerance, progress=progress)
    if as_json:
        print_json(summary)
    else:
        out.print(headless.as_table(summary))
        if find_max:
            out.print(searching.as_table(summary))
        if "compared" in summary:
            out.print(comparing.as_table(summary["compared"]))
        for line in notes.notes(summary):
            out.print(line, highlight=False)
        out.print(f"report: {report / 'report.html'}", highlight=False)
    raise typer.Exit(1 if _failed(summary) else 0)


def _check(protocol: str, users: int | None, against: Path | None) -> None:
    """What does not go together.

    Args:
        users: that are given beside an open loop.
        against: that is given beside --find-max.
    """
    from loadtest import headless

    if protocol not in headless.PROTOCOLS:
        raise UsageError(f"unknown protocol {protocol}", hint=f"known: {', '.join(headless.PROTOCOLS)}")
    if users is not None:
        raise UsageError("--users is of a closed loop, --rate, --arrival and --find-max of an open one")
    if against is not None:
        raise UsageError("--against needs one rate: use --rate instead of --find-max")


def _check_beside(protocol: str, has_rate: bool, against: Path | None) -> None:
    if protocol == "both":
        raise UsageError("--beside is one address: add --protocol grpc, or http")
    if not has_rate:
        raise UsageError("--beside needs one --rate, in requests per second, and no --find-max")
    if against is not None:
        raise UsageError("--beside and --against are two comparisons: give one of them")


def _check_words(promise: str, urls: Sequence[str]) -> None:
    """What can be told before a server is looked for."""
    from clients.vocabulary import host_and_port
    from loadtest import slo

    if promise:
        slo.parse(promise)
    for url in urls:
        host_and_port(url)


def _failed(summary: dict[str, Any]) -> bool:
    if "trials" in summary:
        return summary["max_rate"] is None
    total = summary["total"]
    missed = not summary.get("slo", {"met": True})["met"]
    # What was promised, or what was before, says how many failures are too many.
    judged = "slo" in summary or "compared" in summary
    return (
        missed
        or summary.get("compared", {"regression": False})["regression"]
        or (bool(total["failures"]) and not judged)
    )


@app.command()
def diff(
    before: Annotated[Path, typer.Argument(help="report.json, or the folder that holds it.")],
    after: Annotated[Path, typer.Argument(help="report.json, or the folder that holds it.")],
    tolerance: Tolerance = TOLERANCE,
    as_json: Json = False,
) -> None:
    """Compare two load tests: slower, faster, or no difference. A regression: exit code 1.

    Example: shoal loadtest diff reports/monday reports/today --tolerance 0.1
    """
    _, comparing, _, _ = _rooms()
    compared = comparing.compare(comparing.read(before), comparing.read(after), tolerance)
    if as_json:
        print_json(compared)
    else:
        out.print(comparing.as_table(compared))
        for line in comparing.lines(compared):
            out.print(line, highlight=False)
    raise typer.Exit(1 if compared["regression"] else 0)


def _rooms() -> Any:
    try:
        from loadtest import comparing, headless, notes, searching
    except ModuleNotFoundError as error:
        raise MissingDependency(str(error.name), extra="loadtest") from error
    return headless, comparing, notes, searching
