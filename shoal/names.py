"""Names in a model repository: of a model, and of the parts that stand behind it.

A part is called as the model is, with what it does behind an underscore: `minilm_encoder`. So the name of a
model ends in none of these, or a model and a part of another could have one name.
"""

from __future__ import annotations

import re

from shoal.errors import UsageError

TOKENIZER = "tokenizer"  # texts to tokens
PREPROCESSOR = "preprocessor"  # pictures to pixels
ENCODER = "encoder"  # the network of an encoder
LABELS = "labels"  # strings, which TensorRT does not know
OUTPUT = "output"  # what the network answers to what users get
ROWS = "rows"  # rows of a table, checked
ESTIMATOR = "estimator"  # the network of an estimator
PARTS = (TOKENIZER, PREPROCESSOR, ENCODER, LABELS, OUTPUT, ROWS, ESTIMATOR)


def part_name(model: str, part: str) -> str:
    """What a part of a model is called in the repository; `part` is one of `PARTS`."""
    return f"{model}_{part}"


def check_name(name: str) -> None:
    """Refuse what cannot be the name of a model.

    Raises:
        UsageError: it has other characters, is too long, or ends as the name of a part does.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,63}", name):
        raise UsageError(
            f"name {name!r} cannot be a model name",
            hint="choose a --name of lower-case letters, digits, '_', '-' and '.', at most 64",
        )
    for part in PARTS:
        if name.endswith(part_name("", part)):
            raise UsageError(
                f"name {name!r} cannot end in {part_name('', part)}, which names a part of a model",
                hint="choose another --name",
            )
