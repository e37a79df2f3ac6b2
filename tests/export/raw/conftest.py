"""Here all raw inputs are compared, other than in most of the tests."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def _as_for_users(every_raw_input: None) -> None:
    pass
