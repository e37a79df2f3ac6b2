"""JSON schemas as requests write them, over a tokenizer whose tokens are bytes."""

from __future__ import annotations

from pathlib import Path

from serving.generation.params import SamplingParams
from serving.generation.structure import Compiler, Matcher, Structures
from tests.serving.generation.test_text import END, byte_level


def structures_in(folder: Path) -> Structures:
    """What compiles them; the tokenizer is written to the folder."""
    path = folder / "tokenizer.json"
    byte_level().save(str(path))
    return Structures(Compiler(path, byte_level().get_vocab_size(), [END]))


def matcher_of(structures: Structures, schema: str) -> Matcher:
    """Of a schema as it is written in a request."""
    structure = SamplingParams.from_json(f'{{"structured_outputs": {{"json": {schema}}}}}').structured_outputs
    assert structure is not None
    return structures.matcher(*structure)


def takes(structures: Structures, schema: str, text: str) -> bool:
    """Whether a schema lets a whole text through."""
    matcher = matcher_of(structures, schema)
    for token in byte_level().encode(text).ids:
        if matcher.finished or not matcher.allowed()[token]:
            return False
        matcher.consume(token)
    return matcher.finished or bool(matcher.allowed()[END])
