"""What a tritonserver writes, and the few lines of it that say why it failed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

# What every start without a GPU prints, at error level or not.
_HARMLESS = re.compile(
    r"CudaDriverHelper|pinned_memory_manager|cuda_memory_manager|CUDA driver version is insufficient|DCGM"
)
# Of a line in either of Triton's formats: whether it says what went wrong, and what stands before that.
_TELLING = re.compile(
    r"E\d{4}|\S+Z E |error:|\w*(Error|Exception)\b|(I\d{4}|\S+Z I) .*failed|.*(unrecognized|invalid) option"
)
_PLACE = re.compile(r'^([EI]\d{4} \S+|\S+Z [EI]) \d+ \S+\] ?"?')


class Output(Protocol):
    """Takes what a server writes."""

    @property
    def descriptor(self) -> int:
        """The descriptor that a server writes to."""
        ...

    def lines(self) -> Sequence[str]:
        """The last that were written."""
        ...


def lines_of(log: Path) -> list[str]:
    """What a log holds; nothing where it cannot be read."""
    try:
        return log.read_text(errors="replace").splitlines()
    except OSError:
        return []


def important_lines(lines: Sequence[str], limit: int = 6) -> str:
    """The few lines of a server that say why it failed; without those every start prints."""
    wanted = []
    for line in lines:
        if _HARMLESS.search(line) or not _TELLING.match(line):
            continue
        message = _PLACE.sub("", line).strip().rstrip('"')
        if message and message not in wanted:
            wanted.append(message)
    return "\n".join(f"  {line[:400]}" for line in (wanted or lines)[-limit:])
