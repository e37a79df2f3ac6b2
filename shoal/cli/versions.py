"""The commands `versions`, `promote`, `rollback`, `diff` and `prune`. `shoal.cli.app` registers them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from shoal import repository as store
from shoal import rollouts, show
from shoal.cli.options import DEFAULT_REPOSITORY, Json, Repository
from shoal.cli.steps import err, out, print_json
from shoal.evidence import raw_share
from shoal.progress import Bars

Model = Annotated[str, typer.Argument(help="The model, as users call it.")]
Version = Annotated[int, typer.Argument(min=1, help="A version of it.")]
Wait = Annotated[bool, typer.Option("--wait", help="Return when it is served, or say why it was refused.")]
WaitTimeout = Annotated[
    float, typer.Option("--timeout", min=1.0, max=86_400.0, help="Seconds that --wait waits.")
]


def versions(
    name: Annotated[str | None, typer.Argument(help="Only this model.")] = None,
    repository: Repository = DEFAULT_REPOSITORY,
    as_json: Json = False,
) -> None:
    """The versions in the model repository, and which of them are served.

    `raw`: the share of raw inputs that a version answers as the original library does.

    Example: shoal versions minilm
    """
    from shoal.errors import RepositoryError
    from shoal.manifest import Damaged, history

    found = list(history(repository, name))
    if not found:
        raise RepositoryError(f"{repository} holds no version of {name or 'any model'}", hint="shoal export")
    rows = [_row(repository, entry) for entry in found]
    damaged = [entry for entry in found if isinstance(entry, Damaged)]
    for version in damaged:
        err.print(f"warning: {version.error}", highlight=False, markup=False)
    for network in sorted({entry.network for entry in found}):
        if store.served_version(repository, network) is None:
            said = f"warning: {repository / network / 'config.pbtxt'} selects no version, or cannot be read"
            err.print(said, highlight=False, markup=False)
    if as_json:
        print_json({"versions": rows})
        return
    headings = ["model", "#version", "", "precision", "#raw", "source", "created"]
    made = show.table("", headings, wraps=["source"])
    for row, entry in zip(rows, found, strict=True):
        mark = " ".join(
            f"[{colour}]{word}[/]" for word, colour in (("served", "green"), ("damaged", "red")) if row[word]
        )
        raw = "" if isinstance(entry, Damaged) else raw_share(entry.evidence.get("raw"))
        facts = (escape(str(row[name] or "")) for name in ("precision", "source", "created"))
        precision, source, created = facts
        if row.get("engine"):
            precision += f", {escape(row['engine'])}"
        made.add_row(escape(row["model"]), str(row["version"]), mark, precision, raw, source, created[:16])
    out.print(made)
    for row in rows:
        if tuned := row.get("tuned"):
            said = f"{tuned['says']}: {tuned['rate']:.1f} requests/s within {tuned['slo']}"
            out.print(f"{row['model']} {row['version']}: {said}", highlight=False, markup=False)


def _row(repository: Path, entry: Any) -> dict[str, Any]:
    """A version of `shoal.manifest.history`; of one that is damaged only what its folder's name tells."""
    from shoal.manifest import Manifest

    row = {
        "model": entry.network,
        "version": entry.version,
        "served": entry.version == store.served_version(repository, entry.network),
        "damaged": True,
        **dict.fromkeys(("precision", "engine", "raw_agreement", "source", "created", "tuned")),
    }
    if not isinstance(entry, Manifest):
        return row
    return row | {
        "model": entry.model,
        "damaged": False,
        "precision": entry.precision,
        "engine": entry.evidence.get("engine"),
        "raw_agreement": (entry.evidence.get("raw") or {}).get("agreement"),
        "source": entry.source.get("id"),
        "created": entry.created,
        "tuned": entry.evidence.get("tuned"),
    }


def promote(
    name: Model,
    version: Version,
    repository: Repository = DEFAULT_REPOSITORY,
    wait: Wait = False,
    timeout: WaitTimeout = 300.0,
    as_json: Json = False,
) -> None:
    """Ask for another version to be served: a server that runs takes it up within seconds.

    It is tried in a server of its own first; one that fails is refused, and what was served goes on.

    Example: shoal promote minilm 1 --wait
    """
    _tell(store.promote(repository, name, version), repository, wait, timeout, as_json)


def rollback(
    name: Model,
    repository: Repository = DEFAULT_REPOSITORY,
    wait: Wait = False,
    timeout: WaitTimeout = 300.0,
    as_json: Json = False,
) -> None:
    """Ask for the version that was asked for before: see `shoal promote`.

    Example: shoal rollback minilm --wait
    """
    _tell(store.rollback(repository, name), repository, wait, timeout, as_json)


def _tell(manifest: Any, repository: Path, wait: bool, timeout: float, as_json: bool) -> None:
    about = {"model": manifest.model, "version": manifest.version, "precision": manifest.precision}
    what = f"{manifest.model} version {manifest.version} ({manifest.precision})"
    if wait:
        with Bars(err).step(f"Wait until {what} is served"):
            rollouts.wait_until_served(repository, manifest.configs, timeout)
    if as_json:
        print_json({**about, "served": wait})
    elif wait:
        out.print(f"{repository}: {what} is served", highlight=False)
    else:
        out.print(
            f"{repository}: {what} is asked for; a server that runs takes it up within seconds",
            highlight=False,
        )


def diff(
    name: Model,
    first: Version,
    second: Version,
    repository: Repository = DEFAULT_REPOSITORY,
    as_json: Json = False,
) -> None:
    """Two versions side by side: files, evidence, settings, and their answers to the same input.

    Example: shoal diff minilm 1 2
    """
    from shoal.cli.compare import compare

    sides = [store.version_of(repository, name, version) for version in (first, second)]
    found = compare(repository, *sides)
    if as_json:
        print_json(found)
        return
    out.print(show.differences(found, [f"{side.version} ({side.precision})" for side in sides]))


def prune(
    name: Model,
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest versions stay.")] = 3,
    repository: Repository = DEFAULT_REPOSITORY,
    as_json: Json = False,
) -> None:
    """Remove old versions, but never what is served, was served last, or is in use by a running server.

    Example: shoal prune minilm --keep 3
    """
    done = store.prune(repository, name, keep)
    removed = [str(folder) for folder in done.removed]
    if as_json:
        print_json({"removed": removed, "kept": done.kept})
        return
    for folder in removed:
        err.print(f"removed {folder}", highlight=False)
    for version, reason in done.kept.items():
        err.print(f"kept: version {version} {reason}", highlight=False)
    if not removed:
        err.print("nothing to remove")


COMMANDS = (versions, promote, rollback, diff, prune)
