"""`shoal keys`: a secret is printed once, and what cannot be done is said in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from serving.gateway.keys import Keys
from shoal.cli import app as cli
from shoal.cli.keys import when
from shoal.errors import UsageError

Call = Callable[..., tuple[int, str, str]]
NOON = datetime(2026, 11, 27, 12, tzinfo=timezone.utc).timestamp()


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`shoal keys ...` in this process: exit code, output and errors."""
    monkeypatch.setenv("SHOAL_KEYS", str(tmp_path / "keys.json"))

    def call(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["shoal", "keys", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


def test_a_key_is_made_listed_and_revoked(keys: Call, tmp_path: Path) -> None:
    code, out, error = keys(
        "add", "alice", "--model", "smollm2", "--model", "minilm", "--rpm", 60, "--expires", "30d"
    )
    assert code == 0 and "shown only once" in error
    secret = out.strip()
    server = Keys(tmp_path / "keys.json")
    found = server.find(secret)
    assert (
        found is not None and found.models == ("smollm2", "minilm") and found.limits.requests_per_minute == 60
    )
    assert (
        found.expires is not None and 29.9 < (found.expires - found.created).total_seconds() / 86_400 < 30.1
    )
    code, out, error = keys("list")
    assert code == 0 and "alice" in out and "active" in out and found.id in out
    assert secret not in out + error
    code, out, error = keys("revoke", "alice")
    assert (code, out) == (0, "") and f"revoked {found.id} (alice)" in error
    assert Keys(tmp_path / "keys.json").find(secret) is None
    assert "revoked" in keys("list")[1]


def test_json_has_the_secret_of_a_new_key_alone(keys: Call, tmp_path: Path) -> None:
    arguments = ("add", "bob", "--tpm", 1000, "--concurrent", 2, "--priority", 9, "--json")
    made = json.loads(keys(*arguments)[1])
    limits = {"requests_per_minute": None, "tokens_per_minute": 1000, "concurrent": 2}
    about = {"name": "bob", "models": [], "expires": None, "revoked": None, "priority": 9, "limits": limits}
    assert made.items() >= {**about, "state": "active", "store": str(tmp_path / "keys.json")}.items()
    assert made["created"].endswith("Z")
    secret = made.pop("secret")
    assert Keys(tmp_path / "keys.json").find(secret) is not None
    code, out, _ = keys("list", "--json")
    listed = json.loads(out)
    assert code == 0 and listed == {"store": made.pop("store"), "keys": [made]}
    revoked = json.loads(keys("revoke", made["id"], "--json")[1])["revoked"]
    assert [(key["id"], key["state"]) for key in revoked] == [(made["id"], "revoked")]
    assert secret not in out + json.dumps(revoked)


def test_another_file_can_be_named(keys: Call, tmp_path: Path) -> None:
    other = tmp_path / "other" / "k.json"
    assert keys("add", "carol", "--store", other)[0] == 0
    assert [key["name"] for key in json.loads(keys("list", "--json", "--store", other)[1])["keys"]] == [
        "carol"
    ]
    assert "holds no keys; make one: shoal keys add NAME" in " ".join(keys("list")[1].split())


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["add", "a b"], 2, "cannot be the name of a key"),
        (["add", "taken"], 2, "has an active key taken (choose another name, or shoal keys revoke taken)"),
        (["add", "x", "--rpm", "0"], 2, "Invalid value for '--rpm'"),
        (["add", "x", "--priority", "10"], 2, "Invalid value for '--priority'"),
        (["add", "x", "--expires", "soon"], 2, "--expires 'soon' is no time that can be read (12h, 30d"),
        (["add", "x", "--expires", "0d"], 2, "which is past"),
        (["add", "x", "--expires", "2020-01-01"], 2, "which is past"),
        (["add", "x", "--model", "a b"], 2, "the key x has a value out of its range"),
        (["add", "x", "--store", "/proc/none/keys.json"], 1, "cannot be written"),
        (["revoke", "nobody"], 2, "has no key nobody (shoal keys list shows them)"),
        (["list", "--store", "/"], 1, "cannot be read"),
        (["ad"], 2, "No such command 'ad'"),
    ],
)
def test_an_error_is_one_line_with_a_way_out(arguments: list[str], code: int, said: str, keys: Call) -> None:
    keys("add", "taken")
    ended, out, error = keys(*arguments)
    assert (ended, out) == (code, "")
    (line,) = error.strip().splitlines()
    assert line.startswith("error: ") and said in line


@pytest.mark.parametrize("command", ["add", "list", "revoke"])
def test_help_has_an_example(command: str, keys: Call) -> None:
    code, out, _ = keys(command, "--help")
    text = " ".join(out.split())
    assert code == 0 and f"Example: shoal keys {command}" in text and "--json" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12h", "2026-11-28T00:00:00+00:00"),
        ("30d", "2026-12-27T12:00:00+00:00"),
        ("4w", "2026-12-25T12:00:00+00:00"),
        ("2027-01-31", "2027-01-31T00:00:00+00:00"),
        ("2027-01-31T12:00:00Z", "2027-01-31T12:00:00+00:00"),
        ("2027-01-31T12:00:00+02:00", "2027-01-31T10:00:00+00:00"),
    ],
)
def test_times(text: str, expected: str) -> None:
    assert when(text, NOON).isoformat() == expected


@pytest.mark.parametrize(
    "text", ["", "d", "-1d", "1.5d", "30m", "9999999999d", "2027-13-01", "9999-12-31T23:59-14:00"]
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError, match="is no time that can be read"):
        when(text, NOON)
