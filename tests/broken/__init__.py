"""Sources that cannot be exported, and the line that says so: `tests/export/test_sources.py` tries them."""

from __future__ import annotations

from tests.broken.damage import Case
from tests.broken.files import FILES
from tests.broken.flags import FLAGS
from tests.broken.models import MODELS
from tests.broken.modules import MODULES
from tests.broken.tokenizers import TOKENIZERS
from tests.broken.writers import WRITERS

CASES: dict[str, Case] = {**FILES, **TOKENIZERS, **MODULES, **MODELS, **WRITERS, **FLAGS}
"""By name."""
