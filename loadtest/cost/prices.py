"""Price lists: TOML with machines, APIs and electricity, each entry with its source."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from shoal.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OURS = Path(__file__).with_name("prices.toml")
GENERATION, EMBEDDING = "text-generation", "embedding"


@dataclass(frozen=True)
class Machine:
    """A machine by the hour.

    Attributes:
        usd_per_hour: for as long as one wants it.
        spot_usd_per_hour: while nobody else wants it; None: not known.
        cpu, cpus: the beginning of the processor's name, and how many CPUs.
        gpu: name of its GPU; "": none.
        source, date: where the price stands, and when it was read there.
    """

    name: str
    usd_per_hour: float
    cpu: str
    cpus: int
    source: str
    date: str
    spot_usd_per_hour: float | None = None
    gpu: str = ""


@dataclass(frozen=True)
class Api:
    """A service by the token.

    Attributes:
        kind: `text-generation` or `embedding`.
        usd_per_million_input_tokens, usd_per_million_output_tokens: its price.
        source, date: see `Machine`.
    """

    name: str
    kind: str
    usd_per_million_input_tokens: float
    source: str
    date: str
    usd_per_million_output_tokens: float = 0.0


@dataclass(frozen=True)
class Energy:
    """Electricity.

    Attributes:
        usd_per_kwh: its price.
        source, date: see `Machine`.
    """

    usd_per_kwh: float
    source: str
    date: str


@dataclass(frozen=True)
class Prices:
    """A price list; see `read`."""

    machines: Mapping[str, Machine]
    apis: Mapping[str, Api]
    energy: Energy | None


def read(own: Path | None = None) -> Prices:
    """Our list, with the entries of another one in place of ours, or beside them.

    Raises:
        UsageError: the file cannot be read, or an entry is not whole.
    """
    lists = [_tables(OURS)] + ([_tables(own)] if own is not None else [])
    machines: dict[str, Machine] = {}
    apis: dict[str, Api] = {}
    energy = None
    for path, table in zip([OURS, own or OURS], lists, strict=False):
        for name, entry in _entries(path, table, "machines").items():
            machines[name] = _made(Machine, path, f"machines.{name}", {"name": name, **entry})
        for name, entry in _entries(path, table, "apis").items():
            apis[name] = _made(Api, path, f"apis.{name}", {"name": name, **entry})
        if "energy" in table:
            energy = _made(Energy, path, "energy", table["energy"])
    return Prices(machines, apis, energy)


def _tables(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no price list: {error}", hint=f"{OURS} is one") from error
    if unknown := sorted(table.keys() - {"machines", "apis", "energy"}):
        raise UsageError(f"{path} has {unknown[0]!r}", hint="a price list has machines, apis and energy")
    return table


def _entries(path: Path, table: Mapping[str, Any], kind: str) -> dict[str, Any]:
    found = table.get(kind, {})
    if not isinstance(found, dict) or not all(isinstance(entry, dict) for entry in found.values()):
        raise UsageError(f"{path}: {kind} holds no entries", hint=f'an entry begins [{kind}."its name"]')
    return found


def _made(kind: Any, path: Path, name: str, entry: Any) -> Any:
    """An entry, with every field that it needs, and no other."""
    if not isinstance(entry, dict):
        raise UsageError(f"{path}: {name} is no table")
    known = kind.__dataclass_fields__
    given = {key: str(value) if isinstance(value, date) else value for key, value in entry.items()}
    if unknown := sorted(given.keys() - known.keys()):
        raise UsageError(
            f"{path}: {name} has {unknown[0]!r}", hint=f"it has {', '.join(sorted(known.keys() - {'name'}))}"
        )
    try:
        made = kind(**given)
    except TypeError as error:
        missing = str(error).rpartition(": ")[2]
        raise UsageError(f"{path}: {name} lacks {missing}", hint="docs/cost.md has a whole list") from error
    for key, value in vars(made).items():
        wanted = known[key].type
        number = wanted.startswith(("float", "int"))
        if value is None and "None" in wanted:
            continue
        if number and not (type(value) in (int, float) and math.isfinite(value) and value >= 0):
            raise UsageError(f"{path}: {key} of {name} is no number of 0 or more")
        if not number and not (isinstance(value, str) and (value or key == "gpu")):
            raise UsageError(f"{path}: {key} of {name} is no text")
    if isinstance(made, Machine) and (made.cpus < 1 or not made.usd_per_hour):
        raise UsageError(f"{path}: {name} has no price or no CPU")
    if isinstance(made, Api) and made.kind not in (GENERATION, EMBEDDING):
        raise UsageError(f"{path}: kind of {name} is {made.kind}", hint=f"it is {GENERATION} or {EMBEDDING}")
    return made
