"""The tokenizer whose rows are watched."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer


@pytest.fixture(scope="session")
def tokenizer_file(repository: Path) -> Path:
    return repository / "minilm_tokenizer" / "1" / "tokenizer.json"


@pytest.fixture(scope="session")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    made = Tokenizer.from_file(str(tokenizer_file))
    made.no_padding()
    return made
