"""The commands `canary` and `rollout`. `shoal.cli.app` registers them."""

from __future__ import annotations

import signal
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live

from shoal import repository as versions
from shoal import rollouts, show
from shoal.cli.options import DEFAULT_REPOSITORY, Json, Repository
from shoal.cli.quantities import seconds, share
from shoal.cli.steps import err, out, print_json
from shoal.errors import RepositoryError, ShoalError, UsageError
from shoal.progress import Bars

if TYPE_CHECKING:
    from deploy.canary.rollout import Rollout

DEFAULT_FOLDER = Path("canary")
_TAKE_UP_SECONDS = 300.0
_LEAST_SECONDS = 10.0

Folder = Annotated[
    Path,
    typer.Option("--folder", help="That of shoal deploy envoy --canary, on the machine where Envoy runs."),
]

app = typer.Typer(
    help="What a canary has shown, and what you want of it. Each command has --json.\n\n"
    "Example: shoal rollout status",
    no_args_is_help=True,
)


def canary(
    name: Annotated[str, typer.Argument(help="The model, as users call it.")],
    version: Annotated[int, typer.Argument(min=1, help="A proven version of it.")],
    folder: Folder = DEFAULT_FOLDER,
    percent: Annotated[str, typer.Option("--share", help="Of the requests, at most 50%.")] = "5%",
    key: Annotated[
        str,
        typer.Option(help="Header; requests with the same value go to the same version. Default: by chance."),
    ] = "",
    guard: Annotated[
        list[str] | None,
        typer.Option(
            help="errors, errors<=1%, p99 or p99<=1.25x; repeat for several. Default: errors and p99."
        ),
    ] = None,
    most: Annotated[str, typer.Option("--max", help="Time until it must be decided.")] = "2h",
    repository: Repository = DEFAULT_REPOSITORY,
    as_json: Json = False,
) -> None:
    """Give a version a share of the requests behind Envoy, then promote it or take it back.

    A second Triton serves it on this machine. It is taken back at once where a guard says that it is worse,
    promoted where every guard is met, and taken back where neither is known after --max: no requests never
    mean good. After Ctrl-C or a kill all requests go to what is served; the same command goes on.

    Exit code: 0 if it was promoted, 1 if not.

    Example: shoal canary minilm 3 --share 5% --guard 'errors<=1%' --guard 'p99<=1.25x' --max 2h

    Example: shoal rollout status
    """
    from deploy.canary import rollout as canaries
    from deploy.canary.guards import Guard, Judge
    from deploy.canary.split import Split

    place = canaries.open_folder(folder)
    split = Split(uuid.uuid4().hex[:12], share("--share", percent), key.lower())
    guards = [Guard.parse(each) for each in guard or ["errors", "p99"]]
    if len({each.share for each in guards}) < len(guards):
        raise UsageError("two guards are about the same")
    judge, time_it_has = Judge(guards, split.ratio), seconds("--max", most, _LEAST_SECONDS)
    new = canaries.Rollout(split, name, version, 0, time_it_has, judge)
    with canaries.watching(place):
        known = canaries.read(place)
        if known is not None and not known.ended:
            if (known.model, known.version) != (name, version):
                raise UsageError(
                    f"the canary of {known.model} {known.version} is not decided", hint="shoal rollout abort"
                )
            new = known
            err.print(f"the canary of {name} {version} goes on as it was begun", highlight=False)
        ended = _run(place, new, repository)
    _tell(ended, as_json)
    raise typer.Exit(0 if ended.phase == "promoted" else 1)


def _run(place: Any, rollout: Rollout, repository: Path) -> Rollout:
    """Serve the version beside what is served, and let the guards decide."""
    from dataclasses import replace

    from deploy.canary import rollout as canaries
    from serving import embedded
    from serving.check import check
    from serving.distribution import Embedded
    from serving.ports import Ports
    from serving.supervisor.snapshot import ModelSpec, Snapshot, specs_in
    from shoal.model_config import selected_versions

    name, version = rollout.model, rollout.version
    place.send(None)  # one that was killed has left its share
    manifest = versions.version_of(repository, name, version)
    served = versions.served_version(repository, manifest.network)
    if served is None:
        raise RepositoryError(f"{repository} serves no version of {name} beside which it could be tried")
    if served == version:
        if rollout.before:  # the command was killed after it had promoted it
            done = replace(rollout, phase="promoted", reason="every guard was met")
            canaries.keep(place, done)
            place.send(None)
            return done
        raise UsageError(f"{name} {version} is what is served")

    def promote() -> None:
        versions.promote(repository, name, version)
        try:
            rollouts.wait_until_served(repository, manifest.configs, _TAKE_UP_SECONDS)
        except ShoalError:
            versions.promote(repository, name, served)
            raise

    found = specs_in(repository)
    for model, config in manifest.configs.items():
        found[model] = ModelSpec(config, tuple(sorted(selected_versions(config))))
    distribution, ports = Embedded.find(), Ports(http=place.http, grpc=place.grpc, metrics=0)
    snapshot = Snapshot(repository, distribution.shown)
    with Bars(err).step(f"start a server of {name} {version}"):
        check(repository, distribution.backends, {model: spec.versions for model, spec in found.items()})
        server = embedded.launch(
            distribution,
            repository,
            ports,
            open_snapshot=lambda folder: snapshot.open(folder, found),
            death=signal.SIGKILL,
        )
    try:
        time.sleep(3 * place.probe_seconds)  # Envoy must have seen it, or it asks the others
        with Live(console=err, auto_refresh=False, transient=True) as live:

            def tell(now: Rollout) -> None:
                live.update(_table(now), refresh=err.is_terminal)

            return canaries.run(
                place,
                replace(rollout, before=served),
                alive=lambda: server.alive,
                promote=promote,
                tell=tell,
            )
    finally:
        time.sleep(1.0)  # in which Envoy has read that no request goes there any more
        embedded.stop(server)


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
        out.print(
            "no shoal canary runs, so nobody gets this version; the same command goes on", highlight=False
        )
    _tell(known, as_json)


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
    place.send(None)
    try:
        known = canaries.read(place)
    except ShoalError:
        (place.folder / canaries.STATE).unlink()
        _say("all requests go to what is served; what was known of a canary is removed", as_json)
        return
    if known is None or known.ended:
        raise UsageError("there is no canary to take back", hint="shoal rollout status")
    canaries.keep(place, replace(known, phase="rolled back", reason="shoal rollout abort"))
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
    canaries.wish(place, what)
    deadline = time.monotonic() + 10 * canaries.LOOK_SECONDS
    while time.monotonic() < deadline and (place.folder / canaries.WISH).exists():
        time.sleep(canaries.LOOK_SECONDS / 2)
    if (place.folder / canaries.WISH).exists():
        raise ShoalError("the shoal canary that runs did not answer", hint="shoal rollout status")
    _say(f"{what}: told", as_json)


def _tell(rollout: Rollout, as_json: bool) -> None:
    if as_json:
        told = rollout.to_dict()
        judge = told.pop("judge")
        counts = {arm: {key: judge[arm][key] for key in ("number", "failed")} for arm in ("old", "new")}
        print_json({"rollout": {**told, "requests": counts}})
        return
    out.print(_table(rollout))
    if rollout.ended:
        out.print(f"{rollout.phase}: {rollout.reason}", highlight=False, markup=False, soft_wrap=True)


def _table(rollout: Rollout) -> Any:
    """Guard by guard."""
    old, new = rollout.judge.old.number, rollout.judge.new.number
    title = f"{rollout.model} {rollout.version} beside {rollout.before}, {rollout.phase}: "
    title += f"{new} requests beside {old}"
    made = show.table(
        title, ["guard", "#served", "#canary", "#canary, interval", "#evidence against it", "says"]
    )
    for row in rollout.judge.rows():
        made.add_row(
            row["guard"],
            _value(row["guard"], row["old"]),
            _value(row["guard"], row["new"]),
            " to ".join(_value(row["guard"], each) for each in row["new_interval"]),
            f"{row['evidence']:.0%}",
            row["verdict"],
        )
    return made


def _value(guard: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2%}" if guard.startswith("errors") else f"{value * 1000:.1f} ms"
