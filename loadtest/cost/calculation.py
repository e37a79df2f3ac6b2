"""What a measured rate costs.

A replica is one server on one machine; `rate` is what it was measured at, in requests per second. For `rps`
requests per second N = ceil(rps / (rate x headroom)) replicas are needed, and one more runs, so that one may
be lost. A token's share of the cost of a request is its share of the engine's time: the version's evidence
has the tokens per second of prefill and of decoding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest import comparing
from loadtest.cost.prices import EMBEDDING, GENERATION, Api, Machine, Prices
from shoal.errors import UsageError

HOURS_A_MONTH = 730.0
SECONDS_AN_HOUR = 3600.0
MILLION = 1e6
MOST_REPLICAS = 10_000  # an API that is cheaper up to there is always cheaper


@dataclass(frozen=True)
class Measured:
    """What a load test says of a version.

    Attributes:
        label: what it is called in tables.
        source: the report.
        rate: requests per second of one replica.
        highest: whether a search found it to be the highest within `slo`; else it is only what was sent.
        limited: whether the client was the limit, so that the server may be faster.
        slo: what was promised; "": nothing.
        cpu, cpus, gpus: of the machine.
        kind: of an API that does the same; "": none does.
        tokens_in, tokens_out: of a request, on average; None: not known.
        weights: seconds of engine time for a token of a prompt and of an answer; None: not known.
        joules: of a request; None: not measured.
    """

    label: str
    source: str
    rate: float
    highest: bool
    limited: bool
    slo: str
    cpu: str
    cpus: int
    gpus: tuple[str, ...]
    kind: str
    tokens_in: float | None
    tokens_out: float | None
    weights: tuple[float, float] | None
    joules: float | None


@dataclass(frozen=True)
class Wanted:
    """What is asked.

    Attributes:
        rps: requests per second of all callers.
        headroom: the share of the measured rate that a replica is planned with.
        spot: share of the replicas that run at the spot price.
    """

    rps: float
    headroom: float = 0.8
    spot: float = 0.0


def measured(path: Path) -> Measured:
    """Read a report.

    Raises:
        UsageError: it is none, or says of no rate that it can be served.
    """
    report = comparing.read(path)
    judged = report.get("slo")
    highest = report.get("max_rate")
    if "trials" in report and highest is None:
        raise UsageError(f"{path}: no rate keeps the promise {report['plan']['slo']}", hint="promise less")
    if judged is not None and not judged["met"]:
        raise UsageError(f"{path}: the promise {report['plan']['slo']} was missed", hint="use --find-max")
    if report["plan"].get("beside"):
        raise UsageError(
            f"{path} is of a server that rested while another was asked",
            hint="test it alone, with --find-max",
        )
    total = report["total"]
    if total["failures"] and judged is None:
        raise UsageError(f"{path}: {total['failures']} requests failed", hint="test with a lower rate")
    streams, served, machine = report.get("streams"), report.get("served") or {}, report["machine"]
    answered = total["requests"] - total["failures"]
    read = report.get("input_tokens")
    label = f"{report['plan']['model']}"
    if served:
        label += f" v{served['version']} {served['precision']}"
    return Measured(
        label=label,
        source=str(path),
        rate=float(highest or report["plan"].get("rate") or total["per_second"]),
        highest=highest is not None,
        limited=_limited(report),
        slo=report["plan"].get("slo", ""),
        cpu=str(machine["cpu"]),
        cpus=int(machine["cpus"]),
        gpus=tuple(machine.get("gpus", ())),
        kind=GENERATION if streams else EMBEDDING if served.get("task") == "sentence-similarity" else "",
        tokens_in=read / answered if read and answered else None,
        tokens_out=streams["tokens"] / answered if streams and answered else None,
        weights=_weights(served.get("speeds")),
        joules=report["joules"] / answered if report.get("joules") and answered else None,
    )


def _limited(report: Mapping[str, Any]) -> bool:
    """Whether the client was the limit: of a search, in the test of the lowest rate that missed it."""
    missed = [trial for trial in report.get("trials", ()) if not trial["met"]]
    if missed:
        return bool(min(missed, key=lambda trial: float(trial["rate"]))["client_limited"])
    return bool((report.get("client") or {}).get("limited")) or bool(report.get("client_limited"))


def _weights(speeds: Mapping[str, float] | None) -> tuple[float, float] | None:
    return (1 / speeds["prefill"], 1 / speeds["decode"]) if speeds else None


def on_machine(option: Measured, machine: Machine, wanted: Wanted, prices: Prices) -> dict[str, Any]:
    """The cost of an option on a machine; dollars, and `assumptions` in words.

    Raises:
        UsageError: a spot price is asked for and not known.
    """
    assumptions = []
    scale = machine.cpus / option.cpus if not option.gpus else 1.0  # a GPU does not get faster by CPUs
    if scale != 1:
        assumptions.append(f"the rate of {option.cpus} CPUs was multiplied by {scale:g}")
    here, there = ", ".join(option.gpus) or option.cpu, machine.gpu or machine.cpu
    alike = machine.gpu in option.gpus if option.gpus or machine.gpu else here.startswith(there)
    if not alike:
        assumptions.append(f"measured on {here}, not on {there}")
    if option.limited:
        assumptions.append("the client was the limit: the server may be faster")
    if not option.highest:
        assumptions.append("the rate is what was sent, and not the highest")
    rate = option.rate * scale
    rps = wanted.rps
    replicas = math.ceil(rps / (rate * wanted.headroom) - 1e-9) + 1
    hourly = machine.usd_per_hour
    if wanted.spot:
        if machine.spot_usd_per_hour is None:
            raise UsageError(
                f"the spot price of {machine.name} is not known",
                hint="give spot_usd_per_hour in a file of --prices",
            )
        hourly = (1 - wanted.spot) * hourly + wanted.spot * machine.spot_usd_per_hour
    request = replicas * hourly / (rps * SECONDS_AN_HOUR)
    made: dict[str, Any] = {
        "option": option.label,
        "machine": machine.name,
        "requests_per_second": rps,
        "rate_of_a_replica": rate,
        "replicas": replicas,
        "utilisation": rps / (replicas * rate),
        "usd_per_month": replicas * hourly * HOURS_A_MONTH,
        "usd_per_million_requests": request * MILLION,
        "usd_per_million_requests_at_best": hourly / (rate * SECONDS_AN_HOUR) * MILLION,
        "usd_per_million_input_tokens": None,
        "usd_per_million_output_tokens": None,
        "kwh_per_million_requests": None,
        "usd_of_energy_per_million_requests": None,
        "assumptions": assumptions,
        "sources": [option.source, f"{machine.name}: {machine.source} ({machine.date})"],
    }
    if option.weights and option.tokens_in and option.tokens_out:
        of_in, of_out = option.weights
        unit = request / (option.tokens_in * of_in + option.tokens_out * of_out)
        made["usd_per_million_input_tokens"] = unit * of_in * MILLION
        made["usd_per_million_output_tokens"] = unit * of_out * MILLION
    elif option.tokens_in and not option.tokens_out:
        made["usd_per_million_input_tokens"] = request / option.tokens_in * MILLION
    if option.joules is not None:
        made["kwh_per_million_requests"] = option.joules * MILLION / 3.6e6
        if prices.energy is not None:
            made["usd_of_energy_per_million_requests"] = (
                made["kwh_per_million_requests"] * prices.energy.usd_per_kwh
            )
            made["sources"].append(f"electricity: {prices.energy.source} ({prices.energy.date})")
    return made


def by_api(
    option: Measured, api: Api, row: Mapping[str, Any], wanted: Wanted, machine: Machine
) -> dict[str, Any]:
    """The same tokens from an API, and from which rate on the machine is cheaper.

    Args:
        row: of `on_machine`, the one that it is compared with.
    """
    request = (option.tokens_in or 0) * api.usd_per_million_input_tokens / MILLION
    request += (option.tokens_out or 0) * api.usd_per_million_output_tokens / MILLION
    rps = row["requests_per_second"]
    return {
        "option": option.label,
        "api": api.name,
        "requests_per_second": rps,
        "usd_per_month": request * rps * SECONDS_AN_HOUR * HOURS_A_MONTH,
        "usd_per_million_requests": request * MILLION,
        "beside": machine.name,
        "cheaper_from_rps": _even(request, row, wanted),
        "sources": [f"{api.name}: {api.source} ({api.date})"],
    }


def _even(request: float, row: Mapping[str, Any], wanted: Wanted) -> float | None:
    """The lowest rate at which the replicas that it needs cost less; None: there is none.

    With more replicas the one that is spare weighs less, so the bound is `at_best` over the headroom.
    """
    planned = row["rate_of_a_replica"] * wanted.headroom
    replica = row["usd_per_month"] / row["replicas"] / HOURS_A_MONTH / SECONDS_AN_HOUR  # dollars a second
    if request * planned <= replica:
        return None
    needed = math.ceil(replica / (request * planned - replica) - 1e-9)
    return float(replica * (max(1, needed) + 1) / request) if needed <= MOST_REPLICAS else None


def options_of(paths: Sequence[Path]) -> list[Measured]:
    """The options of several reports; labels that are alike get what tells them apart."""
    found = [measured(path) for path in paths]
    labels = [option.label for option in found]
    return [
        option
        if labels.count(option.label) == 1
        else Measured(**{**vars(option), "label": f"{option.label}, {option.slo or option.source}"})
        for option in found
    ]
