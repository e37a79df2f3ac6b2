"""Which versions a running server needs, told to those who might remove them.

A lease is a shared lock on the folder of a version, and not on the manifest in it, because an export of the
same bytes puts another manifest in its place. `shoal prune` removes a folder only while it holds its lock
alone.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from types import TracebackType

from shoal.errors import RepositoryError
from shoal.locks import Busy, lock

WAIT_SECONDS = 5.0  # for `shoal prune`, which holds a lock while it renames


class Leases:
    """The versions that this process needs, until `close` or until it ends, however it ends.

    Args:
        repository: the model repository; it may be mounted read-only.
    """

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._held: dict[tuple[str, int], int] = {}

    @property
    def held(self) -> frozenset[tuple[str, int]]:
        """Model and version of each that is held."""
        return frozenset(self._held)

    def hold(self, versions: Collection[tuple[str, int]]) -> None:
        """Hold these, and let go of all others: new ones are taken before old ones are let go.

        Args:
            versions: a model's name in the repository, e.g. `minilm_encoder`, and the version.

        Raises:
            RepositoryError: one is not there, or its file system knows no locks; what was held still is.
        """
        taken: dict[tuple[str, int], int] = {}
        try:
            for model, version in sorted(set(versions) - set(self._held)):
                taken[model, version] = self._shared(self._repository / model / str(version))
        except BaseException:
            for descriptor in taken.values():
                os.close(descriptor)
            raise
        self._held |= taken
        for key in set(self._held) - set(versions):
            os.close(self._held.pop(key))

    def close(self) -> None:
        """Let go of all."""
        self.hold(())

    def __enter__(self) -> Leases:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @staticmethod
    def _shared(folder: Path) -> int:
        try:
            return lock(folder, exclusive=False, wait=WAIT_SECONDS)
        except Busy:
            raise RepositoryError(f"{folder} is being removed", hint="see: shoal versions") from None
        except OSError as error:
            raise RepositoryError(f"{folder} cannot be held: {error.strerror}") from error
