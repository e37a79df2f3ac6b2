"""Where Shoal keeps what it can make again, and how it writes what must not be lost."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from shoal.errors import UsageError

TEMPORARY = ".tmp"  # how the name of what is being written ends


def cache_dir() -> Path:
    """`$SHOAL_CACHE`, else where the platform keeps such things: on Linux `$XDG_CACHE_HOME` or `~/.cache`."""
    if explicit := os.environ.get("SHOAL_CACHE"):
        return Path(explicit).absolute()
    path = user_cache_path("shoal")
    if path.parts[0] == "~":
        raise UsageError("this user has no home folder", hint="set SHOAL_CACHE")
    return path.absolute()


def named(path: Path) -> str:
    """A path as people write it, and as libraries take it that are not written in Python.

    `str` of it is not that in a Python that takes names of files for ASCII, as that of Triton's stub does.
    """
    return os.fsencode(path).decode(errors="replace")


def check_path(path: Path, what: str) -> None:
    """Refuse a path that Triton, or JSON, has no way to name.

    Raises:
        UsageError: it is not UTF-8, or has a control character such as the end of a line.
    """
    text = str(path)
    odd = any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in text)
    if odd:
        raise UsageError(f"{what} {text!r} is not UTF-8, or has control characters", hint="rename it")


def write_atomic(path: Path, content: str | bytes | memoryview, *, private: bool = False) -> None:
    """Write a file so that a reader sees the old one or the new one, also after a power cut.

    Args:
        private: only its owner may read it, also while it is being written.
    """
    temporary = write_beside(path, content, private=private)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_beside(
    path: Path, content: str | bytes | memoryview, mark: str = "", *, private: bool = False
) -> Path:
    """Write a hidden file beside `path`, which takes its place by a rename; that file's path.

    Args:
        mark: tells it from another that is to take the same place.
        private: see `write_atomic`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{mark}{TEMPORARY}")
    try:
        if private:  # not the file of a process with this number that was killed, whoever may read that
            temporary.unlink(missing_ok=True)
            temporary.touch(0o600, exist_ok=False)
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def link_or_copy(source: str, place: str) -> None:
    """A hard link, which takes no room; a copy where the file system has none, or does not allow it."""
    try:
        os.link(source, place)
    except OSError:
        shutil.copy2(source, place)


def sync_folder(folder: Path) -> None:
    """Force what a folder lists to the disk: a rename is lost by a power cut until then."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of indented JSON."""
    write_atomic(path, to_json(value))


def to_json(value: Any) -> str:
    """Indented JSON, as it is written to files."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
