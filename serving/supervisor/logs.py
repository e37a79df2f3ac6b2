"""Triton's lines as one JSON object each, with the id of the request that they are about.

Those of a service on a user's machine stay as Triton writes them.

A line of Triton 2.51 with `--log-format=ISO8601` is `2026-11-23T17:00:00Z I 71 server.cc:849] "text"`, and a
message that is about a request holds `[request id: NAME]`. What models print comes as it is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections import deque
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

from shoal.errors import in_one_line

_LINE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ) ([IWEV]) (\d+) (\S+?)\] (.*)", re.DOTALL)
_REQUEST = re.compile(r"\[request id: ([^\]]*)\] ?")
_LEVELS = {"I": "info", "W": "warning", "E": "error", "V": "verbose"}
_TABLE = ("+-", "| ")  # what Triton draws at every start
_NO_ID = "<id_unknown>"
_REMEMBERED = 300  # lines
_ARRIVE_SECONDS = 0.2
_MOST_BYTES = 64 << 20  # of the log of a service

_form = SimpleNamespace(plain=False)  # whether lines are for people


def entry(line: str) -> dict[str, str]:
    """A line as `time`, `level`, `message`, and where they are known `where` and `request_id`."""
    found = _LINE.fullmatch(line)
    if not found:
        return {"time": now(), "level": "info", "where": "model", "message": line}
    time, level, _, where, text = found.groups()
    if text.startswith('"') and text.endswith('"'):
        try:
            text = json.loads(text)
        except ValueError:
            text = text[1:-1]
    made = {"time": time, "level": _LEVELS[level], "where": where, "message": text}
    if request := _REQUEST.search(text):
        made["message"] = text.replace(request[0], "", 1)
        if request[1] not in ("", _NO_ID):
            made["request_id"] = request[1]
    return made


def now() -> str:
    """The time now, in the form of Triton's log, to the millisecond."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def say(message: str, *, level: str = "info", **more: object) -> None:
    """A line of the supervisor's own."""
    if _form.plain:
        about = "".join(f" {name}={value}" for name, value in more.items() if value != "")
        _print(f"{now()} supervisor {level}: {in_one_line(message, 2000)}{about}")
    else:
        _print_json({"time": now(), "level": level, "where": "supervisor", "message": message, **more})


def for_people() -> None:
    """Write lines as Triton does from now on, and not as JSON."""
    _form.plain = True


def _print_json(made: dict[str, object] | dict[str, str]) -> None:
    _print(json.dumps(made, ensure_ascii=False))


def _print(line: str) -> None:
    """Print a line in one write, so that two threads do not mix; a full disk does not stop the service."""
    with suppress(OSError):
        os.write(1, (line + "\n").encode())
        if _form.plain and os.fstat(1).st_size > _MOST_BYTES:
            _begin_anew()


def _begin_anew() -> None:
    """Keep what the log of a service holds as its second file, and go on with an empty one."""
    path = Path("/proc/self/fd/1").readlink()
    shutil.copyfile(path, f"{path}.1")
    os.ftruncate(1, 0)


class Pipe:
    """A file descriptor for one server; what it writes is printed line by line, by a thread of its own.

    Each server has another, so that what one wrote is never taken for the reason of the next.
    """

    def __init__(self) -> None:
        source, self.descriptor = os.pipe()
        self._lines: deque[str] = deque(maxlen=_REMEMBERED)
        threading.Thread(target=self._read, args=[source], daemon=True).start()

    def started(self) -> None:
        """The server has its end now: once it closes that, reading ends."""
        os.close(self.descriptor)

    def lines(self) -> list[str]:
        """The last that were written, once what is on its way has arrived."""
        time.sleep(_ARRIVE_SECONDS)
        return list(self._lines)

    def _read(self, source: int) -> None:
        with open(source, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                self._lines.append(line.rstrip("\n"))
                if _form.plain:
                    _print(line.rstrip("\n"))
                elif line.strip() and not line.startswith(_TABLE):
                    _print_json(entry(line.rstrip("\n")))
