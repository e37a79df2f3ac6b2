"""What every export has in common: what it returns, and how a full disk is told."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.repository import Published
from shoal.errors import RepositoryError

if TYPE_CHECKING:
    from export.evidence import Evidence
    from export.generation.verify import GenerationEvidence
    from export.tabular.evidence import TabularEvidence
    from export.text2text.verify import Text2TextEvidence


@dataclass(frozen=True)
class Outcome:
    """What an export or a verification found.

    Attributes:
        evidence: one entry per precision (export) or version (verify), proven or not.
        published: the versions that were written, the served one last (export), or that the evidence is
            of, in its order (verify).
        task: what the model is for.
    """

    evidence: tuple[Evidence | GenerationEvidence | TabularEvidence | Text2TextEvidence, ...]
    published: tuple[Published, ...] = ()
    task: str = "text-generation"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "evidence": [evidence.to_dict() for evidence in self.evidence],
            "published": [vars(version) for version in self.published],
            "task": self.task,
        }


@contextmanager
def disk_errors_named(repository: Path) -> Iterator[None]:
    """A full disk, or a folder that may not be written, as one clear error, wherever it strikes."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise RepositoryError(
                f"{error.filename or repository} cannot be written: {error.strerror}",
                hint="choose another --repository or its permissions",
            ) from error
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(repository).free // 2**20
        raise RepositoryError(
            f"the disk of {repository} is full ({free} MiB free); nothing was published",
            hint="make room, or choose another --repository",
        ) from error
