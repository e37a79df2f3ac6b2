"""`shoal tune`: the fastest proven setting of a model within a promise."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from shoal import machine, tuned
from shoal.cli import quantities
from shoal.cli.options import DEFAULT_REPOSITORY, Json, Repository
from shoal.cli.steps import err, out, print_json
from shoal.errors import MissingDependency, RepositoryError, ShoalError, UsageError
from shoal.manifest import Manifest, manifests, served_manifests
from shoal.progress import Bars
from shoal.tasks import GENERATION

_LEAST_SECONDS = 60.0


def tune(
    name: Annotated[str, typer.Argument(help="The model, as users call it.")],
    slo: Annotated[str, typer.Option(help="What is promised: p99=80ms, or ttft_p95=500ms,itl_p95=60ms.")],
    budget: Annotated[str, typer.Option(help="How long to search, e.g. 90s, 20m or 1h.")] = "20m",
    min_cosine: Annotated[
        float | None, typer.Option(help="Embeddings: only versions whose vectors are so near the original's.")
    ] = None,
    max_rise: Annotated[
        str | None,
        typer.Option(help="Generated text: only versions whose perplexity rises by at most this, e.g. 2%."),
    ] = None,
    workload: Annotated[str, typer.Option(help="See shoal loadtest.")] = "",
    seconds: Annotated[int, typer.Option(min=1, max=600, help="How long one test takes.")] = 6,
    apply: Annotated[
        bool, typer.Option("--apply", help="Publish what won as a new version, and serve it.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the proposals.")] = 0,
    report: Annotated[
        Path | None, typer.Option(help="Folder for tune.html and tune.json. Default: reports/tune-NAME.")
    ] = None,
    repository: Repository = DEFAULT_REPOSITORY,
    as_json: Json = False,
) -> None:
    """Search the setting of a model that keeps a promise at the highest rate on this machine.

    It serves copies of the repository, tests them with an open loop, and leaves alone what is served. Run it
    on a quiet machine. A search that was interrupted goes on where it was; after one that has ended, the same
    command with --apply publishes what won.

    Example: shoal tune minilm --slo p99=80ms --min-cosine 0.99 --budget 20m --apply

    Example: shoal tune smollm2 --slo ttft_p95=500ms,itl_p95=60ms --max-rise 2%
    """
    try:
        from loadtest import headless, workloads
        from loadtest import slo as promises
        from loadtest.tuning import page, search
        from loadtest.tuning.bench import Bench
    except ModuleNotFoundError as error:
        raise MissingDependency(str(error.name), extra="tune") from error
    promise = promises.parse(slo)
    most = quantities.seconds("--budget", budget, _LEAST_SECONDS)
    rise = None if max_rise is None else quantities.share("--max-rise", max_rise)
    settings = _space(repository, name, {"min_cosine": min_cosine, "max_rise": rise})
    generates = headless.about(settings.manifests[settings.served])["task"] == GENERATION
    promises.check(promise, generates=generates, seconds=seconds)  # before a server is started
    workloads.requests(workload, generates=generates)
    plan = headless.Plan(
        *(name, 0, seconds, "grpc", "-", "-", generates, workload), arrival="poisson", slo=slo
    )
    folder = report or Path("reports") / f"tune-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    journal = folder / "journal.json"
    about = {
        **{"model": name, "slo": slo, "workload": workload or "the usual", "seconds": seconds},
        **{"seed": seed, "machine": machine.describe()},
    }
    knobs = ", ".join(knob.name for knob in settings.knobs)

    def say(line: str) -> None:
        err.print(line, highlight=False, markup=False)

    say(f"{settings.size} settings of {knobs}; for {budget} they are tested, {seconds} s each time")
    with Bench(repository, settings, plan, folder, Bars(err)) as bench:
        asked = (settings, bench.measure, most, journal)
        search_of = search.Search(*asked, about=about, seed=seed, say=say, guess=bench.guess)
        try:
            found = search_of.run(bench.queues, again=not apply)
        except KeyboardInterrupt:
            if journal.exists():
                say("the same command goes on from here")
            raise
        kept = _test_of(bench, found.winner or settings.default, found.rate, seed, folder)
    told = page.summary(settings, found, {**about, "budget": most})
    _write(settings, found, told, kept, folder)
    if apply and found.winner is not None:
        told["published"] = _publish(repository, settings, found, told)
        journal.unlink(missing_ok=True)
    if as_json:
        print_json(told)
        return
    _tell(name, settings, found, told)
    out.print(f"report: {folder / 'tune.html'}", highlight=False)
    if "in_flight" in told:
        at_once = f"{told['in_flight']:.1f} requests at once"
        out.print(f"scale by requests under way: at that rate a replica has {at_once}", highlight=False)
        out.print(f"what it costs: shoal cost {folder}", highlight=False)


def _space(repository: Path, name: str, bounds: dict[str, float | None]) -> Any:
    """What can be set of a model, of the versions within the bounds.

    Raises:
        RepositoryError: none is served.
        UsageError: the one that is served is not within them, or nothing can be set.
    """
    from loadtest.tuning import space

    served = next(served_manifests(repository, name), None)
    if served is None:
        raise RepositoryError(f"{repository} serves no version of {name}", hint=f"shoal export --name {name}")
    allowed = space.versions_that_keep(list(manifests(repository, name)), **bounds)
    if served.version not in [manifest.version for manifest in allowed]:
        raise UsageError(
            f"version {served.version} of {name}, which is served, is not within these bounds",
            hint="shoal promote another version first, or ask for less",
        )
    bounded = any(bound is not None for bound in bounds.values())
    others = [each for each in allowed if bounded and each.version != served.version]
    return space.space_of(name, served, others)


def _write(settings: Any, found: Any, told: dict[str, Any], kept: Any, folder: Path) -> None:
    """The report of the search, and that of a test at the rate that is told, from now or from before."""
    from loadtest import headless, report
    from loadtest.tuning import page

    if kept is not None:
        samples, test = kept
        served = headless.about(_manifest(settings, found))
        said = {"max_rate": found.rate, "served": served, "client_limited": bool(found.client_limited)}
        report.write({**test, **said}, samples, folder)
    file = folder / "report.json"
    if _is_reported(folder, found.rate):
        told["in_flight"] = page.in_flight(json.loads(file.read_text()))
    else:  # of an earlier search in this folder
        for left in (file, file.with_suffix(".html")):
            left.unlink(missing_ok=True)
    page.write(settings, found, told, folder)


def _test_of(bench: Any, setting: Any, rate: float, seed: int, folder: Path) -> Any:
    """The test that is told of; where it was made before an interruption it is made again. None: it has a
    report already, or it missed the promise this time."""
    kept = bench.kept(setting, rate)
    if kept is None and not _is_reported(folder, rate):
        with suppress(ShoalError):  # what was found stays so without a report
            bench.measure(setting, rate, 1 + seed)
        kept = bench.kept(setting, rate)
    return kept


def _is_reported(folder: Path, rate: float) -> bool:
    """Whether the folder has the report of a test at this rate, of a search that ended with it."""
    file = folder / "report.json"
    return file.exists() and json.loads(file.read_text()).get("max_rate") == rate


def _manifest(settings: Any, found: Any) -> Manifest:
    """Of the version of what won, or of what is served now."""
    from loadtest.tuning.space import VERSION

    made: Manifest = settings.manifests[(found.winner or settings.default).get(VERSION, settings.served)]
    return made


def _publish(repository: Path, settings: Any, found: Any, told: dict[str, Any]) -> int:
    """The number of the new version."""
    measured = {key: told[key] for key in ("slo", "rate", "better", "noise", "says", "machine")}
    won = _manifest(settings, found), settings.configs(found.winner)
    return tuned.publish(repository, *won, measured, beside=settings.served).version


def _tell(name: str, settings: Any, found: Any, told: dict[str, Any]) -> None:
    from loadtest.tuning import page

    out.print(page.as_table(settings, found))
    if found.client_limited:
        said = "the processes that send had no more CPU time, so rates may be theirs and not the server's"
        out.print(f"in {found.client_limited} tests {said}", highlight=False)
    if found.winner is None:
        out.print(
            f"no difference: none of {len(found.tried)} settings beats what is served now beyond noise",
            highlight=False,
        )
        return
    rates = f"{found.rate:.1f} requests/s on fresh requests, instead of {found.base:.1f}"
    rounds = found.confirmed[-1]["rounds"]
    won = sum(each["kept"] and not each["served_now_kept"] for each in rounds)
    out.print(f"{settings.text(found.winner)}: {rates}", highlight=False)
    out.print(f"of {len(rounds)} rounds it won {won} and lost none", highlight=False)
    failed = sum(tried.rate is None for tried in found.tried)
    if failed:
        out.print(f"{failed} of {len(found.tried)} settings could not be tested", highlight=False)
    if "published" in told:
        said = "a server that runs takes it up within seconds"
        out.print(f"version {told['published']} of {name} is to be served: {said}", highlight=False)
    else:
        out.print("the same command with --apply publishes it, without another search", highlight=False)
