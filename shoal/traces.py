"""Tracebacks for whoever mends what went wrong: kept in a file, so that a user sees one line."""

from __future__ import annotations

import os
import time
import traceback
from contextlib import suppress
from pathlib import Path

from shoal.paths import cache_dir

OURS = ("shoal", "export", "serving", "clients", "loadtest")  # our packages
KEPT = 20  # files


def keep(error: BaseException) -> Path | None:
    """Write the traceback of an error to a file of its own; None: it cannot be written."""
    folder = cache_dir() / "errors"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        for old in sorted(folder.glob("*.log"))[:-KEPT]:
            old.unlink(missing_ok=True)
        return path
    return None


def is_foreign(error: BaseException) -> bool:
    """Whether an error was raised inside a library, and not by code of ours."""
    last = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        last = frame
    name = str(last.f_globals.get("__name__", "")) if last is not None else ""
    return name.partition(".")[0] not in OURS
