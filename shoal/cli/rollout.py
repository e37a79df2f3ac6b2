"""The commands of `rollout`. `shoal.cli.app` registers them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal import show
from shoal.cli.options import Json
from shoal.cli.steps import out, print_json
from shoal.errors import ShoalError, UsageError

if TYPE_CHECKING:
    from deploy.canary.rollout import Rollout

DEFAULT_FOLDER = Path("canary")

Folder = Annotated[
    Path,
    typer.Option("--folder", help="That of shoal deploy envoy --canary, on the machine where Envoy runs."),
]

app = typer.Typer(
    help="What a canary or a shadow has shown, and what you want of it. Each command has --json.\n\n"
    "Example: shoal rollout status",
    no_args_is_help=True,
)


@app.command()
def status(folder: Folder = DEFAULT_FOLDER, as_json: Json = False) -> None:
    """What the canary has shown so far, guard by guard; or how the last one ended.

    Example: shoal rollout status --json
    """
    from deploy.canary import rollout as canaries

    place = canaries.open_folder(folder)
    known = canaries.read(place)
    if known is None:
        if as_json:
            print_json({"rollout": None})
        else:
            out.print("there was no canary here", highlight=False)
        return
    if not known.ended and not canaries.is_watched(place) and not as_json:
        said = (
            "nobody gets this version" if known.phase != "promoting" else "this version may be served or not"
        )
        out.print(f"no shoal canary runs, so {said}; the same command goes on", highlight=False)
    tell(known, as_json)


@app.command()
def pause(folder: Folder = DEFAULT_FOLDER, as_json: Json = False) -> None:
    """Send all requests to what is served, and keep what was seen.

    Example: shoal rollout pause
    """
    _wish(folder, "pause", as_json)


@app.command()
def resume(folder: Folder = DEFAULT_FOLDER, as_json: Json = False) -> None:
    """Give a paused canary its share again.

    Example: shoal rollout resume
    """
    _wish(folder, "resume", as_json)


@app.command()
def promote(folder: Folder = DEFAULT_FOLDER, as_json: Json = False) -> None:
    """Promote the canary now, whatever its guards say; one that is worse was taken back already.

    Example: shoal rollout promote
    """
    _wish(folder, "promote", as_json)


@app.command()
def abort(folder: Folder = DEFAULT_FOLDER, as_json: Json = False) -> None:
    """Take the canary back now.

    Example: shoal rollout abort
    """
    from dataclasses import replace

    from deploy.canary import rollout as canaries

    place = canaries.open_folder(folder)
    if canaries.is_watched(place):
        _wish(folder, "abort", as_json)
        return
    with canaries.watching(place):
        place.send(None)
        try:
            known = canaries.read(place)
        except ShoalError:
            (place.folder / canaries.STATE).unlink()
            _say("all requests go to what is served; what was known of a canary is removed", as_json)
            return
        if known is None or known.ended:
            raise UsageError("there is no canary to take back", hint="shoal rollout status")
        promoting = known.phase == "promoting"
        reason = "shoal rollout abort" + (", while it was being promoted" if promoting else "")
        canaries.keep(place, replace(known, phase="rolled back", reason=reason))
    if promoting:
        _say(f"it may be what is served: shoal versions {known.model}", as_json)
    else:
        _say(f"all requests go to {known.model} {known.before}", as_json)


def _say(done: str, as_json: bool) -> None:
    if as_json:
        print_json({"done": done})
    else:
        out.print(done, highlight=False)


def _wish(folder: Path, what: Any, as_json: bool) -> None:
    from deploy.canary import rollout as canaries

    place = canaries.open_folder(folder)
    if not canaries.is_watched(place):
        raise UsageError("no shoal canary runs", hint="shoal rollout status")
    known = canaries.read(place)
    if what == "promote" and known is not None and known.shadow:
        raise UsageError("a shadow promotes nothing", hint=f"shoal promote {known.model} {known.version}")
    canaries.wish(place, what)
    deadline = time.monotonic() + 10 * canaries.LOOK_SECONDS
    while time.monotonic() < deadline and (place.folder / canaries.WISH).exists():
        time.sleep(canaries.LOOK_SECONDS / 2)
    if (place.folder / canaries.WISH).exists():
        (place.folder / canaries.WISH).unlink(missing_ok=True)
        raise ShoalError(
            "the shoal canary that runs did not answer: it starts or ends",
            hint=f"again: shoal rollout {what}",
        )
    _say(f"{what}: told", as_json)


def tell(rollout: Rollout, as_json: bool) -> None:
    if as_json:
        told = rollout.to_dict()
        judge = told.pop("judge")
        counts = {arm: {key: judge[arm][key] for key in ("number", "failed")} for arm in ("old", "new")}
        copies = {"compared": judge["compared"], "differed": judge["differed"]}
        print_json({"rollout": {**told, "requests": counts, "copies": copies}})
        return
    out.print(as_table(rollout))
    if rollout.ended:
        out.print(f"{rollout.phase}: {rollout.reason}", highlight=False, markup=False, soft_wrap=True)


def as_table(rollout: Rollout) -> Any:
    """Guard by guard."""
    old, new = rollout.judge.old.number, rollout.judge.new.number
    title = f"{rollout.model} {rollout.version} beside {rollout.before}, {rollout.phase}: "
    title += f"{new} copies of requests" if rollout.shadow else f"{new} requests beside {old}"
    made = show.table(
        title, ["guard", "#served", "#canary", "#canary, interval", "#evidence against it", "says"]
    )
    for row in rows_of(rollout):
        made.add_row(*(row[name] for name in ("guard", "old", "new", "interval", "evidence", "verdict")))
    return made


def rows_of(rollout: Rollout) -> list[dict[str, str]]:
    """What each guard says, as text."""
    return [
        {
            "guard": row["guard"],
            "old": _value(row["guard"], row["old"]),
            "new": _value(row["guard"], row["new"]),
            "interval": " to ".join(_value(row["guard"], each) for each in row["new_interval"]),
            "evidence": f"{row['evidence']:.0%}",
            "verdict": row["verdict"],
        }
        for row in rollout.judge.rows()
    ]


def _value(guard: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:.1f} ms" if guard.startswith("p") else f"{value:.2%}"
