"""What every export has in common: what it returns, and with what it was made."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from platform import python_version
from typing import Any

from export.evidence import Measured
from export.repository import Published
from shoal.machine import FOR_GPUS


@dataclass(frozen=True)
class Outcome:
    """What an export or a verification found.

    Attributes:
        evidence: one entry per precision (export) or version (verify), proven or not.
        published: the versions that were written, the served one last (export), or that the evidence is
            of, in its order (verify).
        task: what the model is for.
    """

    evidence: tuple[Measured, ...]
    published: tuple[Published, ...] = ()
    task: str = "text-generation"

    def to_dict(self) -> dict[str, Any]:
        """Give the value as plain JSON types."""
        return {
            "evidence": [evidence.to_dict() for evidence in self.evidence],
            "published": [vars(version) for version in self.published],
            "task": self.task,
        }


def tools_of(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of those packages that are installed, or of their builds for GPUs, by name."""
    found = {"python": python_version()}
    for name in packages:
        for package in (name, *FOR_GPUS.get(name, ())):
            with suppress(metadata.PackageNotFoundError):
                found[package] = metadata.version(package)
    return found
