"""The commands `keys add`, `keys list` and `keys revoke`. `shoal.cli.app` registers them."""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from shoal import show
from shoal.cli.options import Json
from shoal.cli.steps import err, out, print_json
from shoal.errors import UsageError

app = typer.Typer(
    help="API keys of the gateway: make, list and revoke them. Each command has --json.\n\n"
    "Example: shoal keys add alice --rpm 60 --expires 30d",
    no_args_is_help=True,
)

Store = Annotated[
    Path | None,
    typer.Option(
        "--store",
        envvar="SHOAL_KEYS",
        help="The file of keys. Default: shoal/keys.json in your folder of settings.",
    ),
]


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="What you call it, unique among the active keys.")],
    model: Annotated[
        list[str] | None, typer.Option(help="Only this model; repeat for several. Default: all.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="12h, 30d, 4w, or a time of ISO 8601, in UTC unless it says otherwise.")
    ] = None,
    rpm: Annotated[
        int | None, typer.Option(min=1, max=1_000_000_000, help="Most requests that begin within a minute.")
    ] = None,
    tpm: Annotated[
        int | None,
        typer.Option(min=1, max=1_000_000_000, help="Most tokens within a minute, of prompts and answers."),
    ] = None,
    concurrent: Annotated[
        int | None, typer.Option(min=1, max=1_000_000_000, help="Most requests that run at the same time.")
    ] = None,
    priority: Annotated[int, typer.Option(min=0, max=9, help="Higher ones are served first.")] = 0,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Make a key, and print its secret. It is printed only now: the file of keys does not hold it.

    A gateway that runs takes it up within a second. The secret alone is on stdout.

    Example: shoal keys add alice --model smollm2 --rpm 60 --expires 30d
    """
    from serving.gateway.keys import KeyStore, Limits

    now = time.time()
    keys = KeyStore(store)
    key, secret = keys.add(
        name,
        models=model or (),
        expires=None if expires is None else when(expires, now),
        priority=priority,
        limits=Limits(requests_per_minute=rpm, tokens_per_minute=tpm, concurrent=concurrent),
    )
    if as_json:
        print_json({**_row(key, now), "secret": secret, "store": str(keys.path)})
        return
    err.print(
        f"{keys.path}: key {key.id} ({key.name}); this is shown only once:", highlight=False, markup=False
    )
    typer.echo(secret)


@app.command("list")
def list_keys(store: Store = None, as_json: Json = False) -> None:
    """All keys, the expired and revoked ones too, without their secrets.

    Example: shoal keys list --json
    """
    from serving.gateway.keys import KeyStore

    keys, now = KeyStore(store), time.time()
    rows = [_row(key, now) for key in keys.list()]
    if as_json:
        print_json({"store": str(keys.path), "keys": rows})
        return
    if not rows:
        said = f"{keys.path} holds no keys; make one: shoal keys add NAME"
        out.print(said, highlight=False, markup=False, soft_wrap=True)
        return
    made = show.table(
        "", ["id", "name", "state", "models", "limits", "expires"], wraps=["name", "models", "limits"]
    )
    colours = {"active": "green", "expired": "yellow", "revoked": "red"}
    for row in rows:
        made.add_row(
            row["id"],
            escape(row["name"]),
            f"[{colours[row['state']]}]{row['state']}[/]",
            escape(", ".join(row["models"]) or "all"),
            _limits(row),
            (row["expires"] or "never")[:16],
        )
    out.print(made)


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="NAME_OR_ID", help="A key, as shoal keys list shows it.")],
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Make a key invalid for ever. A gateway that runs refuses it within a second.

    Requests that run already are finished.

    Example: shoal keys revoke alice
    """
    from serving.gateway.keys import KeyStore

    keys = KeyStore(store)
    revoked = keys.revoke(key)
    if as_json:
        print_json({"store": str(keys.path), "revoked": [_row(each, time.time()) for each in revoked]})
        return
    for each in revoked:
        err.print(f"revoked {each.id} ({each.name})", highlight=False, markup=False)


def when(text: str, now: float) -> datetime:
    """The time that `--expires` names.

    Args:
        text: hours, days or weeks from now (12h, 30d, 4w), or a time of ISO 8601.
        now: in seconds since 1970.

    Raises:
        UsageError: it is neither, or too far away.
    """
    try:
        if span := re.fullmatch(r"(\d+)([hdw])", text):
            unit = {"h": "hours", "d": "days", "w": "weeks"}[span[2]]
            return datetime.fromtimestamp(int(now), timezone.utc) + timedelta(**{unit: int(span[1])})
        # Python 3.10 does not read the Z.
        read = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text))
        return (read if read.tzinfo else read.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        hint = "12h, 30d, 4w, 2027-01-31 or 2027-01-31T12:00:00Z"
        raise UsageError(f"--expires {text!r} is no time that can be read", hint=hint) from None


def _row(key: Any, now: float) -> dict[str, Any]:
    """A key as JSON has it; its times are ISO 8601 in UTC."""
    import msgspec

    row: dict[str, Any] = msgspec.to_builtins(key)
    return {**row, "state": key.state(now)}


def _limits(row: dict[str, Any]) -> str:
    """The limits that a key has, and its priority where it is not the lowest, in a few words."""
    most = row["limits"]
    named = {
        "requests/min": most["requests_per_minute"],
        "tokens/min": most["tokens_per_minute"],
        "at once": most["concurrent"],
    }
    told = [f"{value} {name}" for name, value in named.items() if value is not None] or ["none"]
    return ", ".join([*told, f"priority {row['priority']}"] if row["priority"] else told)
