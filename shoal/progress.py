"""Progress of long work, told to whoever wants to show it. Library code knows only `step` and `each`."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from shoal.interrupts import check

Advance = Callable[[], None]
Item = TypeVar("Item")


class Silent:
    """Shows nothing: the default of every library function."""

    @contextmanager
    def step(self, description: str, total: int | None = None) -> Iterator[Advance]:
        """A named step of `total` parts (None: unknown). Yields the function to call after each part."""
        yield lambda: None

    def note(self, text: str) -> None:
        """Something that people should know, and that does not end the work."""

    def each(self, description: str, items: Collection[Item]) -> Iterator[Item]:
        """The items one after the other, each of them a part of a named step."""
        with self.step(description, total=len(items)) as advance:
            for item in items:
                yield item
                advance()


class Bars(Silent):
    """One line a step on a terminal: a moving bar while it runs, a tick and its time when done.

    Where the console is not a terminal (a log, CI) only the finished lines are printed.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def step(self, description: str, total: int | None = None) -> Iterator[Advance]:
        """See `Silent.step`. A command that was interrupted ends here at the latest."""
        check()
        if not self._console.is_terminal:
            start = time.monotonic()
            yield lambda: None
            check()
            self._done(description, time.monotonic() - start)
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as bars:
            task = bars.add_task(description, total=total)
            yield lambda: bars.advance(task)
            elapsed = bars.tasks[0].elapsed or 0.0
            check()
        self._done(description, elapsed)

    def note(self, text: str) -> None:
        """See `Silent.note`."""
        self._console.print(text, highlight=False, markup=False)

    def _done(self, description: str, elapsed: float) -> None:
        self._console.print(f"[green]✓[/] {description} [dim]{elapsed:.1f} s[/]", highlight=False)
