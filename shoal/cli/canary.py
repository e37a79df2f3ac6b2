"""The commands `canary` and `shadow`. `shoal.cli.app` registers them."""

from __future__ import annotations

import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live

from shoal import repository as versions
from shoal import rollouts
from shoal.cli import canary_server
from shoal.cli.options import DEFAULT_REPOSITORY, Json, Repository
from shoal.cli.quantities import seconds, share
from shoal.cli.rollout import DEFAULT_FOLDER, Folder, as_table, rows_of, tell
from shoal.cli.steps import err
from shoal.errors import RepositoryError, ShoalError, UsageError

if TYPE_CHECKING:
    from deploy.canary.rollout import Rollout

_TAKE_UP_SECONDS = 300.0
_LEAST_SECONDS = 10.0

Name = Annotated[str, typer.Argument(help="The model, as users call it.")]
Version = Annotated[int, typer.Argument(min=1, help="A proven version of it.")]
Guards = Annotated[
    list[str] | None,
    typer.Option(
        "--guard",
        help="errors, errors<=1%, p99, p99<=1.25x, agreement or agreement>=0.995; several with commas. Errors"
        " always count.",
    ),
]


def canary(
    name: Name,
    version: Version,
    folder: Folder = DEFAULT_FOLDER,
    percent: Annotated[str, typer.Option("--share", help="Of the requests, at most 50%.")] = "5%",
    key: Annotated[
        str,
        typer.Option(help="Header; requests with the same value go to the same version. Default: by chance."),
    ] = "",
    guard: Guards = None,
    most: Annotated[str, typer.Option("--max", help="Time until it must be decided.")] = "2h",
    repository: Repository = DEFAULT_REPOSITORY,
    as_json: Json = False,
) -> None:
    """Give a version a share of the requests behind Envoy, then promote it or take it back.

    A second Triton serves it on this machine. It is taken back at once where a guard says that it is worse,
    promoted where every guard is met, and taken back where neither is known after --max: no requests never
    mean good. After Ctrl-C or a kill all requests go to what is served; the same command goes on. Without
    --guard its errors and its p99 count; agreement takes copies of requests, as shoal shadow does.

    Exit code: 0 if it was promoted, 1 if not.

    Example: shoal canary minilm 3 --share 5% --guard 'errors<=1%,p99<=1.25x' --max 2h

    Example: shoal rollout status
    """
    from deploy.canary.guards import AGREEMENT
    from deploy.canary.split import Split

    of = share("--share", percent)
    guards = _guards(guard or ["errors", "p99"])
    copies = of if any(each.kind == AGREEMENT for each in guards) else 0.0
    split = Split(uuid.uuid4().hex[:12], name, of, key.lower(), copies)
    ended = _decide(name, version, folder, split, guards, seconds("--max", most, _LEAST_SECONDS), repository)
    tell(ended, as_json)
    raise typer.Exit(0 if ended.phase == "promoted" else 1)


def shadow(
    name: Name,
    version: Version,
    folder: Folder = DEFAULT_FOLDER,
    percent: Annotated[
        str, typer.Option("--share", help="Of the gRPC requests, of which copies are made; at most 50%.")
    ] = "5%",
    guard: Guards = None,
    most: Annotated[str, typer.Option("--max", help="Time until it must be decided.")] = "2h",
    repository: Repository = DEFAULT_REPOSITORY,
    as_json: Json = False,
) -> None:
    """Ask a version for the answers to copies of requests behind Envoy, which no caller gets.

    A second Triton serves it on this machine. Both versions are asked for each copy, four at once at most,
    and their answers are compared; copies are kept in memory alone. It ends where a guard says that the
    version is worse, or where every guard is met, and promotes nothing. Without --guard its errors, its p99
    and its agreement count.

    Exit code: 0 if every guard was met, 1 if not.

    Example: shoal shadow minilm 3 --share 10% --guard 'agreement>=0.99' --max 1h

    Example: shoal rollout status
    """
    from deploy.canary.split import Split

    split = Split(uuid.uuid4().hex[:12], name, 0.0, "", share("--share", percent))
    guards = _guards(guard or ["errors", "p99", "agreement"])
    ended = _decide(name, version, folder, split, guards, seconds("--max", most, _LEAST_SECONDS), repository)
    tell(ended, as_json)
    raise typer.Exit(0 if ended.phase == "good" else 1)


def _guards(given: list[str]) -> Any:
    from deploy.canary.guards import ERRORS, Guard

    guards = [Guard.parse(each) for text in given for each in text.split(",")]
    if not any(each.kind == ERRORS for each in guards):
        guards.insert(0, Guard.parse(ERRORS))  # what failed has no time and no answer to be compared
    if len({(each.kind, each.share) for each in guards}) < len(guards):
        raise UsageError("a guard is given twice", hint="give errors, agreement and each percentile once")
    return guards


def _decide(
    name: str, version: int, folder: Path, split: Any, guards: Any, time_it_has: float, repository: Path
) -> Rollout:
    """A new rollout, or one that goes on, to its end."""
    from deploy.canary import rollout as canaries
    from deploy.canary.guards import Judge

    place = canaries.open_folder(folder)
    new = canaries.Rollout(split, name, version, 0, time_it_has, Judge(guards))
    with canaries.watching(place):
        known = canaries.read(place)
        if known is not None and not known.ended:
            if (known.model, known.version, known.shadow) != (name, version, new.shadow):
                kind = "shadow" if known.shadow else "canary"
                raise UsageError(
                    f"the {kind} of {known.model} {known.version} is not decided", hint="shoal rollout abort"
                )
            new = known
            kind = "shadow" if known.shadow else "canary"
            err.print(f"the {kind} of {name} {version} goes on as it was begun", highlight=False)
        ended = _run(place, new, repository)
    _report(ended, place.folder / "reports" / f"{name}-{version}-{ended.split.rollout}.html")
    return ended


def _report(rollout: Rollout, file: Path) -> None:
    try:
        from loadtest import rollouts as page
    except ModuleNotFoundError:
        err.print("no report with pictures: pip install 'shoal[loadtest]'", highlight=False)
        return
    curves = (rollout.judge.old.times.curve(), rollout.judge.new.times.curve())
    try:
        page.write(rollout.to_dict(), curves, rows_of(rollout), file)
    except ShoalError as error:  # what was decided stays so
        err.print(f"no report: {error.message}", highlight=False, soft_wrap=True)
    else:
        err.print(f"report: {file}", highlight=False, soft_wrap=True)


def _run(place: Any, rollout: Rollout, repository: Path) -> Rollout:
    """Serve the version beside what is served, and let the guards decide."""
    from dataclasses import replace

    from deploy.canary import rollout as canaries
    from deploy.canary.mirror import Mirror
    from serving.ports import LOOPBACK

    name, version = rollout.model, rollout.version
    place.send(None)  # one that was killed has left its share
    manifest = versions.version_of(repository, name, version)
    served = versions.served_version(repository, manifest.network)
    if served is None:
        raise RepositoryError(f"{repository} serves no version of {name} beside which it could be tried")

    def promote() -> None:
        versions.promote(repository, name, version)
        try:
            rollouts.wait_until_served(repository, manifest.configs, _TAKE_UP_SECONDS)
        except ShoalError as error:
            _take_back(repository, name, version, error)
            raise

    if served == version:
        if rollout.phase == "promoting":  # the command was killed while it promoted it
            done = canaries.promoted(rollout, promote)
            canaries.keep(place, done)
            return done
        raise UsageError(f"{name} {version} is what is served")
    if rollout.before not in (0, served):
        raise UsageError(
            f"{name} {served} is served by now, and the canary was compared with {rollout.before}",
            hint="shoal rollout abort",
        )
    with ExitStack() as stack:
        mirror = None
        if rollout.split.copies:  # first, for its port may be taken
            mirror = Mirror(place.mirror, place.servers, f"{LOOPBACK}:{place.grpc}", name)
            stack.enter_context(mirror)
        watch = stack.enter_context(canary_server.serve(place, repository, manifest, served))
        live = stack.enter_context(Live(console=err, auto_refresh=False, transient=True))

        def show(now: Rollout) -> None:
            live.update(as_table(now), refresh=err.is_terminal)

        return canaries.run(
            place,
            replace(rollout, before=served),
            problem=lambda: watch.problem,
            promote=promote,
            tell=show,
            compared=mirror.taken if mirror else tuple,
        )


def _take_back(repository: Path, name: str, version: int, why: ShoalError) -> None:
    """Select what was served before a version that no server took up.

    Raises:
        RepositoryError: it could not be selected.
    """
    manifest = versions.version_of(repository, name, version)
    if versions.served_version(repository, manifest.network) != version:
        return
    try:
        versions.rollback(repository, name)
    except ShoalError as error:
        raise RepositoryError(
            f"{why.message}; and it is still selected, since what was served before was not: {error.message}",
            hint=f"shoal rollback {name}",
        ) from error
