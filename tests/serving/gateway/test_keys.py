"""API keys: what is stored, who is let in, and how soon a change is effective."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import subprocess
import sys
import time
from base64 import b64decode
from datetime import datetime, timedelta, timezone
from pathlib import Path

import msgspec
import pytest

from serving.gateway.keys import Key, Keys, KeyStore, KeyStoreError, Limits, store_path
from shoal.errors import UsageError
from tests.conftest import ROOT

NOON = datetime(2026, 11, 27, 12, tzinfo=timezone.utc)


class Clock:
    """Seconds that go on only when a test says so."""

    def __init__(self, at: float = NOON.timestamp()) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "own" / "keys.json"


def following(path: Path, clock: Clock) -> tuple[Keys, Clock]:
    """The server's view, and the clock by which it looks for changes."""
    ticks = Clock(0.0)
    return Keys(path, now=clock, monotonic=ticks), ticks


def test_a_key_is_found_by_its_secret_alone(path: Path) -> None:
    store = KeyStore(path)
    limits = Limits(requests_per_minute=60, tokens_per_minute=1000, concurrent=2)
    key, secret = store.add("alice", models=["smollm2", "minilm", "smollm2"], priority=7, limits=limits)
    other, others = store.add("bob")
    keys = Keys(path)
    assert keys.find(secret) == key and keys.find(others) == other
    assert (key.models, key.priority, key.limits) == (("smollm2", "minilm"), 7, limits)
    assert key.may_call("minilm") and not key.may_call("digits") and other.may_call("digits")
    for wrong in (
        "",
        "shoal-",
        secret[:-1],
        secret + "=",
        secret.upper(),
        key.id,
        "alice",
        "ä",
        "\ud800",
        "x" * 99_999,
    ):
        assert keys.find(wrong) is None
    assert store.list() == (key, other)


def test_a_secret_has_256_random_bits_and_the_file_holds_only_its_hmac(path: Path) -> None:
    _, secret = KeyStore(path).add("alice")
    assert secret.startswith("shoal-")
    assert len(b64decode(secret.removeprefix("shoal-").replace("-", "+").replace("_", "/") + "=")) == 32
    raw = path.read_text()
    assert secret not in raw and secret.removeprefix("shoal-") not in raw
    stored = json.loads(raw)
    digest = hmac.new(b64decode(stored["secret"]), secret.encode(), hashlib.sha256).hexdigest()
    assert [entry["digest"] for entry in stored["keys"]] == [digest]


def test_only_the_owner_can_read_it(path: Path) -> None:
    before = os.umask(0)
    try:
        KeyStore(path).add("alice")
        KeyStore(path).revoke("alice")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert sorted(file.name for file in path.parent.iterdir()) == [".keys.json.lock", "keys.json"]


def test_a_folder_that_others_may_write_to_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o770)
    with pytest.raises(KeyStoreError, match="others may write to .*chmod 700"):
        KeyStore(path).add("alice")
    assert not path.exists()


def test_a_revoked_key_is_not_found_within_a_second(path: Path) -> None:
    store = KeyStore(path)
    _, secret = store.add("alice")
    keys = Keys(path)
    assert keys.find(secret) is not None
    store.revoke("alice")
    time.sleep(1.0)
    assert keys.find(secret) is None


def test_the_file_is_looked_at_four_times_a_second_at_most(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = KeyStore(path)
    _, secret = store.add("alice")
    keys, ticks = following(path, Clock())
    looks: list[Path] = []
    stat = Path.stat
    monkeypatch.setattr(Path, "stat", lambda self, **how: (looks.append(self), stat(self, **how))[1])
    for _ in range(1000):
        keys.find(secret)
        ticks.at += 0.001
    assert len(looks) in (3, 4)


def test_a_clock_that_is_set_back_hides_no_change(path: Path) -> None:
    clock = Clock()
    store = KeyStore(path, now=clock)
    _, secret = store.add("alice")
    keys, ticks = following(path, clock)
    clock.at -= 86_400
    (revoked,) = store.revoke("alice")
    assert revoked.revoked == NOON - timedelta(days=1) < revoked.created
    ticks.at += 0.25
    assert keys.find(secret) is None


def test_a_key_expires_at_its_instant(path: Path) -> None:
    clock = Clock()
    plus_two = timezone(timedelta(hours=2))
    key, secret = KeyStore(path, now=clock).add(
        "alice", expires=(NOON + timedelta(days=30)).astimezone(plus_two)
    )
    assert '"expires": "2026-12-27T12:00:00Z"' in path.read_text()
    keys, _ = following(path, clock)
    for after, state in (
        (0.0, "active"),
        (30 * 86_400 - 0.001, "active"),
        (30 * 86_400, "expired"),
        (1e9, "expired"),
    ):
        clock.at = NOON.timestamp() + after
        assert key.state(clock()) == state
        assert (keys.find(secret) is not None) == (state == "active")
    clock.at = NOON.timestamp()
    assert keys.find(secret) == key


@pytest.mark.parametrize("ago", [timedelta(0), timedelta(seconds=1), timedelta(days=9999)])
def test_a_key_that_has_expired_is_not_made(path: Path, ago: timedelta) -> None:
    with pytest.raises(UsageError, match="which is past"):
        KeyStore(path, now=Clock()).add("alice", expires=NOON - ago)
    assert not path.exists()


def test_a_name_is_unique_among_active_keys(path: Path) -> None:
    clock = Clock()
    store = KeyStore(path, now=clock)
    first, _ = store.add("alice", expires=NOON + timedelta(days=1))
    with pytest.raises(UsageError, match="has an active key alice"):
        store.add("alice")
    with pytest.raises(UsageError, match="has an active key"):
        store.add(first.id)  # or it would be unclear which one is revoked
    clock.at += 86_400
    second, _ = store.add("alice")
    assert {key.id for key in store.revoke("alice")} == {first.id, second.id}
    third, _ = store.add("alice")
    assert [key.id for key in store.revoke(third.id)] == [third.id]
    assert [key.state(clock()) for key in store.list()] == ["revoked"] * 3
    with pytest.raises(UsageError, match="is revoked already"):
        store.revoke("alice")
    with pytest.raises(UsageError, match="has no key bob"):
        store.revoke("bob")


def test_revoke_makes_no_store(path: Path) -> None:
    with pytest.raises(UsageError, match="has no key alice"):
        KeyStore(path).revoke("alice")
    assert KeyStore(path).list() == () and not path.parent.exists()


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("", {}),
        ("a b", {}),
        ("-x", {}),
        ("a\n", {}),
        ("x" * 65, {}),
        ("ok", {"priority": 10}),
        ("ok", {"priority": -1}),
        ("ok", {"models": [""]}),
        ("ok", {"models": ["a b"]}),
        ("ok", {"models": ["a\n"]}),
        ("ok", {"limits": Limits(requests_per_minute=0)}),
        ("ok", {"limits": Limits(tokens_per_minute=-1)}),
        ("ok", {"limits": Limits(concurrent=10**10)}),
    ],
)
def test_a_value_out_of_its_range_is_refused(path: Path, name: str, given: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        KeyStore(path).add(name, **given)  # type: ignore[arg-type]
    assert not path.exists()


def test_processes_that_add_at_once_lose_nothing(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from serving.gateway.keys import KeyStore\n"
        "for n in range(10): print(KeyStore(Path(sys.argv[1])).add(f'{sys.argv[2]}{n}')[1])"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path), name], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for name in ("a", "b")
    ]
    told = [process.communicate(timeout=120)[0].split() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    keys = Keys(path)
    for name, secrets in zip("ab", told, strict=True):
        assert [getattr(keys.find(secret), "name", None) for secret in secrets] == [
            f"{name}{n}" for n in range(10)
        ]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"[" * 100_000, b'{"version": 2}', None])
def test_what_was_good_last_stays_valid_while_the_file_is_damaged(
    path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    store = KeyStore(path)
    _, secret = store.add("alice")
    good = path.read_bytes()
    keys, ticks = following(path, Clock())
    path.write_bytes(good[:-40] if content is None else content)
    for _ in range(3):
        ticks.at += 0.25
        assert keys.find(secret) is not None and not keys.open
    assert len(caplog.records) == 1 and "is damaged" in caplog.text
    for change in (lambda: store.add("bob"), lambda: store.revoke("alice"), store.list, lambda: Keys(path)):
        with pytest.raises(KeyStoreError, match="is damaged"):
            change()
    path.write_bytes(good)
    KeyStore(path).revoke("alice")
    ticks.at += 0.25
    assert keys.find(secret) is None


def test_without_its_file_no_key_is_valid(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = KeyStore(path)
    _, secret = store.add("alice")
    good = path.read_bytes()
    keys, ticks = following(path, Clock())
    path.unlink()
    for _ in range(2):
        ticks.at += 0.25
        assert keys.find(secret) is None and not keys.open
    assert len(caplog.records) == 1 and "is gone" in caplog.text
    again, _ = following(path, Clock())
    assert not again.open  # the lock tells that there was a file
    path.write_bytes(good)
    ticks.at += 0.25
    assert keys.find(secret) is not None
    (path.parent / ".keys.json.lock").unlink()
    path.unlink()
    path.parent.rmdir()
    ticks.at += 0.25
    assert keys.find(secret) is None and not keys.open


def test_the_gateway_is_open_until_the_first_key(path: Path) -> None:
    keys, ticks = following(path, Clock())
    assert keys.open and keys.find("") is None and not path.parent.exists()
    _, secret = KeyStore(path).add("alice")
    ticks.at += 0.25
    assert not keys.open and keys.find(secret) is not None
    KeyStore(path).revoke("alice")
    ticks.at += 0.25
    assert not keys.open and keys.find(secret) is None and not Keys(path).open


def test_no_secret_is_in_a_listing_a_repr_or_a_log(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    store = KeyStore(path)
    key, secret = store.add("alice")
    keys, ticks = following(path, Clock())
    stored = json.loads(path.read_text())
    hidden = [secret.removeprefix("shoal-"), stored["secret"], stored["keys"][0]["digest"]]
    path.write_bytes(path.read_bytes()[:-40])
    ticks.at += 0.25
    keys.find(secret)
    with pytest.raises(KeyStoreError) as damaged:
        store.list()
    shown = [
        repr(key),
        repr(store),
        repr(keys),
        msgspec.json.encode(key).decode(),
        caplog.text,
        str(damaged.value),
    ]
    assert "damaged" in caplog.text
    assert [text for text in shown if any(part in text for part in hidden)] == []


def test_where_the_keys_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOAL_KEYS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert store_path() == tmp_path / "shoal" / "keys.json"
    monkeypatch.setenv("SHOAL_KEYS", str(tmp_path / "mine.json"))
    assert store_path() == tmp_path / "mine.json"
    assert store_path(tmp_path / "given.json") == tmp_path / "given.json"


def test_a_key_is_read_as_it_was_written() -> None:
    key = Key(id="0" * 12, name="a", created=NOON, expires=NOON, limits=Limits(concurrent=1))
    assert msgspec.json.decode(msgspec.json.encode(key), type=Key) == key
