"""What errors say in one line."""

from __future__ import annotations

import pytest

from shoal.errors import first_line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("it is wrong\nand here is why"), "it is wrong"),
        (ValueError("\n  first\nsecond"), "first"),
        (RuntimeError(), "RuntimeError"),
        (RuntimeError(" \n "), "RuntimeError"),
        (KeyError(""), "''"),
    ],
)
def test_the_first_line_of_any_error(error: Exception, said: str) -> None:
    """Also of one without a message, which must not raise another."""
    assert first_line(error) == said
