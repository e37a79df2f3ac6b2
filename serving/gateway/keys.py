"""API keys of the gateway: who may call it, which models, how much, and until when.

The file of keys holds no key. It holds the HMAC-SHA256 of each, made with a secret that lies beside them in
the same file, so that whoever reads the file cannot call the gateway. `KeyStore` changes the file, for
`shoal keys`; `Keys` follows it, for the server.
"""

from __future__ import annotations

import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from platformdirs import user_config_path

from shoal import locks
from shoal.errors import ShoalError, UsageError, first_line
from shoal.paths import write_atomic

VARIABLE = "SHOAL_KEYS"  # names another file of keys
PREFIX = "shoal-"  # what every key begins with, so that tools that look for leaked secrets can find it
_LOOK_SECONDS = 0.25  # how often at most the server looks whether the file has changed
_LOCK_SECONDS = 10.0  # how long a change waits for another one
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}\Z"
_MODEL = r"^[^\s\x00-\x1f\x7f]{1,256}\Z"

_log = logging.getLogger(__name__)

Instant = Annotated[datetime, msgspec.Meta(tz=True)]
Amount = Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]
State = Literal["active", "expired", "revoked"]


class KeyStoreError(ShoalError):
    """The file of keys cannot be read, trusted or written."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much a key may use, each 1 to 1,000,000,000; None: as much as it likes.

    Args:
        requests_per_minute: requests that begin within any 60 seconds.
        tokens_per_minute: tokens of prompts and answers within 60 seconds.
        concurrent: requests that run at the same time.
    """

    requests_per_minute: Amount | None = None
    tokens_per_minute: Amount | None = None
    concurrent: Amount | None = None


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of a key. The secret that its holder sends is not part of it.

    Args:
        id: 12 hex digits, which never change and are not secret.
        name: what people call it: unique among the active keys.
        models: those it may call; none: all.
        priority: 0 to 9; the higher ones are served first.
        created, expires, revoked: in UTC; None: never.
    """

    id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{12}\Z")]
    name: Annotated[str, msgspec.Meta(pattern=_NAME)]
    models: tuple[Annotated[str, msgspec.Meta(pattern=_MODEL)], ...] = ()
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] = 0
    limits: Limits = Limits()
    created: Instant
    expires: Instant | None = None
    revoked: Instant | None = None

    def may_call(self, model: str) -> bool:
        """Whether this key is for a model."""
        return not self.models or model in self.models

    def state(self, now: float) -> State:
        """What it is at a time, in seconds since 1970. It expires at its instant, not after it.

        A revoked key stays revoked whatever the clock says.
        """
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires.timestamp() <= now else "active"


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: Key
    digest: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class _Content(msgspec.Struct, forbid_unknown_fields=True):
    version: Literal[1]
    secret: Annotated[bytes, msgspec.Meta(min_length=32)]  # of the HMAC
    keys: list[_Entry]

    def __repr__(self) -> str:
        return f"<{len(self.keys)} keys>"  # its secret must not get into a log


_DECODER = msgspec.json.Decoder(_Content)
_Signature = tuple[int, int, int]


def store_path(given: Path | None = None) -> Path:
    """The file of keys: the given one, that of `$SHOAL_KEYS`, or one in the user's folder of settings.

    Raises:
        UsageError: there is no such folder.
    """
    if given is not None or (named := os.environ.get(VARIABLE)):
        return Path(given or named).absolute()  # type: ignore[arg-type]
    folder = user_config_path("shoal")
    if folder.parts[0] == "~":
        raise UsageError("this user has no home folder", hint=f"set {VARIABLE}, or give --store")
    return folder.absolute() / "keys.json"


class KeyStore:
    """The file of keys, as the command changes it. Nothing is made before the first key is.

    Args:
        path: the file; see `store_path`.
        now: the time, in seconds since 1970.
    """

    def __init__(self, path: Path | None = None, *, now: Callable[[], float] = time.time) -> None:
        self.path = store_path(path)
        self._now = now

    def list(self) -> tuple[Key, ...]:
        """All keys, the oldest first; expired and revoked ones too.

        Raises:
            KeyStoreError: the file is damaged, or cannot be read.
        """
        try:
            return tuple(entry.key for entry in _read(self.path)[0].keys)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise _unusable(self.path, "read", error) from error

    def add(
        self,
        name: str,
        *,
        models: Sequence[str] = (),
        expires: datetime | None = None,
        priority: int = 0,
        limits: Limits | None = None,
    ) -> tuple[Key, str]:
        """Make a key.

        Args:
            expires: with a time zone.

        Returns:
            The key, and its secret, which is kept nowhere.

        Raises:
            UsageError: the name is taken or cannot be one, or a value is out of its range.
            KeyStoreError: the file is damaged, cannot be written, or is being changed for too long.
        """
        if not re.match(_NAME, name):
            hint = "letters, digits, '_', '-', '.' and '@', at most 64, a letter or a digit first"
            raise UsageError(f"name {name!r} cannot be the name of a key", hint=hint)
        with self._changing() as content:
            taken = [entry.key for entry in content.keys]
            now = self._now()
            if expires is not None and expires.timestamp() <= now:
                raise UsageError(f"the key would expire at {expires.isoformat()}, which is past")
            if any(name == key.id or (name == key.name and key.state(now) == "active") for key in taken):
                raise UsageError(
                    f"{self.path} has an active key {name}",
                    hint=f"choose another name, or shoal keys revoke {name}",
                )
            values = {
                "id": secrets.token_hex(6),
                "name": name,
                "models": tuple(dict.fromkeys(models)),
                "priority": priority,
                "limits": limits or Limits(),
                "created": _instant(now),
                "expires": expires and expires.astimezone(timezone.utc),
            }
            try:
                key = msgspec.convert(msgspec.to_builtins(values), Key)
            except msgspec.ValidationError as error:
                raise UsageError(f"the key {name} has a value out of its range: {error}") from None
            secret = PREFIX + secrets.token_urlsafe(32)
            content.keys.append(_Entry(key, _digest(content.secret, secret)))
        return key, secret

    def revoke(self, id_or_name: str) -> tuple[Key, ...]:
        """Make a key invalid for ever: the one with this id, or all with this name that are not revoked.

        Several have one name where all but the last have expired.

        Returns:
            What was revoked, as it is now.

        Raises:
            UsageError: there is none, or it is revoked already.
            KeyStoreError: see `add`.
        """
        if not self.path.exists():  # so that nothing is made where there is nothing to revoke
            raise self._unknown(id_or_name)
        with self._changing() as content:
            found = [entry.key for entry in content.keys if id_or_name in (entry.key.id, entry.key.name)]
            chosen = {key.id for key in found if key.revoked is None}
            if not found:
                raise self._unknown(id_or_name)
            if not chosen:
                raise UsageError(f"key {id_or_name} is revoked already, since {found[-1].revoked}")
            now = _instant(self._now())
            for index, entry in enumerate(content.keys):
                if entry.key.id in chosen:
                    revoked = msgspec.structs.replace(entry.key, revoked=now)
                    content.keys[index] = _Entry(revoked, entry.digest)
        return tuple(entry.key for entry in content.keys if entry.key.id in chosen)

    def _unknown(self, id_or_name: str) -> UsageError:
        return UsageError(f"{self.path} has no key {id_or_name}", hint="shoal keys list shows them")

    @contextmanager
    def _changing(self) -> Iterator[_Content]:
        """The content, which is written when nothing was raised; no other process changes it meanwhile."""
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if folder.stat().st_mode & 0o022:
                raise KeyStoreError(
                    f"others may write to {folder}, and so replace the keys in it", hint=f"chmod 700 {folder}"
                )
            held = locks.lock(_lock_of(self.path), exclusive=True, create=True, wait=_LOCK_SECONDS)
        except locks.Busy:
            raise KeyStoreError(
                f"{self.path} is being changed by another process", hint="try again"
            ) from None
        except OSError as error:
            raise _unusable(self.path, "written", error) from error
        try:
            try:
                content = _read(self.path)[0]
            except FileNotFoundError:
                content = _Content(1, secrets.token_bytes(32), [])
            yield content
            write_atomic(self.path, msgspec.json.format(msgspec.json.encode(content)), private=True)
        except OSError as error:
            raise _unusable(self.path, "written", error) from error
        finally:
            os.close(held)


class Keys:
    """The keys as the server knows them: it takes up a changed file within a second.

    While the file is damaged or cannot be read, what was read last stays valid, and the log says so. Without
    the file no key is valid.

    Args:
        path: the file; see `store_path`.
        now: the time, in seconds since 1970, that keys expire by.
        monotonic: seconds that never go back, by which it looks for changes.

    Raises:
        KeyStoreError: the file is damaged, or cannot be read, at the start.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = store_path(path)
        self._now = now
        self._monotonic = monotonic
        self._signature: _Signature | None = None
        self._known: tuple[bytes, dict[str, Key]] = (b"", {})  # the HMAC's secret, and keys by their digest
        self._closed = False
        self._trouble = ""  # that the log has told
        self._looked = monotonic()
        try:
            self._load()
        except OSError as error:
            raise _unusable(self.path, "read", error) from error

    @property
    def open(self) -> bool:
        """Whether no key was ever made, so that callers have none to send.

        It is never true again once there was a key, or a file of keys that is gone: the lock beside the file
        tells that there was one.
        """
        self._look()
        return not self._closed

    def find(self, secret: str) -> Key | None:
        """The active key with this secret; None: there is none, or it has expired or was revoked.

        How long this takes tells nothing about the secrets of others: what is looked up is an HMAC, which
        nobody can choose without the secret of the server.
        """
        self._look()
        server_secret, keys = self._known
        key = keys.get(_digest(server_secret, secret))
        return key if key is not None and key.state(self._now()) == "active" else None

    def _look(self) -> None:
        at = self._monotonic()
        if at - self._looked < _LOOK_SECONDS:
            return
        self._looked = at
        try:
            self._load()
            trouble = ""
        except (KeyStoreError, OSError) as error:
            trouble = f"changes of keys are not taken up: {error}"
        if trouble and trouble != self._trouble:
            _log.error("%s", trouble)
        self._trouble = trouble

    def _load(self) -> None:
        try:
            if _signature(self.path.stat()) == self._signature:
                return
            content, self._signature = _read(self.path)
        except (FileNotFoundError, NotADirectoryError):
            if self._signature is not None:
                _log.error("no key is valid, because %s is gone", self.path)
            self._signature, self._known = None, (b"", {})
            self._closed = self._closed or _lock_of(self.path).exists()
            return
        self._known = (content.secret, {entry.digest: entry.key for entry in content.keys})
        self._closed = self._closed or bool(content.keys)


def _digest(server_secret: bytes, secret: str) -> str:
    return hmac.digest(server_secret, secret.encode("utf-8", "replace"), "sha256").hex()


def _instant(now: float) -> datetime:
    return datetime.fromtimestamp(int(now), timezone.utc)


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _signature(found: os.stat_result) -> _Signature:
    return found.st_mtime_ns, found.st_size, found.st_ino


def _unusable(path: Path, how: str, error: OSError) -> KeyStoreError:
    return KeyStoreError(f"{path} cannot be {how}: {error.strerror or error}", hint=f"--store or {VARIABLE}")


def _read(path: Path) -> tuple[_Content, _Signature]:
    """The content of a file of keys, and what tells that it has not changed since.

    Raises:
        KeyStoreError: it is damaged.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        signature = _signature(os.fstat(file.fileno()))
        raw = file.read()
    try:
        return _DECODER.decode(raw), signature
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        hint = "put back a copy of it, or move it away and make new keys"
        raise KeyStoreError(f"{path} is damaged: {first_line(error)}", hint=hint) from None
