"""What every original has in common."""

from __future__ import annotations

import io
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import metadata
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

# One input as a user has it: by name its texts, or the content of a picture's file.
Row = Mapping[str, Sequence[Any]]


class Failed:
    """The original itself raises for an input: there is nothing to compare an answer with."""

    def __init__(self, error: BaseException) -> None:
        self.reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]


class Original(ABC):
    """A checkpoint in its own library.

    Attributes:
        call: what is called, for people, e.g. `SentenceTransformer.encode`.
        package: whose version the answers depend on.
    """

    call: str
    package: str = "transformers"

    @property
    def name(self) -> str:
        """The call with the version of its library."""
        return f"{self.package} {metadata.version(self.package)}: {self.call}"

    @abstractmethod
    def answer(self, row: Row) -> Any:
        """The answer to one input, as plain numbers, texts and dicts."""

    def answers(self, rows: Sequence[Row], advance: Callable[[], None] = lambda: None) -> list[Any]:
        """The answers to some inputs, in their order; `Failed` where the library raises.

        Args:
            advance: called after each.
        """
        found = []
        with quiet():
            for row in rows:
                try:
                    found.append(self.answer(row))
                except (KeyboardInterrupt, SystemExit):
                    raise
                except BaseException as error:  # noqa: BLE001 - a panic of tokenizers is no Exception
                    found.append(Failed(error))
                advance()
        return found


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries quiet: what they say about hard inputs is expected."""
    transformers_logging.set_verbosity_error()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    nowhere = io.StringIO()
    with (
        warnings.catch_warnings(),
        torch.inference_mode(),
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
    ):
        warnings.simplefilter("ignore")
        yield
