"""Become another program, which ends with this one's parent: `python -m serving.launch PARENT SIGNAL CMD...`.

`subprocess`'s `preexec_fn` would do it in the parent's own process, where threads (gRPC has many) make
it unsafe. PR_SET_PDEATHSIG survives exec; a parent that died before it was set is noticed by its pid.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def launch_with(parent: int, death: signal.Signals = signal.SIGTERM) -> list[str]:
    """What goes before a command that is to end with the process `parent`, by the signal `death`."""
    return [*python(), "-m", "serving.launch", str(parent), str(int(death))]


def python() -> list[str]:
    """This interpreter; from Python 3.11 it imports nothing from the folder that the user is in."""
    return [sys.executable, *(["-P"] if sys.version_info >= (3, 11) else [])]


def main() -> None:
    """Set the death signal, then exec the command."""
    parent, death, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    # A parent that is told to stop ignores further signals, and exec would hand that on.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, death)
    if os.getppid() != parent:
        sys.exit("the parent has gone already")
    os.execv(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main()
