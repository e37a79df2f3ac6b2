"""Whatever numbers a schema holds, those that come are right to the digit: compared with exact arithmetic."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from serving.generation.numbers import Written, keep
from serving.generation.params import BadRequest
from serving.generation.structure import Matcher, Structures
from tests.serving.generation.schemas import matcher_of, structures_in, takes
from tests.serving.generation.test_text import END, byte_level


@pytest.fixture(scope="module")
def structures(tmp_path_factory: pytest.TempPathFactory) -> Structures:
    return structures_in(tmp_path_factory.mktemp("numbers"))


def _draw(matcher: Matcher, seed: int) -> str:
    """A number at random, whose digits end as soon as they may after the twelfth; "": they do not."""
    chance, tokens = random.Random(seed), list[int]()
    while not matcher.finished and len(tokens) < 400:
        picks = np.flatnonzero(matcher.allowed()).tolist()
        assert picks, byte_level().decode(tokens)
        if picks == [END] or (END in picks and (len(tokens) > 12 or chance.random() < 0.3)):
            return str(byte_level().decode(tokens))
        tokens.append(chance.choice([pick for pick in picks if pick != END]))
        matcher.consume(tokens[-1])
    return str(byte_level().decode(tokens)) if matcher.finished else ""


def _right(schema: str, text: str) -> bool:
    """Whether a number satisfies a schema, in exact arithmetic."""
    if not _rules(schema) and '"integer"' not in schema:
        return True  # and its exponent may be one that no arithmetic comes to an end with
    assert not {"e", "E"} & set(text)
    value = Fraction(text)
    rules = {
        name: Fraction(json.dumps(rule) if isinstance(rule, int) else rule.text)
        for name, rule in _rules(schema)
    }
    checks = {
        "minimum": lambda rule: value >= rule,
        "maximum": lambda rule: value <= rule,
        "exclusiveMinimum": lambda rule: value > rule,
        "exclusiveMaximum": lambda rule: value < rule,
        "multipleOf": lambda rule: value % rule == 0,
    }
    whole = value.denominator == 1 or '"integer"' not in schema
    return whole and all(checks[name](rule) for name, rule in rules.items())


def _rules(schema: str) -> list[tuple[str, int | Written]]:
    return [pair for pair in json.loads(schema, parse_float=Written).items() if pair[0] != "type"]


LARGE = [2**53, 2**60, 2**63 - 1, 2**63, 2**64, 10**15, 10**17, 10**18]
BOUNDS = (
    st.integers(-20, 20).map(str)
    | st.integers(-(10**18), 10**18).map(str)
    | st.builds(
        lambda digits, places: str(Decimal(digits).scaleb(-places)),
        st.integers(-(10**6), 10**6),
        st.integers(0, 8),
    )
    | st.builds(
        lambda base, sign, off: str(sign * base + off),
        st.sampled_from(LARGE),
        st.sampled_from([1, -1]),
        st.integers(-2, 2),
    )
    | st.sampled_from(
        [
            "-0",
            "1e2",
            "0.1000000000000000055",
            "123456789.123456789",
            "1e-20",
            "5e-324",
            "0.30000000000000004",
        ]
    )
)
STEPS = st.sampled_from(
    ["1", "2", "7", "10", "0.1", "0.01", "0.25", "1.5", "0.3", "1e-5", "100", "4294967295", "0.57"]
)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_numbers_are_right_to_the_digit(structures: Structures, data: st.DataObject) -> None:
    parts = [f'"type": "{data.draw(st.sampled_from(["integer", "number"]))}"']
    for name in data.draw(
        st.lists(st.sampled_from(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]), unique=True)
    ):
        parts.append(f'"{name}": {data.draw(BOUNDS)}')
    if data.draw(st.booleans()):
        parts.append(f'"multipleOf": {data.draw(STEPS)}')
    schema = f"{{{', '.join(parts)}}}"
    try:
        matcher = matcher_of(structures, schema)
    except BadRequest:
        return
    drawn = _draw(matcher, data.draw(st.integers(0, 2**32)))
    assume(drawn)
    assert _right(schema, drawn)
    for rule in (
        Fraction(json.dumps(rule) if isinstance(rule, int) else rule.text) for _, rule in _rules(schema)
    ):
        for near in (rule, rule + 1, rule - 1, rule + Fraction(1, 10), -rule):
            text = format(Decimal(near.numerator) / Decimal(near.denominator), "f")
            if Fraction(text) == near and not _right(schema, text):
                assert not takes(structures, schema, text)


@pytest.mark.parametrize(
    ("given_as", "kept"),
    [
        ('{"minimum": 9007199254740993}', {"minimum": 9007199254741000}),
        ('{"maximum": 9007199254740993}', {"maximum": 9007199254740000}),
        ('{"exclusiveMinimum": 9007199254740992}', {"minimum": 9007199254741000}),
        ('{"maximum": 18446744073709551615}', {"maximum": 10**17}),
        ('{"minimum": -9223372036854775808}', {"minimum": -(10**17)}),
        ('{"minimum": 0.1000000000000000055}', {"minimum": 0.100000000000001}),
        ('{"exclusiveMaximum": 0.1000000000000000055}', {"maximum": 0.1}),
        ('{"minimum": 1e-20}', {"minimum": 1e-15}),
        ('{"maximum": 1e-20}', {"maximum": 0}),
        ('{"minimum": 1, "exclusiveMinimum": 1}', {"exclusiveMinimum": 1}),
        ('{"minimum": 2, "exclusiveMinimum": 1}', {"minimum": 2}),
        ('{"exclusiveMinimum": false, "minimum": 1}', {"minimum": 1}),
    ],
)
def test_bounds_are_drawn_in_and_never_let_out(given_as: str, kept: dict[str, float]) -> None:
    schema = json.loads(given_as, parse_float=Written)
    keep(schema)
    assert schema == kept
