"""Ctrl-C and SIGTERM, where a library catches everything."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from rich.console import Console

from shoal import interrupts
from shoal.progress import Bars


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interrupts.install()
    yield
    interrupts.install()
    for number, handler in before.items():
        signal.signal(number, handler)


def _swallowed(number: signal.Signals) -> bool:
    try:
        os.kill(os.getpid(), number)
        return False
    except BaseException:
        return True


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
@pytest.mark.parametrize("terminal", [True, False])
def test_what_a_library_swallows_ends_the_step(
    number: signal.Signals, raised: type[BaseException], terminal: bool
) -> None:
    bars = Bars(Console(force_terminal=terminal, quiet=True))
    reached = []
    with pytest.raises(raised), bars.step("Export"):
        assert _swallowed(number)
        reached.append("end of the step")
    with pytest.raises(raised), bars.step("Measure"):
        reached.append("next step")
    assert reached == ["end of the step"]
