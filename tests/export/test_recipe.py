"""A recipe is checked once, and says what is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from export.encoder.recipe import EncoderRecipe
from export.recipe import read_toml
from shoal.errors import UsageError


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"nmae": "x"}, "unknown key in recipe: nmae"),
        ({"name": "../x"}, "cannot be a model name"),
        ({"name": "x_encoder"}, "cannot end in _encoder"),
        ({"precisions": [1]}, "precisions is [1]: expected `str`"),
        ({"eval_data": 5}, "eval_data is 5: expected"),
        ({"precisions": ["fp8"]}, "unknown precision fp8"),
        ({"precisions": []}, "unknown precision (none)"),
        ({"precisions": ["int8", "int8"]}, "named twice"),
        ({"max_length": 1}, "max_length is 1: expected `int` >= 4"),
        ({"max_length": "long"}, "max_length is 'long': expected"),
        ({"length_buckets": [64, 16]}, "length_buckets must be rising"),
        ({"length_buckets": ["16"]}, "length_buckets is ['16']: expected `int`"),
        ({"max_batch_size": 0}, "max_batch_size is 0"),
        ({"instances": 0}, "instances is 0"),
        ({"instances": 2, "precisions": ["fp16"]}, "are for CPUs, and no such precision is asked for"),
    ],
)
def test_refuses(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        EncoderRecipe.from_dict(values)


def test_survives_json_and_toml(tmp_path: Path) -> None:
    recipe = EncoderRecipe(
        name="other", precisions=("int8",), max_length=64, eval_data=tmp_path / "pairs.csv"
    )
    assert EncoderRecipe.from_dict(recipe.to_dict()) == recipe
    file = tmp_path / "recipe.toml"
    file.write_text('name = "other"\nprecisions = ["int8"]\nlength_buckets = [8, 16]\n')
    assert EncoderRecipe.from_dict(read_toml(file)) == EncoderRecipe(
        name="other", precisions=("int8",), length_buckets=(8, 16)
    )
    file.write_text("name = ")
    with pytest.raises(UsageError, match="cannot be read"):
        read_toml(file)
