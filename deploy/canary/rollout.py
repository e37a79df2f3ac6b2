"""One canary from its first request to its end: on disk, so that whoever is killed can go on with it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from deploy.canary.guards import Answered, Judge
from deploy.canary.mirror import Compared
from deploy.canary.split import Folder, Split
from shoal.errors import ShoalError, UsageError
from shoal.locks import Busy, lock
from shoal.paths import check_path, write_json

STATE, FOLDER_FILE, WISH, LOCK = "rollout.json", "canary.json", "wish.json", ".canary.lock"
LOOK_SECONDS = 0.5
_MORE = 1.02  # times as many requests are a new entry of the history, which so stays short
Phase = Literal["running", "paused", "promoting", "promoted", "rolled back", "inconclusive", "good", "worse"]
Wish = Literal["pause", "resume", "abort", "promote"]
ENDED = ("promoted", "rolled back", "inconclusive", "good", "worse")


@dataclass(frozen=True)
class Rollout:
    """What is known of a canary.

    Attributes:
        split: who gets it.
        model, version: what it is.
        before: the version that is served to the others.
        seconds: that it may take, without pauses.
        spent: seconds that it has run.
        phase: running, paused (nobody gets it), promoting (its version is being served to everybody), or how
            it ended; good and worse are of a shadow.
        reason: why it ended.
        judge: what was seen.
        position: in Envoy's log, up to which it was read.
        history: by how many `requests` of it there were, the `evidence` of each guard; see `Judge.rows`.
        started, updated: seconds since the epoch.
    """

    split: Split
    model: str
    version: int
    before: int
    seconds: float
    judge: Judge
    spent: float = 0.0
    phase: Phase = "running"
    reason: str = ""
    position: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    updated: float = field(default_factory=time.time)

    @property
    def shadow(self) -> bool:
        """Whether it gets copies of requests alone, and nobody its answers."""
        return not self.split.share

    @property
    def ended(self) -> bool:
        """Whether it was decided."""
        return self.phase in ENDED

    def to_dict(self) -> dict[str, Any]:
        """Give the value as plain JSON types; `guards` is for readers."""
        kept = {name: value for name, value in vars(self).items() if name not in ("split", "judge")}
        rows = self.judge.rows()
        return {**kept, "split": asdict(self.split), "guards": rows, "judge": self.judge.to_dict()}

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> Rollout:
        """Make the value from what `to_dict` gave."""
        values = {name: value for name, value in kept.items() if name not in ("split", "judge", "guards")}
        return cls(split=Split(**kept["split"]), judge=Judge.from_dict(kept["judge"]), **values)


def create_folder(folder: Folder) -> None:
    """Make what Envoy and `shoal canary` share; where requests go stays as it is if Envoy was told before.

    Raises:
        UsageError: the folder cannot be written, or its name cannot be given to Envoy.
    """
    check_path(folder.folder, "the folder")
    try:
        folder.folder.mkdir(parents=True, exist_ok=True)
        write_json(
            folder.folder / FOLDER_FILE,
            {name: value for name, value in vars(folder).items() if name != "folder"},
        )
        folder.prepare()
        if read(folder) is None:
            folder.send(None)
    except OSError as error:
        raise UsageError(f"{folder.folder} cannot be written: {error.strerror}") from error


def open_folder(given: Path) -> Folder:
    """The folder that `shoal deploy envoy --canary` has made.

    Raises:
        UsageError: there is none.
    """
    try:
        kept = json.loads((given / FOLDER_FILE).read_text(encoding="utf-8"))
        return Folder(
            given.absolute(),
            int(kept["grpc"]),
            int(kept["http"]),
            float(kept["probe_seconds"]),
            int(kept["mirror"]),
            [str(each) for each in kept["servers"]],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{given} is no folder of a canary",
            hint="shoal deploy envoy HOST... --canary FOLDER -o envoy.yaml",
        ) from error


def read(folder: Folder) -> Rollout | None:
    """The rollout of a folder, which may have ended; None: there was none.

    Raises:
        ShoalError: its file cannot be understood.
    """
    path = folder.folder / STATE
    try:
        return Rollout.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ShoalError(
            f"{path} cannot be understood", hint="shoal rollout abort sends all requests to what is served"
        ) from error


@contextmanager
def watching(folder: Folder) -> Iterator[None]:
    """Be the one who decides.

    Raises:
        UsageError: somebody else does.
    """
    try:  # whoever only looks whether somebody does has it for a moment
        held = lock(folder.folder / LOCK, exclusive=True, create=True, wait=1.0)
    except Busy as error:
        raise UsageError(
            f"a shoal canary with {folder.folder} runs already", hint="shoal rollout status"
        ) from error
    try:
        wished(folder)  # what was asked of another one
        yield
    finally:
        os.close(held)


def is_watched(folder: Folder) -> bool:
    """Whether a `shoal canary` runs."""
    try:
        os.close(lock(folder.folder / LOCK, exclusive=False, create=True))
    except Busy:
        return True
    return False


def wish(folder: Folder, what: Wish) -> None:
    """Ask the `shoal canary` that runs for something; it does it within a second. An abort stays one."""
    if _asked(folder.folder / WISH) != "abort":
        write_json(folder.folder / WISH, {"wish": what})


def run(
    folder: Folder,
    rollout: Rollout,
    *,
    problem: Callable[[], str | None],
    promote: Callable[[], None],
    tell: Callable[[Rollout], None] = lambda rollout: None,
    compared: Callable[[], Sequence[Compared]] = tuple,
) -> Rollout:
    """Give the canary its share, watch it, and decide. To be called inside of `watching`.

    Whatever ends this, an error or Ctrl-C included, no request goes to the canary afterwards.

    Args:
        rollout: a new one, or one that goes on.
        problem: what makes it impossible to go on, or None; asked twice a second.
        promote: serves the version to everybody.
        tell: gets what is known twice a second.
        compared: what became of copies of requests since the last call.

    Returns:
        The rollout, which has ended.

    Raises:
        OSError: the folder cannot be written.
    """
    # While nobody watched, the canary's server was gone, so Envoy's log says that others had to answer.
    rollout = replace(rollout, position=folder.end)
    try:
        if rollout.phase in ("running", "promoting"):
            folder.send(rollout.split)
        rollout.judge.begin()
        last = time.monotonic()
        while not rollout.ended:
            keep(folder, rollout)
            tell(rollout)
            if rollout.phase == "promoting":
                rollout = promoted(rollout, promote)
                break
            time.sleep(LOOK_SECONDS)
            now = time.monotonic()
            before, rollout = rollout.phase, _look(folder, rollout, now - last, compared())
            last = now
            rollout = _decided(rollout, wished(folder), problem())
            if rollout.phase != before:
                keep(folder, rollout)
                folder.send(rollout.split if rollout.phase in ("running", "promoting") else None)
                rollout.judge.begin()
    finally:
        folder.send(None)
    keep(folder, rollout)
    tell(rollout)
    return rollout


def promoted(rollout: Rollout, promote: Callable[[], None]) -> Rollout:
    """Serve the version to everybody, or say why that failed."""
    try:
        promote()
    except ShoalError as error:
        return replace(rollout, phase="rolled back", reason=f"it could not be promoted: {error.message}")
    return replace(rollout, phase="promoted")


def keep(folder: Folder, rollout: Rollout) -> None:
    """Write what is known."""
    write_json(folder.folder / STATE, replace(rollout, updated=time.time()).to_dict())


def wished(folder: Folder) -> Wish | None:
    """What was asked for since the last time."""
    taken = folder.folder / f".{WISH}"
    with suppress(OSError):
        (folder.folder / WISH).rename(taken)  # one that is written now is the next one
        return _asked(taken)
    return None


def _asked(path: Path) -> Wish | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        what = json.loads(path.read_text(encoding="utf-8"))["wish"]
        return what if what in ("pause", "resume", "abort", "promote") else None
    return None


def _look(folder: Folder, rollout: Rollout, seconds: float, copies: Sequence[Compared]) -> Rollout:
    """Count what has come since the last look."""
    requests, position = folder.answered(rollout.split.rollout, rollout.model, rollout.position)
    if not rollout.shadow:  # else all of them are of the version that is served
        for request in requests:
            rollout.judge.add(request)
    for copy in copies:
        if copy.agree is not None:
            rollout.judge.compare(agree=copy.agree)
        if rollout.shadow:
            for new in (False, True):
                rollout.judge.add(Answered(new, copy.failed[new], copy.seconds[new]))
    number = rollout.judge.new.number
    if number > _MORE * (rollout.history[-1]["requests"] if rollout.history else 0):
        evidence = [row["evidence"] for row in rollout.judge.rows()]
        rollout.history.append({"requests": number, "evidence": evidence})
    spent = rollout.spent + (seconds if rollout.phase == "running" else 0.0)
    return replace(rollout, position=position, spent=spent)


def _decided(rollout: Rollout, wished: Wish | None, problem: str | None) -> Rollout:
    """What follows from what is known: the first of these that holds.

    Nobody's word but the guards' and the user's makes a version good.
    """
    verdict = rollout.judge.verdict
    worse = ", ".join(row["guard"] for row in rollout.judge.rows() if row["verdict"] == "worse")
    bad: Phase = "worse" if rollout.shadow else "rolled back"
    good: Phase = "good" if rollout.shadow else "promoting"
    ends: list[tuple[bool, Phase, str]] = [
        (wished == "abort", "rolled back", "shoal rollout abort"),
        (problem is not None, "rolled back", problem or ""),
        (verdict == "worse", bad, f"worse: {worse}"),
        (wished == "promote" and not rollout.shadow, "promoting", "shoal rollout promote"),
        (wished == "pause", "paused", ""),
        (wished == "resume", "running", ""),
        (verdict == "good" and rollout.phase == "running", good, "every guard is met"),
        (rollout.spent >= rollout.seconds, "inconclusive", _lacking(rollout)),
    ]
    for holds, phase, reason in ends:
        if holds:
            return replace(rollout, phase=phase, reason=reason)
    return rollout


def _lacking(rollout: Rollout) -> str:
    number = rollout.judge.new.number
    if not number:
        return "no request reached it in the time it had"
    open_ones = [row["guard"] for row in rollout.judge.rows() if row["verdict"] == "open"]
    return f"{number} requests do not tell: {', '.join(open_ones)}"
