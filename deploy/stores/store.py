"""What every store can do."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from deploy.stores.bundle import File
from shoal.errors import ShoalError


class StoreError(ShoalError):
    """A store cannot be reached, or refuses; nothing was changed in a model repository."""


class Taken(StoreError):
    """Another version has been pushed to this address."""


class Nothing(StoreError):
    """The store answers, and holds no such version. It has an exit code of its own, for scripts."""

    exit_code = 3


class Store(Protocol):
    """One address of a store. Each method may raise `StoreError`."""

    def put(self, file: File, path: Path) -> bool:
        """Keep a file's content.

        Returns:
            Whether it was sent; it may be there already.
        """

    def publish(self, tag: str, bundle: bytes, files: dict[str, File]) -> str:
        """Let a tag name a bundle whose files are all there, at once, and only if nothing else has this tag.

        Returns:
            What names exactly this: a digest.

        Raises:
            Taken: the tag names something else.
        """

    def tags(self) -> list[str]:
        """The tags of this model."""

    def bundle(self, tag: str) -> bytes:
        """What `publish` was given."""

    def get(self, file: File, path: Path) -> None:
        """Write a file's content to `path`; what comes is as long as it should be, or an error."""
