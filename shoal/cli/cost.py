"""`shoal cost`: what a rate that was measured costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.options import Json
from shoal.cli.steps import out, print_json
from shoal.errors import MissingDependency, UsageError


def cost(
    reports: Annotated[
        list[Path],
        typer.Argument(help="report.json of shoal loadtest, or folders that hold one; each is an option."),
    ],
    rps: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Requests per second of all callers. Default: what the first report's replica takes.",
        ),
    ] = None,
    machine: Annotated[
        list[str] | None,
        typer.Option(
            help="Of the price list; several are compared. Default: all that have a GPU if the test had."
        ),
    ] = None,
    prices: Annotated[
        Path | None, typer.Option(help="Your price list (TOML, docs/cost.md). Its entries win over ours.")
    ] = None,
    headroom: Annotated[
        float,
        typer.Option(min=0.05, max=1.0, help="Share of the measured rate that a replica is planned with."),
    ] = 0.8,
    spot: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the replicas that run at the spot price.")
    ] = 0.0,
    report: Annotated[Path, typer.Option(help="Folder for cost.html and cost.json.")] = Path("reports/cost"),
    as_json: Json = False,
) -> None:
    """What a rate that a load test measured costs: replicas, dollars a month and a million tokens, and APIs.

    The reports are of shoal loadtest with --slo and --find-max.

    Example: shoal cost reports/latest --rps 500
    """
    try:
        from loadtest.cost import calculation, page
        from loadtest.cost import prices as lists
    except ModuleNotFoundError as error:
        raise MissingDependency(str(error.name), extra="loadtest") from error
    known = lists.read(prices)
    if unknown := [name for name in machine or () if name not in known.machines]:
        raise UsageError(
            f"the price list has no machine {unknown[0]}", hint=f"it has {', '.join(known.machines)}"
        )
    options = calculation.options_of(reports)
    wanted = calculation.Wanted(rps or options[0].rate * headroom, headroom, spot)
    rows, apis = [], []
    for option in options:
        chosen = [
            known.machines[name]
            for name in machine or known.machines
            if machine or bool(known.machines[name].gpu) == bool(option.gpus)
        ]
        if not chosen:
            raise UsageError(f"the price list has no machine like that of {option.source}", hint="name one")
        own = [(each, calculation.on_machine(option, each, wanted, known)) for each in chosen]
        rows += [row for _, row in own]
        cheapest, row = min(own, key=lambda pair: float(pair[1]["usd_per_month"]))
        if option.tokens_in is not None:
            apis += [
                calculation.by_api(option, api, row, wanted, cheapest)
                for api in known.apis.values()
                if api.kind == option.kind
            ]
    found = {"machines": rows, "apis": apis, "headroom": headroom}
    page.write(found, report)
    if as_json:
        print_json(found)
        return
    for table in page.as_tables(found):
        out.print(table)
    for line in page.notes(found):
        out.print(line, highlight=False, soft_wrap=True)
    out.print(f"report: {report / 'cost.html'}", highlight=False)
