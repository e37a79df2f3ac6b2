"""SHA-256 of files, kept between processes, so that a start does not read again what has not changed.

A file counts as unchanged while device, inode, size and the times of its last writing and of its last change
are those of before: to write to it, to put another in its place and to set its times back all change one of
them. A file that was changed just now is not kept, since another writing within the same tick of the clock
would show in none. What a disk loses by itself is not seen either: `sha256` alone reads the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

from shoal.paths import cache_dir, write_atomic

FILENAME = "hashes.json"
MOST = 4096  # entries; the longest unused goes first
SETTLED_NS = 2_000_000_000  # file systems keep times to a clock's tick, some to two seconds


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class Hashes:
    """The hashes that are kept in `cache_dir()`; none, where it cannot be read or written."""

    def __init__(self) -> None:
        self._path = cache_dir() / FILENAME
        self._known = _read(self._path)
        self._changed = False

    def sha256(self, path: Path) -> str:
        """Hex SHA-256 of a file's content, of now or of when it was last read.

        Raises:
            OSError: it cannot be read.
        """
        before = path.stat()
        key = _key(before)
        if (known := self._known.pop(key, None)) is None:
            known = sha256(path)
            settled = time.time_ns() - max(before.st_mtime_ns, before.st_ctime_ns) > SETTLED_NS
            if not settled or _key(path.stat()) != key:
                return known
            self._changed = True
        self._known[key] = known  # at the end: the last that goes
        return known

    def save(self) -> None:
        """Keep what was learnt, where that can be written."""
        if not self._changed:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, json.dumps(dict(list(self._known.items())[-MOST:])))
        except OSError:
            return
        self._changed = False


def _key(found: os.stat_result) -> str:
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


def _read(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {key: value for key, value in found.items() if len(bytes.fromhex(value)) == 32}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
