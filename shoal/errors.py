"""Everything Shoal raises on purpose.

ShoalError                     message + hint: what failed, and what to do about it
├── UsageError                 a flag, a recipe or a path that cannot work
├── MissingDependency          an extra is not installed
├── ExportError                a checkpoint that cannot be turned into ONNX
│   └── NotProven              it was turned, but its evidence is not good enough
├── RepositoryError            the model repository cannot be read, trusted or written
├── ServerError                Triton could not be started, found or stopped
└── ClientError                a request was not answered with a result (see `clients.errors`)
    └── BadInput               the request can never succeed as it is

Library code raises; `shoal.cli.app.main` alone turns an error into one line and an exit code.
"""

from __future__ import annotations


def install_hint(extra: str) -> str:
    """How to get an extra, or with "" what every part needs.

    From this project's own folder, because the name on an index may be another's.
    """
    target = f".[{extra}]" if extra else "."
    return f"in Shoal's folder: pip install -e '{target}'"


def in_one_line(text: str, most: int = 500) -> str:
    """A message without ends of lines, cut where it is longer than so many characters."""
    joined = " ".join(text.split())
    return joined if len(joined) <= most else f"{joined[: most - 3]}..."


def first_line(error: BaseException) -> str:
    """The first line of what an error says; of one that says nothing, the name of its class."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class ShoalError(Exception):
    """An error with a way out.

    Args:
        message: what failed, naming the thing that failed.
        hint: what to do about it; empty where there is nothing to add.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(ShoalError):
    """A flag, a recipe or a path that cannot work."""

    exit_code = 2


class MissingDependency(ShoalError):
    """An optional dependency is not installed.

    Args:
        package: what is missing.
        extra: the extra of this distribution that brings it.
    """

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(f"{package} is not installed", hint=install_hint(extra))


class ExportError(ShoalError):
    """A checkpoint that cannot be turned into ONNX."""


class NotProven(ExportError):
    """A model was exported, but its evidence is not good enough to publish it."""


class RepositoryError(ShoalError):
    """The model repository cannot be read, trusted or written."""


class ServerError(ShoalError):
    """Triton could not be started, found or stopped."""


class ClientError(ShoalError):
    """A request was not answered with a result."""


class BadInput(ClientError):
    """The request can never succeed as it is."""
