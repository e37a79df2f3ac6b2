"""What lies where in a model repository, read so that a strange name or byte in one model harms no other."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

_VERSION = re.compile(r"[0-9]{1,18}")


def is_version(name: str) -> bool:
    """Whether a folder of this name holds a version: digits of ASCII, and a number that fits into 64 bits."""
    return _VERSION.fullmatch(name) is not None


def versions_in(model: Path) -> set[int]:
    """Numbers of the versions in a model's folder."""
    return {int(folder.name) for folder in model.iterdir() if is_version(folder.name) and folder.is_dir()}


def config_of(model: Path) -> str:
    """Text of a model's `config.pbtxt`; bytes that are not UTF-8 become U+FFFD, which Triton may refuse.

    Raises:
        OSError: it cannot be read.
    """
    return read_regular(model / "config.pbtxt").decode("utf-8", errors="replace")


def read_regular(path: Path) -> bytes:
    """Content of a file, never waiting for what is none: to open a pipe takes until somebody writes to it.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        return file.read()
