"""The models of this package, exported once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability import models


@pytest.fixture(scope="session")
def small_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `models.make`."""
    return models.make(tmp_path_factory.mktemp("reliability"))
