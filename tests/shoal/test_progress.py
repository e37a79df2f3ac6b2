"""Progress as people see it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from shoal.progress import Bars


def _divide(console: Console, items: list[int]) -> list[float]:
    return [1 / item for item in Bars(console).each("Divide", items)]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_step_is_ticked_when_all_its_parts_are_done_and_no_sooner(terminal: bool) -> None:
    console = Console(file=(shown := io.StringIO()), force_terminal=terminal, width=80)
    with pytest.raises(ZeroDivisionError):
        _divide(console, [1, 0, 2])
    assert "✓" not in shown.getvalue()
    assert _divide(console, [1, 2]) == [1.0, 0.5]
    assert shown.getvalue().count("✓") == 1
