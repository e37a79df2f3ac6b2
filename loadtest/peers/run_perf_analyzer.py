"""NVIDIA's Perf Analyzer, as it is: every argument is handed on.

It is the one that tritonclient 2.44's wheel for Linux brings, the last that did. It needs the CUDA runtime,
which its environment has, and Debian's package libb64-0d.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path


def main() -> None:
    """Become Perf Analyzer."""
    program = Path(sys.executable).with_name("perf_analyzer")
    libraries = Path(sysconfig.get_path("purelib")) / "nvidia" / "cuda_runtime" / "lib"
    os.environ["LD_LIBRARY_PATH"] = f"{libraries}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    os.execv(program, [str(program), *sys.argv[1:]])  # noqa: S606


if __name__ == "__main__":
    main()
