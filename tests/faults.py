"""A process that is killed, or whose disk fails, at one chosen call: faults by number, not by luck.

CPython's audit hooks see every opening, rename and folder that is made, whoever makes it; `os.fsync` is not
among them and is replaced. Only calls on paths below one folder count.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_PATHS = {"os.rename": 2, "os.mkdir": 1, "os.rmdir": 1, "os.remove": 1, "os.link": 2, "os.truncate": 1}
_TAKES_ROOM = ("open", "os.mkdir", "os.link")
KILL = "kill"


def fails_at(number: int, how: str, below: Path, action: Callable[[], Any]) -> str:
    """Run an action in a child process that fails at its n-th call to the file system.

    Args:
        number: of the call, from 1. how: `kill`: it is killed with -9 before the call; the name of an error,
        such as `ENOSPC`: the call raises
            it; with a + behind it: so does every later call that takes room on the disk.
        below: the folder whose files count.

    Returns:
        `killed`; `done`: it ended before that many calls; `passed over`: it ended well all the same; else
        what was raised, as `type: message`.
    """
    source, target = os.pipe()
    child = os.fork()
    if not child:
        # Garbage may be a session of ONNX Runtime, which waits for threads that the child has not.
        gc.disable()
        try:
            os.close(source)
            was_hit = _break(number, how, str(below))
            try:
                action()
                said = "passed over" if was_hit() else "done"
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"
            os.write(target, said.encode())
        finally:
            os._exit(0)
    os.close(target)
    with os.fdopen(source) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return "killed" if os.WIFSIGNALED(status) else said


def _break(number: int, how: str, below: str) -> Callable[[], bool]:
    """Let this process fail, which must be a child: the hook stays. Returns what tells whether it has."""
    calls = 0

    def seen(event: str, paths: tuple[Any, ...]) -> None:
        nonlocal calls
        if not any(str(os.fspath(path)).startswith(below) for path in paths if isinstance(path, str | Path)):
            return
        calls += 1
        lasting = how.endswith("+") and calls > number and event in _TAKES_ROOM
        if calls == number or lasting:
            if how == KILL:
                os.kill(os.getpid(), 9)
            code = getattr(errno, how.removesuffix("+"))
            raise OSError(code, os.strerror(code), str(paths[0]))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _PATHS:
            seen(event, arguments[: _PATHS[event]])
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
            seen(event, arguments[:1])

    real = os.fsync

    def fsync(file: Any) -> None:
        number = file if isinstance(file, int) else file.fileno()
        seen("os.fsync", (Path(f"/proc/self/fd/{number}").readlink(),))
        real(file)

    os.fsync = fsync
    sys.addaudithook(hook)
    return lambda: calls >= number
