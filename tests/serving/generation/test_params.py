"""What may be asked of the generation: names, numbers and switches, and how a wrong one is refused."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.generation.params import STRUCTURES, BadRequest, SamplingParams
from tests.serving.generation.parameters import params_of

# name: least, most, whole; top_p, which takes no 0, has a test of its own
NUMBERS: dict[str, tuple[float, float, bool]] = {
    "max_tokens": (1, 1_000_000, True),
    "min_tokens": (0, 1_000_000, True),
    "temperature": (0, 100, False),
    "top_k": (-1, 1_000_000, True),
    "min_p": (0, 1, False),
    "repetition_penalty": (0.01, 100, False),
    "presence_penalty": (-2, 2, False),
    "frequency_penalty": (-2, 2, False),
    "seed": (-(2**63), 2**63 - 1, True),
    "logprobs": (0, 20, True),
}
WHOLE = [name for name, (_, _, whole) in NUMBERS.items() if whole]
VLLM_DEFAULTS = {
    "max_tokens": 16,
    "min_tokens": 0,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "seed": None,
    "stop": (),
    "stop_token_ids": (),
    "include_stop_str_in_output": False,
    "ignore_eos": False,
    "skip_special_tokens": True,
    "logprobs": None,
    "prompt_logprobs": None,
    "logit_bias": (),
    "allowed_token_ids": None,
    "bad_words": (),
    "structured_outputs": None,
}


@pytest.mark.parametrize("text", ["", " \n", "{}"])
def test_what_is_not_given_is_vllms_default(text: str) -> None:
    assert asdict(SamplingParams.from_json(text)) == VLLM_DEFAULTS


def test_null_is_the_default_but_for_max_tokens_which_then_has_no_limit() -> None:
    assert asdict(params_of(**dict.fromkeys(VLLM_DEFAULTS))) == VLLM_DEFAULTS | {"max_tokens": None}


def _beside(name: str, value: Any) -> dict[str, Any]:
    """A value of a parameter, and what it needs: no more than max_tokens can be asked for as min_tokens."""
    return {name: value} | ({"max_tokens": None} if name == "min_tokens" else {})


@pytest.mark.parametrize("name", NUMBERS)
def test_both_ends_of_a_range_are_taken_and_what_is_beyond_is_refused_by_name(name: str) -> None:
    low, high, whole = NUMBERS[name]
    step = 1 if whole else 1e-7
    for value in (low, high):
        read = getattr(params_of(**_beside(name, value)), name)
        assert read == value and type(read) is (int if whole else float)
    for value in (low - step, high + step, -(10**30), 10**30):
        with pytest.raises(BadRequest, match=rf"^{name} is .*, it must be from "):
            params_of(**{name: value})


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [True, [], {}, [1], {"a": 1}, "", "many", "0x10", "1,5"])
def test_what_is_no_number_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(BadRequest, match=rf"^{name} is .*, not a number$"):
        params_of(**{name: value})


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_what_is_not_finite_is_refused_by_name(name: str, literal: str) -> None:
    with pytest.raises(BadRequest, match=rf"^{name} is -?(nan|inf), it must be a (whole|finite) number$"):
        SamplingParams.from_json(f'{{"{name}": {literal}}}')
    with pytest.raises(BadRequest, match=rf"^{name} is "):
        SamplingParams.from_json(f'{{"{name}": "{literal}"}}')


@pytest.mark.parametrize("name", WHOLE)
def test_a_part_of_a_whole_is_refused_by_name(name: str) -> None:
    assert getattr(params_of(**{name: 3.0}), name) == 3
    for value in (3.5, "3.5"):
        with pytest.raises(BadRequest, match=rf"^{name} is "):
            params_of(**{name: value})


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_may_be_strings(name: str) -> None:
    _, high, whole = NUMBERS[name]
    for value in (int(high), 1) if whole else (high, 0.5):
        assert params_of(**_beside(name, str(value))) == params_of(**_beside(name, value))


def test_top_p_is_above_0_and_at_most_1() -> None:
    assert [params_of(top_p=value).top_p for value in (1, 0.5, 1e-300, "0.1")] == [1.0, 0.5, 1e-300, 0.1]
    for value in (0, 0.0, "0"):
        with pytest.raises(BadRequest, match="^top_p is 0, it must be above 0 and at most 1$"):
            params_of(top_p=value)
    for value in (-0.1, 1.0001):
        with pytest.raises(BadRequest, match="^top_p is .*, it must be from 0 to 1$"):
            params_of(top_p=value)


def test_min_tokens_may_not_exceed_max_tokens() -> None:
    assert params_of(min_tokens=5, max_tokens=5).min_tokens == 5
    assert params_of(min_tokens=500, max_tokens=None).min_tokens == 500
    for values in ({"min_tokens": 50, "max_tokens": 5}, {"min_tokens": 17}):
        with pytest.raises(BadRequest, match="^min_tokens is [0-9]+, it must be at most max_tokens, [0-9]+$"):
            params_of(**values)


def test_the_seed_minus_1_is_a_fresh_one_each_time() -> None:
    assert params_of(seed=-1).seed is None and params_of(seed="-1").seed is None
    assert params_of(seed=-2).seed == -2 and params_of(seed=0).seed == 0


def test_a_seed_keeps_all_its_digits() -> None:
    assert params_of(seed=2**53 + 1).seed == params_of(seed=str(2**53 + 1)).seed == 2**53 + 1


@pytest.mark.parametrize(
    ("name", "form"),
    [("max_tokens", "{}"), ("temperature", "-{}"), ("seed", '"{}"'), ("stop_token_ids", "[{}]")],
)
def test_a_number_of_400_digits_is_refused_by_name(name: str, form: str) -> None:
    with pytest.raises(BadRequest, match=f"^{name} is "):
        SamplingParams.from_json(f'{{"{name}": {form.format("1" + "0" * 400)}}}')


@pytest.mark.parametrize("name", ["ignore_eos", "include_stop_str_in_output", "skip_special_tokens"])
def test_a_switch_is_true_or_false(name: str) -> None:
    given = (True, "true", "True", False, "FALSE")
    read = [getattr(params_of(**{name: value}), name) for value in given]
    assert read == [True, True, True, False, False]
    for value in (1, 0, "yes", "", [], {}):
        with pytest.raises(BadRequest, match=f"^{name} is .*, it must be true or false$"):
            params_of(**{name: value})


@pytest.mark.parametrize(
    ("name", "only", "reason"),
    [
        ("n", 1, "one answer"),
        ("best_of", 1, "one answer"),
        ("use_beam_search", False, "sampled, or greedy"),
        ("length_penalty", 1.0, "sampled, or greedy"),
        ("early_stopping", False, "sampled, or greedy"),
        ("truncate_prompt_tokens", None, "shorten the prompt"),
        ("detokenize", True, "text"),
        ("spaces_between_special_tokens", True, "tokenizer"),
        ("logits_processors", None, "no code"),
        ("guided_json", None, "use structured_outputs"),
        ("guided_regex", None, "use structured_outputs"),
        ("guided_choice", None, "use structured_outputs"),
        ("guided_grammar", None, "use structured_outputs"),
        ("guided_decoding_backend", None, "llguidance"),
        ("response_format", None, "use structured_outputs"),
    ],
)
def test_what_is_not_served_is_taken_as_it_is_by_default_and_else_refused_with_the_reason(
    name: str, only: Any, reason: str
) -> None:
    assert asdict(params_of(**{name: only})) == asdict(params_of(**{name: None})) == VLLM_DEFAULTS
    with pytest.raises(BadRequest, match=rf"^{name} (must be|is not served).*: .*{reason}"):
        params_of(**{name: 7})


@pytest.mark.parametrize("name", ["max_token", "Temperature", "", "stream"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(
        BadRequest, match=f"^unknown in sampling_parameters: {name}; known: max_tokens, .*top_p"
    ):
        params_of(**{name: 1, "top_p": 0.5})


def test_the_refusal_of_a_name_that_is_no_text_can_be_sent() -> None:
    """A lone surrogate is legal in JSON, but not in the UTF-8 of the error that Triton sends."""
    with pytest.raises(BadRequest) as refused:
        SamplingParams.from_json('{"\\ud800": 1}')
    str(refused.value).encode()


def test_a_number_that_is_fixed_may_be_a_string_too() -> None:
    assert params_of(n="1", best_of="1") == params_of()
    with pytest.raises(BadRequest, match="^n must be 1"):
        params_of(n="2")


def test_the_refusal_of_a_name_with_a_line_end_has_one_line() -> None:
    with pytest.raises(BadRequest, match=r"unknown in sampling_parameters: a\\nb; known"):
        params_of(**{"a\nb": 1})


@pytest.mark.parametrize("text", ["{", "max_tokens=3", '{"a": }', "'{}'"])
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="^sampling_parameters is not JSON: "):
        SamplingParams.from_json(text)


@pytest.mark.parametrize("deep", ["[" * 100_000, '{"a":' * 5_000 + "1" + "}" * 5_000])
def test_what_is_nested_too_deep_is_refused(deep: str) -> None:
    structures = (
        (deep, "^sampling_parameters is nested too deep$"),
        (f'{{"structured_outputs":{json.dumps(deep)}}}', "^structured_outputs is nested too deep$"),
        (
            json.dumps({"structured_outputs": {"json": deep}}),
            "^structured_outputs: the JSON schema is nested too deep$",
        ),
    )
    for text, said in structures:
        with pytest.raises(BadRequest, match=said):
            SamplingParams.from_json(text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [("[]", "a list"), ("null", "null"), ("1", "a number"), ("true", "a boolean"), ('"a"', "a string")],
)
def test_what_is_no_object_is_refused(text: str, kind: str) -> None:
    with pytest.raises(BadRequest, match=f"^sampling_parameters is {kind}, it must be a JSON object$"):
        SamplingParams.from_json(text)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ('{"max_tokens": 2000000}', "max_tokens is 2000000, it must be from 1 to 1000000"),
        (f'{{"seed": {2**63}}}', f"seed is {2**63}, it must be from -{2**63} to {2**63 - 1}"),
        ('{"stop_token_ids": [-1]}', "stop_token_ids is -1, it must be from 0 to 2147483647"),
        ('{"temperature": 1e300}', "temperature is too large, it must be from 0 to 100"),
        (f'{{"max_tokens": {"9" * 5000}}}', "sampling_parameters holds a number of thousands of digits"),
        (f'{{"max_tokens": "{"9" * 5000}"}}', f"max_tokens is '{'9' * 100}...', not a number"),
    ],
)
def test_numbers_are_named_as_people_write_them(given: str, said: str) -> None:
    with pytest.raises(BadRequest) as error:
        SamplingParams.from_json(given)
    assert str(error.value) == said


def test_an_error_quotes_the_beginning_of_what_is_long() -> None:
    with pytest.raises(BadRequest) as error:
        SamplingParams.from_json(json.dumps({"x" * 100_000: 1}))
    assert f"unknown in sampling_parameters: {'x' * 100}...; known: max_tokens" in str(error.value)
    assert len(str(error.value)) < 1000


SIMPLE = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
JSON = (
    SIMPLE
    | st.lists(SIMPLE, max_size=3)
    | st.dictionaries(st.sampled_from([*STRUCTURES, ""]), SIMPLE, max_size=2)
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(list(VLLM_DEFAULTS)), JSON, max_size=4))
def test_any_value_is_taken_or_refused_by_name_in_one_line(values: dict[str, Any]) -> None:
    try:
        params = params_of(**values)
    except BadRequest as error:
        assert any(str(error).startswith(name) for name in values)
        assert len(str(error).splitlines()) == 1
        return
    for name, (low, high, _) in NUMBERS.items():
        value = getattr(params, name)
        assert value is None or low <= value <= high


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(BadRequest):
        assert isinstance(SamplingParams.from_json(text), SamplingParams)


def test_chance_is_involved_unless_only_the_likeliest_can_come() -> None:
    assert params_of(temperature=0).greedy and params_of(top_k=1).greedy
    assert not any(
        params_of(**{name: value}).greedy for name, value in [("top_k", 0), ("top_k", -1), ("seed", 1)]
    )


def test_penalties_are_noticed() -> None:
    assert not params_of(repetition_penalty=1, presence_penalty=0, frequency_penalty=0).penalizes
    for name, value in [("repetition_penalty", 1.1), ("presence_penalty", -1), ("frequency_penalty", 0.1)]:
        assert params_of(**{name: value}).penalizes
