"""Which shapes TensorRT engines are built for."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.exported import TensorSpec
from export.tensorrt.shapes import Profile, Shape, from_buckets, from_traffic, read_traffic, whole
from shoal.errors import ExportError, UsageError
from tests.export.tensorrt.support import ONE


def test_a_profile_for_each_bucket() -> None:
    assert from_buckets(64, (16, 32)) == (
        Profile(Shape(1, 1), Shape(8, 16), Shape(64, 16)),
        Profile(Shape(1, 17), Shape(8, 32), Shape(64, 32)),
    )
    assert from_buckets(4, (16,)) == (Profile(Shape(1, 1), Shape(4, 16), Shape(4, 16)),)


def test_many_buckets_share_few_profiles() -> None:
    lengths = [profile.max.tokens for profile in from_buckets(64, (16, 32, 64, 128, 256), most=2)]
    assert lengths == [32, 256]


@settings(deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.integers(1, 8), st.integers(1, 40)).map(lambda pair: Shape(*pair)),
        st.integers(1, 1000),
        min_size=1,
    ),
    st.integers(1, 5),
)
def test_exactly_one_profile_allows_a_shape(traffic: dict[Shape, int], most: int) -> None:
    """Triton cannot tell profiles by length, so no two may allow the same."""
    profiles = from_traffic(traffic, 8, 40, most=most)
    assert len(profiles) <= most
    for tokens in range(1, 41):
        assert sum(profile.min.tokens <= tokens <= profile.max.tokens for profile in profiles) == 1
    assert whole(profiles).min == (1, 1)
    assert whole(profiles).max == (8, 40)


def test_traffic_chooses_the_shape_that_ran_most(tmp_path: Path) -> None:
    file = tmp_path / "traffic.jsonl"
    entries = [
        {"batch": 4, "tokens": 16, "count": 500},
        {"batch": 1, "tokens": 16, "count": 100},
        {"batch": 2, "tokens": 128, "count": 300},
        {"batch": 2, "tokens": 128, "count": 100},
        {"batch": 8, "tokens": 64},
    ]
    file.write_text("\n".join(json.dumps(entry) for entry in entries))
    traffic = read_traffic(file)
    assert traffic == Counter({(4, 16): 500, (2, 128): 400, (1, 16): 100, (8, 64): 1})
    assert from_traffic(traffic, 64, 256, most=2) == (
        Profile(Shape(1, 1), Shape(4, 16), Shape(64, 16)),
        Profile(Shape(1, 17), Shape(2, 128), Shape(64, 256)),
    )


@pytest.mark.parametrize(
    "line", ["nothing", "[4, 16]", '{"batch": 4}', '{"batch": 0, "tokens": 1}', '{"batch": 4, "tokens": 1.5}']
)
def test_bad_traffic_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "traffic.jsonl"
    file.write_text(f'{{"batch": 1, "tokens": 2}}\n{line}\n')
    with pytest.raises(UsageError, match="line 2 is not a shape"):
        read_traffic(file)


def test_traffic_beyond_the_limits_is_refused() -> None:
    with pytest.raises(UsageError, match="batch of 9 × 16 tokens, more than the 8 × 256"):
        from_traffic({Shape(9, 16): 1}, 8, 256)


@pytest.mark.parametrize("dims", [(1, -1), (-1, -1, -1), ()])
def test_dims_that_no_profile_fits(dims: tuple[int, ...]) -> None:
    with pytest.raises(ExportError, match="no profile can be made"):
        ONE[0].of(TensorSpec("x", "FLOAT", dims))
