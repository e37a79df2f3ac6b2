"""The audit log: a line of JSON for each request, without its text unless that is asked for.

A thread writes, so that a slow disk holds up no request. What cannot be written is counted and never fails a
request: a file that cannot be written, and lines that come faster than they are written.
"""

from __future__ import annotations

import logging
import os
import queue
import stat
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import orjson

from serving.gateway.record import MOST_TEXT, Record, Texts
from serving.gateway.redaction import redacted, redacted_json
from shoal.errors import UsageError

_log = logging.getLogger(__name__)
STDOUT = "-"
# Requests that wait for the disk. With text they hold 128 KiB each at most.
MOST_WAITING = 1024
_CLOSE_SECONDS = 5.0


class Audit:
    """Writes lines, one for each request, from when it is made.

    Args:
        target: a file, which is written on after its end and only its owner may read; "-": stdout.
        lost: is told the reason where a line is lost: `full` or `unwritable`. It is called from any thread.

    Raises:
        UsageError: the file cannot be opened.
    """

    def __init__(self, target: str, lost: Callable[[str], None]) -> None:
        self._lost = lost
        self._file = None if target == STDOUT else Path(target)
        self._queue: queue.Queue[Record | None] = queue.Queue(MOST_WAITING)
        self._warned = self._torn = False
        try:
            self._descriptor = self._opened()
        except OSError as error:
            raise UsageError(f"--audit {target} cannot be written: {error.strerror}") from error
        self._thread = threading.Thread(target=self._write_all, name="audit", daemon=True)
        self._thread.start()

    def end(self, record: Record) -> None:
        """A request has ended. This does not wait."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._lose("full", "requests end faster than it is written")

    def close(self) -> None:
        """Write what waits, for some seconds at most."""
        with suppress(queue.Full):
            self._queue.put(None, timeout=_CLOSE_SECONDS)
            self._thread.join(_CLOSE_SECONDS)

    def _write_all(self) -> None:
        while (record := self._queue.get()) is not None:
            try:
                self._write(orjson.dumps(line_of(record)) + b"\n")
            except OSError as error:
                self._lose("unwritable", error.strerror or str(error))
            else:
                self._warned = False
        if self._file is not None:
            os.close(self._descriptor)

    def _write(self, line: bytes) -> None:
        """Write a whole line, in the file of this name, even if the one before was moved or cut."""
        if self._file is not None and self._moved(self._file):
            os.close(self._descriptor)
            self._descriptor = -1
            self._descriptor, self._torn = self._opened(), False
        rest = b"\n" + line if self._torn else line
        while rest:
            written = os.write(self._descriptor, rest)
            self._torn = written < len(rest)
            rest = rest[written:]

    def _opened(self) -> int:
        if self._file is None:
            return sys.stdout.fileno()
        descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.fchmod(descriptor, 0o600)
        return descriptor

    def _moved(self, file: Path) -> bool:
        """Whether logrotate, or somebody, has put another file in its place."""
        try:
            named, held = file.stat(), os.fstat(self._descriptor)
        except OSError:
            return True
        return (named.st_dev, named.st_ino) != (held.st_dev, held.st_ino)

    def _lose(self, reason: str, why: str) -> None:
        self._lost(reason)
        if not self._warned:
            self._warned = True
            _log.warning("lines of the audit log %s are lost: %s", self._file or "on stdout", why)


def line_of(record: Record) -> dict[str, Any]:
    """What the log has of a request.

    Returns:
        `time` in UTC, `seconds` and `first_token_seconds` since it began (null: no stream), counts of tokens
        and bytes; fields that are not known are null or "".
    """
    began = datetime.fromtimestamp(record.at, timezone.utc)
    line: dict[str, Any] = {
        "time": began.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "request_id": record.id,
        "key": record.key,
        "endpoint": record.endpoint,
        "model": record.model,
        "version": record.version,
        "status": record.status,
        "error": record.error or None,
        "input_tokens": record.input_tokens,
        "cached_tokens": record.cached_tokens,
        "output_tokens": record.output_tokens,
        "seconds": round(record.seconds, 6),
        "first_token_seconds": None if not record.stream or record.first is None else round(record.first, 6),
        "finish_reasons": record.finish_reasons,
        "cache": record.cache or None,
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
    }
    if record.texts is not None:
        line["request"] = _json(record.texts.body)
        line["answer"] = _answer(record.texts, record.operation)
    return line


def _json(content: bytes) -> Any:
    """A body, redacted; null: there is none, it is too long, or it is no JSON."""
    try:
        return redacted_json(orjson.loads(content))
    except (orjson.JSONDecodeError, RecursionError):
        return None


def _answer(texts: Texts, operation: str) -> Any:
    """What a decoder wrote, a text for each answer, or the body of another task's response; no vectors."""
    if texts.answers:
        # A whole answer, since a number may be split over its parts.
        whole = ["".join(parts) for _, parts in sorted(texts.answers.items())]
        return [redacted(text) if len(text) <= MOST_TEXT else None for text in whole]
    return None if operation == "embeddings" else _json(texts.reply)
