"""Where the state of a rollout lies on disk, and whether somebody goes on with it.

There is one file for each supervisor of a repository; replicas have one each. A lock beside it is held as
long as its supervisor lives, so that `shoal promote --wait` knows whom to wait for.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.errors import RepositoryError, ServerError
from shoal.paths import cache_dir

VARIABLE = "SHOAL_STATE"
_POLL_SECONDS = 0.2
_MOST = 64  # supervisors of one repository on one machine


def folder_of(given: Path | None = None) -> Path:
    """The folder of the states: the given one, that of the environment, or one of the user's own."""
    return (given or Path(os.environ.get(VARIABLE) or cache_dir() / "rollouts")).absolute()


def _name(repository: Path, number: int) -> str:
    return f"{hashlib.sha256(bytes(repository.resolve())).hexdigest()[:12]}-{number}.json"


class State:
    """The file of one supervisor.

    Args:
        folder: see `folder_of`.
        repository: the model repository.

    Raises:
        ServerError: the folder cannot be written.
    """

    def __init__(self, folder: Path | None, repository: Path) -> None:
        place = folder_of(folder)
        try:
            place.mkdir(parents=True, exist_ok=True)
            for number in range(_MOST):
                self.path = place / _name(repository, number)
                self._lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
                try:
                    fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError:
                    os.close(self._lock)
        except OSError as error:
            raise ServerError(
                f"{place} cannot be written: {error.strerror}", hint=f"--state or {VARIABLE}"
            ) from error
        raise ServerError(f"{_MOST} supervisors serve {repository} already")

    def close(self) -> None:
        """Let the next supervisor have it."""
        os.close(self._lock)


def states(repository: Path, folder: Path | None = None) -> list[dict[str, Any]]:
    """What the supervisors that live now say of a repository; see
    `serving.supervisor.rollout.Rollout.to_dict`."""
    found = []
    place = folder_of(folder)
    for number in range(_MOST):
        path = place / _name(repository, number)
        if _lives(path):
            try:
                found.append(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError):
                continue
    return found


def _lives(path: Path) -> bool:
    try:
        lock = os.open(path.with_suffix(".lock"), os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def wait_until_served(repository: Path, configs: Mapping[str, str], timeout: float) -> None:
    """Return when every server that follows a repository serves models with these configs.

    Args:
        configs: model -> the text of its `config.pbtxt`, as it was written to the repository.
        timeout: seconds.

    Raises:
        RepositoryError: it was refused, with the reason; or something else was asked for meanwhile.
        ServerError: no server follows the repository, or it was not served in time.
    """
    deadline, seen = time.monotonic() + timeout, False
    written = [repository / name / "config.pbtxt" for name in configs]
    asked = max((path.stat().st_mtime for path in written if path.exists()), default=0.0)
    while True:
        found = states(repository)
        if not found:
            raise ServerError(
                f"it is chosen, and not served: no running server follows {repository}",
                hint="shoal serve takes it up; or leave --wait out",
            )
        if all(_serves(state, configs) for state in found):
            return
        for state in found:
            if reason := _refused(state, configs, asked):
                before = configs.keys() & state["served"].keys()
                hint = "what was served before still is" if before else "no version of it is served"
                raise RepositoryError(f"not taken up: {reason}", hint=hint)
        if all(_seen(state, configs) for state in found):
            seen = True
        elif seen and not any(_seen(state, configs) for state in found):
            raise RepositoryError("another version was asked for meanwhile", hint="shoal versions")
        if time.monotonic() > deadline:
            raise ServerError(
                f"it is not served after {timeout:.0f} s", hint="a larger --timeout; shoal logs"
            )
        time.sleep(_POLL_SECONDS)


def _seen(state: Mapping[str, Any], configs: Mapping[str, str]) -> bool:
    """Whether its supervisor has seen that they are asked for."""
    return all(state["desired"].get(name, {}).get("config") == text for name, text in configs.items())


def _serves(state: Mapping[str, Any], configs: Mapping[str, str]) -> bool:
    desired, served = state["desired"], state["served"]
    return all(
        desired.get(name, {}).get("config") == config and served.get(name) == desired[name]
        for name, config in configs.items()
    )


def _refused(state: Mapping[str, Any], configs: Mapping[str, str], asked: float) -> str:
    """Why it was refused since it was asked for; "": it was not.

    A supervisor of an earlier release does not tell when a refused version had been asked for.
    """
    for entry in state["refused"]:
        target = entry["target"]
        if entry.get("asked", math.inf) >= asked and all(
            target.get(name, {}).get("config") == config for name, config in configs.items()
        ):
            return str(entry["reason"])
    return ""
