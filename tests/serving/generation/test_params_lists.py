"""What may be asked of tokens and texts: stops, biases, words that may not come, tokens that alone may."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.generation.params import MAX_BAD_WORDS, MAX_STOP_LENGTH, MAX_STOPS, BadRequest, SamplingParams
from tests.serving.generation.parameters import params_of


def test_stops_may_be_one_or_several() -> None:
    assert params_of(stop="a").stop == ("a",)
    assert params_of(stop=["a", "\n\n", "é😀"]).stop == ("a", "\n\n", "é😀")
    assert params_of(stop=[]).stop == ()
    assert len(params_of(stop=["s" * MAX_STOP_LENGTH] * MAX_STOPS).stop) == MAX_STOPS


@pytest.mark.parametrize(
    "value", ["", [""], ["a", ""], [1], [None], [["a"]], {"a": "b"}, 1, True, ["a"] * 17, "a" * 257]
)
def test_stops_that_make_no_sense_are_refused_by_name(value: Any) -> None:
    with pytest.raises(BadRequest, match="^stop m"):
        params_of(stop=value)


def test_stop_token_ids_are_whole_numbers() -> None:
    assert params_of(stop_token_ids=[0, "7", 2.0, 2**31 - 1]).stop_token_ids == (0, 7, 2, 2**31 - 1)
    assert params_of(stop_token_ids=[]).stop_token_ids == ()


@pytest.mark.parametrize(
    "value", [1, "1", {"a": 1}, True, [-1], [2**31], [1.5], ["x"], [True], [None], [1] * 17]
)
def test_stop_token_ids_that_make_no_sense_are_refused_by_name(value: Any) -> None:
    with pytest.raises(BadRequest, match="^stop_token_ids "):
        params_of(stop_token_ids=value)


def test_biases_are_added_to_tokens_and_clamped_to_100() -> None:
    biases = {"5": 1.5, "0": -200, "7": "3", "9": 1e6}
    assert params_of(logit_bias=biases).logit_bias == ((5, 1.5), (0, -100.0), (7, 3.0), (9, 100.0))
    assert params_of(logit_bias={}).logit_bias == ()


@pytest.mark.parametrize(
    "value", [1, [], "5", [[5, 1]], {"a": 1}, {"-1": 1}, {"5": None}, {"5": True}, {"1.5": 1}]
)
def test_biases_that_make_no_sense_are_refused_by_name(value: Any) -> None:
    with pytest.raises(BadRequest, match="^logit_bias "):
        params_of(logit_bias=value)
    with pytest.raises(BadRequest, match="^logit_bias is nan"):
        SamplingParams.from_json('{"logit_bias": {"5": NaN}}')


def test_allowed_token_ids_are_a_list_that_is_not_empty() -> None:
    assert params_of(allowed_token_ids=[3, "1", 2.0]).allowed_token_ids == (3, 1, 2)
    for value in ([], 3, "3", {}, [-1], ["a"], [None], [2**31]):
        with pytest.raises(BadRequest, match="^allowed_token_ids "):
            params_of(allowed_token_ids=value)


def test_bad_words_are_texts() -> None:
    assert params_of(bad_words="a").bad_words == ("a",) and params_of(bad_words=["a", "b c"]).bad_words == (
        "a",
        "b c",
    )
    for value in ([""], [1], 1, ["a"] * (MAX_BAD_WORDS + 1), ["a" * 257]):
        with pytest.raises(BadRequest, match="^bad_words m"):
            params_of(bad_words=value)


@pytest.mark.parametrize(
    "given", [{"stop_token_ids": [3, 29]}, {"allowed_token_ids": [29]}, {"logit_bias": {"29": 1}}]
)
def test_a_token_that_the_model_does_not_have_is_refused_by_name(given: dict[str, Any]) -> None:
    params = params_of(**given)
    params.check_tokens(30)
    (name,) = given
    with pytest.raises(BadRequest, match=f"^{name} holds 29, the model has tokens 0 to 28$"):
        params.check_tokens(29)


def test_without_token_ids_any_model_will_do() -> None:
    params_of(max_tokens=3).check_tokens(1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"logit_bias": {str(n): 1 for n in range(4097)}}, "logit_bias holds 4097 token ids, at most 4096"),
        ({"allowed_token_ids": [1] * 65_537}, "allowed_token_ids holds 65537 token ids, at most 65536"),
        ({"bad_words": ["a"] * 129}, "bad_words may hold 128 strings of 256 characters"),
        ({"stop": ["a"] * 17}, "stop may hold 16 strings"),
        ({"stop_token_ids": [1] * 17}, "stop_token_ids must be a list of at most 16 token ids"),
    ],
)
def test_lists_are_limited(given: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        SamplingParams.from_json(json.dumps(given))


@pytest.mark.parametrize("name", ["stop", "bad_words"])
def test_half_of_a_surrogate_pair_is_refused_by_name(name: str) -> None:
    with pytest.raises(BadRequest, match=f"^{name} holds half of a surrogate pair$"):
        params_of(**{name: ["fish \ud800"]})
