"""Locks between processes: `flock`, which needs no right to write and ends with the process that holds it.

The kernel keeps the lock with the file itself, so that a host and a container lock the same thing through one
bind mount, whatever each calls its path. A network file system may know no such lock, or one for each
machine.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

_LOOK_SECONDS = 0.05


class Busy(Exception):
    """Somebody else holds the lock."""


def lock(path: Path, *, exclusive: bool, create: bool = False, wait: float = 0.0) -> int:
    """Lock a file or a folder.

    Args:
        exclusive: alone; else beside others who share it.
        create: make the file where there is none.
        wait: seconds until it must be had.

    Returns:
        A file descriptor: the lock lasts until it is closed, by `os.close` or by the process's end.

    Raises:
        Busy: somebody else holds it, in a way that keeps this one out.
        OSError: it cannot be opened, or its file system knows no locks.
    """
    flags = os.O_RDONLY | (os.O_CREAT if create else 0)
    how = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB
    until = time.monotonic() + wait
    while True:
        descriptor = os.open(path, flags, 0o666)
        try:
            fcntl.flock(descriptor, how)
            if os.path.samestat(os.fstat(descriptor), path.stat()):  # else it was replaced meanwhile
                return descriptor
        except BlockingIOError:
            if time.monotonic() >= until:
                os.close(descriptor)
                raise Busy(str(path)) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(_LOOK_SECONDS)
