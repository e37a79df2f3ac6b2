"""Which token is chosen: against references that sort everything, and at the edges of each parameter."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serving.generation.params import SamplingParams
from serving.generation.sampling import NUCLEUS, Sampler, _sample, kept, top_logprobs

Logits = NDArray[np.float32]


class Mask:
    """A structure that always allows the same tokens."""

    def __init__(self, vocabulary: int, allowed: list[int]) -> None:
        self._mask = np.isin(np.arange(vocabulary), allowed)

    def allowed(self) -> NDArray[np.bool_]:
        return self._mask


def _logits(*values: float) -> Logits:
    return np.array(values, np.float32)


def _choose(chooser: Sampler, logits: Logits, output: list[int] | None = None) -> int:
    return chooser.choose(logits, output or [], int(logits.argmax()))


def _draws(params: SamplingParams, logits: Logits, count: int, **more: Any) -> list[int]:
    chooser = Sampler(params, [0], [], **more)
    return [_choose(chooser, logits) for _ in range(count)]


def _kept(logits: Logits, params: SamplingParams) -> tuple[list[int], NDArray[np.float64], bool]:
    """Tokens that may be chosen, likeliest first, their probabilities, and whether rounding decides it."""
    weights = np.exp((logits.astype(np.float64) - float(logits.max())) / params.temperature)
    order = sorted(range(len(logits)), key=lambda token: (-weights[token], token))
    close = bool(((np.abs(weights - params.min_p) < 1e-9) & (weights != params.min_p)).any())
    order = [token for token in order if weights[token] >= params.min_p]
    if params.top_k > 0:
        order = order[: params.top_k]
    probabilities = weights[order] / weights[order].sum()
    before = np.concatenate([[0.0], probabilities.cumsum()[:-1]])
    keep = np.ones(len(order), bool)
    if params.top_p < 1:
        keep &= before < params.top_p
        close |= bool((np.abs(before - params.top_p) < 1e-9).any())
    kept = [token for token, kept in zip(order, keep, strict=True) if kept]
    return kept, weights[kept] / weights[kept].sum(), close


FILTERS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([1e-6, 0.3, 1.0, 2.5, 100.0]),
    top_k=st.sampled_from([0, -1, 2, 7, 40, NUCLEUS, NUCLEUS + 1, 5000]),
    top_p=st.sampled_from([1.0, 1.0, 0.999, 0.9, 0.5, 1e-6]),
    min_p=st.sampled_from([0.0, 0.0, 1e-4, 0.1, 1.0]),
    seed=st.integers(0, 2**32),
)


@settings(max_examples=100, deadline=None)
@given(FILTERS, st.data())
def test_filters_keep_exactly_what_a_reference_keeps_that_sorts_everything(
    params: SamplingParams, data: st.DataObject
) -> None:
    """Of tokens that are equally likely any may be kept at the edge, so logits are compared, not tokens."""
    size = data.draw(st.sampled_from([1, 2, 5, 40, NUCLEUS, NUCLEUS + 1, 1700]))
    chance = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    logits = (chance.normal(size=size) * data.draw(st.sampled_from([0.0, 0.01, 1.0, 8.0]))).astype(np.float32)
    if data.draw(st.booleans()):
        logits = logits.round()  # many ties
    if data.draw(st.booleans()):
        logits[chance.random(size) < 0.4] = -np.inf
        logits[int(chance.integers(size))] = 1.0
    kept, probabilities, close = _kept(logits, params)
    assume(not close)
    relative = logits.astype(np.float64) - float(logits.max())
    possible = np.count_nonzero(np.exp(relative / params.temperature))
    filtered = 0 < params.top_k < possible or params.top_p < 1 or params.min_p > 0
    least = logits[kept[-1]]
    for draw in [0.0, *chance.random(30), np.nextafter(1.0, 0.0)]:
        token = _sample(logits, params, float(draw))
        assert logits[token] >= least and np.isfinite(logits[token])
    if not filtered:
        return
    upto = probabilities.cumsum()
    middles = upto - probabilities / 2
    for place in np.flatnonzero(probabilities > 1e-9)[:: max(1, len(kept) // 50)]:
        token = _sample(logits, params, float(middles[place]))
        # Of two that are equal but for rounding, the sums in float32 and float64 may find either.
        assert logits[token] == pytest.approx(logits[kept[place]], rel=1e-5)


PROMPT, OUTPUT, ENDS = [3, 17, 17, 250], [40, 3, 40, 41], [7, 9]


def _theirs(params: SamplingParams, logits: Logits) -> NDArray[np.float64]:
    """The next token's probabilities by transformers' own processors, in vLLM's order."""
    processors = transformers.LogitsProcessorList()
    if params.min_tokens:
        processors.append(
            transformers.MinNewTokensLengthLogitsProcessor(len(PROMPT), params.min_tokens, ENDS, device="cpu")
        )
    if params.repetition_penalty != 1:
        processors.append(transformers.RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    processors.append(transformers.TemperatureLogitsWarper(params.temperature))
    if params.min_p > 0:
        processors.append(transformers.MinPLogitsWarper(params.min_p))
    if params.top_k > 0:
        processors.append(transformers.TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        processors.append(transformers.TopPLogitsWarper(params.top_p))
    ids = torch.tensor([PROMPT + OUTPUT])
    return processors(ids, torch.tensor(logits)[None]).double().softmax(-1)[0].numpy()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.3),
        SamplingParams(temperature=1.9),
        SamplingParams(top_k=1, temperature=0.7),
        SamplingParams(top_k=40),
        SamplingParams(top_p=0.9),
        SamplingParams(top_p=0.05),
        SamplingParams(min_p=0.1),
        SamplingParams(repetition_penalty=1.3),
        SamplingParams(repetition_penalty=0.7),
        SamplingParams(min_tokens=5),
        SamplingParams(min_tokens=4),
        SamplingParams(temperature=0.8, top_k=50, top_p=0.95),
        SamplingParams(
            temperature=1.5, top_k=20, top_p=0.7, min_p=0.05, repetition_penalty=1.1, min_tokens=9
        ),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_probabilities_are_those_of_transformers(params: SamplingParams, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, 300).astype(np.float32)
    chooser = Sampler(params, PROMPT, ENDS)
    tokens, weights = kept(chooser._adjusted(logits, OUTPUT), params)
    ours = np.zeros(300)
    ours[tokens] = weights / weights.sum()
    np.testing.assert_allclose(ours, _theirs(params, logits), atol=1e-5, rtol=0)


def test_a_bias_is_added_before_penalties() -> None:
    logits = _logits(1, -1, 2)
    params = SamplingParams(logit_bias=((0, -3.0), (1, 5.0)), repetition_penalty=2.0)
    found = Sampler(params, [0, 1], [])._adjusted(logits, [])
    np.testing.assert_allclose(found, [-4, 2, 2])  # (1 - 3) * 2, (-1 + 5) / 2
    np.testing.assert_array_equal(logits, _logits(1, -1, 2))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_allowed_tokens_are_chosen(temperature: float) -> None:
    params = SamplingParams(allowed_token_ids=(1, 3), temperature=temperature, seed=1)
    drawn = set(_draws(params, _logits(90, 1, 80, 1.5), 60))
    assert drawn == ({3} if temperature == 0 else {1, 3})


@pytest.mark.parametrize(
    ("output", "chosen"),
    [([], 1), ([5], 1), ([4], 1), ([4, 2], 0), ([2, 4, 2], 0), ([2], 1), ([4, 2, 5], 1)],
)
def test_the_last_token_of_a_bad_word_is_not_chosen_where_it_would_complete_it(
    output: list[int], chosen: int
) -> None:
    chooser = Sampler(SamplingParams(temperature=0), [4, 2], [], bad=[(4, 2, 1), (3,)])
    assert _choose(chooser, _logits(5, 8, 1, 9, 2, 3), output) == chosen


def test_what_leaves_no_token_is_an_error() -> None:
    params = SamplingParams(allowed_token_ids=(1,), temperature=0)
    for more in ({"matcher": Mask(4, [2])}, {"bad": [(1,)]}):
        with pytest.raises(ValueError, match="together leave no token$"):
            _draws(params, _logits(1, 2, 3, 4), 1, **more)


@pytest.mark.parametrize(
    ("params", "left"),
    [
        (SamplingParams(top_k=2), {3, 4}),
        (SamplingParams(top_k=5), {0, 1, 2, 3, 4}),
        (SamplingParams(top_k=1000), {0, 1, 2, 3, 4}),
        (SamplingParams(top_k=-1), {0, 1, 2, 3, 4}),
        (SamplingParams(top_p=1e-6), {4}),
        (SamplingParams(top_p=0.39), {4}),
        (SamplingParams(top_p=0.41), {3, 4}),
        (SamplingParams(min_p=1.0), {4}),
        (SamplingParams(min_p=0.49), {2, 3, 4}),
        (SamplingParams(top_k=2, top_p=0.55), {4}),  # 0.4 of 0.7
        (SamplingParams(top_k=3, top_p=0.9, min_p=0.6), {3, 4}),
        (SamplingParams(top_p=0.55, min_p=0.6), {4}),  # 0.4 of 0.7: min-p comes first
    ],
)
def test_filters_on_a_distribution_that_can_be_checked_by_hand(
    params: SamplingParams, left: set[int]
) -> None:
    logits = np.log(_logits(0.04, 0.06, 0.2, 0.3, 0.4))
    found = {_sample(logits, params, chance) for chance in np.linspace(0, 0.9999, 400)}
    assert found == left


def test_tokens_that_tie_for_the_likeliest_all_pass_min_p_1() -> None:
    logits = _logits(5, 1, 5, 5, -np.inf)
    assert set(_draws(SamplingParams(min_p=1.0, seed=1), logits, 200)) == {0, 2, 3}


def test_top_p_takes_as_many_of_equal_tokens_as_it_needs() -> None:
    drawn = set(_draws(SamplingParams(top_p=0.45, seed=1), np.zeros(10, np.float32), 500))
    assert len(drawn) == 5


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(top_p=0.5),
        SamplingParams(top_p=0.999999),
        SamplingParams(min_p=0.1),
        SamplingParams(top_k=7000),
        SamplingParams(top_k=7000, top_p=0.7, min_p=0.1),
    ],
)
def test_what_is_kept_may_be_wider_than_the_first_guess(params: SamplingParams) -> None:
    count = 20 * NUCLEUS
    logits = np.random.default_rng(3).normal(0, 1e-3, count).astype(np.float32)
    kept, _, _ = _kept(logits, params)
    found = {_sample(logits, params, chance) for chance in np.linspace(0, 0.99999, 60)}
    assert found <= set(kept) and len(kept) > NUCLEUS
    assert _sample(logits, params, float(np.nextafter(1.0, 0.0))) == kept[-1]


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-300])
@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}, {"min_p": 0.1}, {"top_k": 2}])
def test_a_tiny_temperature_takes_the_likeliest(temperature: float, filters: dict[str, Any]) -> None:
    logits = _logits(-80, 3e4, 3e4 - 0.01, -3e4, -np.inf)
    assert set(_draws(SamplingParams(temperature=temperature, seed=1, **filters), logits, 50)) == {1}


def test_a_large_temperature_evens_out() -> None:
    drawn = Counter(_draws(SamplingParams(temperature=100, seed=1), _logits(0, 1, 2, 3), 4000))
    assert all(800 < drawn[token] < 1200 for token in range(4))


@pytest.mark.parametrize("params", [SamplingParams(temperature=0), SamplingParams(top_k=1, temperature=2.0)])
def test_greedy_takes_the_first_of_the_likeliest(params: SamplingParams) -> None:
    logits = _logits(1, 7, 7, 3)
    assert _draws(params, logits, 5) == [1] * 5
    penalized = Sampler(SamplingParams(**{**vars(params), "presence_penalty": 0.5}), [0], [])
    assert _choose(penalized, logits, [3]) == 1
    assert _choose(penalized, logits, [1]) == 2


def test_the_same_seed_gives_the_same_tokens_and_others_give_others() -> None:
    logits = np.zeros(1000, np.float32)

    def drawn(seed: int | None) -> tuple[int, ...]:
        return tuple(_draws(SamplingParams(seed=seed), logits, 12))

    seeds = [0, 1, -1, 2**63 - 1, -(2**63)]
    assert [drawn(seed) for seed in seeds] == [drawn(seed) for seed in seeds]
    assert len({drawn(seed) for seed in [*seeds, None, None]}) == len(seeds) + 2


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(seed=5),
        SamplingParams(seed=5, temperature=0.5),
        SamplingParams(seed=5, top_k=3),
        SamplingParams(seed=5, top_p=0.8),
        SamplingParams(seed=5, min_p=0.3, temperature=2.0),
    ],
)
def test_tokens_are_as_frequent_as_they_are_likely(params: SamplingParams) -> None:
    logits = _logits(-1, 2, 0.5, -np.inf, 1, 1.7)
    kept, probabilities, _ = _kept(logits, params)
    count = 4000
    drawn = Counter(_draws(params, logits, count))
    assert set(drawn) <= set(kept)
    for token, probability in zip(kept, probabilities, strict=True):
        assert abs(drawn[token] / count - probability) < 0.05


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 19), max_size=30),
    st.lists(st.integers(0, 19), max_size=30),
    st.sampled_from([0.01, 0.5, 1.0, 1.3, 100.0]),
    st.sampled_from([-2.0, 0.0, 0.7]),
    st.sampled_from([-2.0, 0.0, 0.3]),
    st.integers(0, 2**32),
)
def test_penalties_are_those_of_a_plain_loop(
    prompt: list[int], output: list[int], repetition: float, presence: float, frequency: float, seed: int
) -> None:
    logits = np.random.default_rng(seed).normal(0, 4, 20).astype(np.float32)
    logits[seed % 20] = -np.inf
    expected = logits.tolist()
    for token in set(prompt) | set(output):
        expected[token] *= 1 / repetition if expected[token] > 0 else repetition
    for token in set(output):
        expected[token] -= presence + frequency * output.count(token)
    params = SamplingParams(
        temperature=0,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
    )
    chooser = Sampler(params, prompt, [])
    before = logits.copy()
    np.testing.assert_allclose(chooser._penalized(logits.copy(), output), expected, rtol=1e-5, atol=1e-5)
    chosen = chooser.choose(logits, output, int(logits.argmax()))
    assert expected[chosen] >= max(expected) - 1e-3
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e-6])
def test_end_tokens_are_barred_until_min_tokens_have_come(temperature: float) -> None:
    logits = _logits(50, 40, 1, 2)
    before = logits.copy()
    chooser = Sampler(SamplingParams(min_tokens=3, temperature=temperature, seed=1), [0], [0, 1])
    for length in range(3):
        assert {_choose(chooser, logits, [2] * length) for _ in range(50)} <= {2, 3}
    assert _choose(chooser, logits, [2] * 3) == 0
    np.testing.assert_array_equal(logits, before)


def test_without_end_tokens_min_tokens_bars_nothing() -> None:
    assert _choose(Sampler(SamplingParams(min_tokens=9, temperature=0), [0], []), _logits(1, 3)) == 1


def test_a_stop_token_beyond_the_vocabulary_cannot_come_and_does_no_harm() -> None:
    chooser = Sampler(SamplingParams(min_tokens=2, temperature=0), [0], [1, 4, 2**31 - 1])
    assert _choose(chooser, _logits(1, 9, 3, 2)) == 2


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0),
        SamplingParams(temperature=0, repetition_penalty=1.5),
        SamplingParams(seed=1),
        SamplingParams(seed=1, top_k=3, top_p=0.9, min_p=0.1),
    ],
)
def test_only_what_a_structure_allows_is_chosen(params: SamplingParams) -> None:
    logits = _logits(90, 80, -70, -60, 50)
    before = logits.copy()
    assert set(_draws(params, logits, 50, matcher=Mask(5, [2]))) == {2}
    assert set(_draws(params, logits, 50, matcher=Mask(5, [2, 3]))) <= {2, 3}
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_a_structure_asks_for_goes_before_min_tokens(temperature: float) -> None:
    """It allows a stop token only, which would come too early."""
    params = SamplingParams(min_tokens=5, temperature=temperature, seed=1)
    chooser = Sampler(params, [0], [2], Mask(4, [2]))
    assert _choose(chooser, _logits(9, 1, 2, 3)) == 2


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 20), st.sampled_from([0.1, 3.0, 60.0]))
def test_logprobs_are_those_of_a_log_softmax(seed: int, count: int, spread: float) -> None:
    chance = np.random.default_rng(seed)
    logits = (chance.normal(size=300) * spread).astype(np.float32)
    assume(len(set(logits.tolist())) == len(logits))
    exact = logits.astype(np.float64)
    expected = exact - exact.max() - np.log(np.exp(exact - exact.max()).sum())
    order = np.argsort(-exact).tolist()
    for chosen in {int(chance.integers(300)), order[0], order[max(count - 1, 0)], order[count], order[-1]}:
        found = top_logprobs(logits, chosen, count)
        tokens = [chosen, *(token for token in order[:count] if token != chosen)]
        assert [entry.token for entry in found] == tokens
        assert [entry.rank for entry in found] == [order.index(token) + 1 for token in tokens]
        np.testing.assert_allclose([entry.logprob for entry in found], expected[tokens], rtol=1e-4, atol=1e-4)


def test_a_token_that_cannot_come_has_no_probability_and_the_last_rank() -> None:
    (chosen, best) = top_logprobs(_logits(1, -np.inf, 2), 1, 1)
    assert (chosen.token, chosen.logprob, chosen.rank) == (1, -np.inf, 3)
    assert (best.token, best.rank) == (2, 1)


def test_a_rank_does_not_depend_on_how_many_are_asked_for() -> None:
    logits = _logits(1, 3, 3, 3, 2)
    for chosen in (1, 2, 3):
        assert len({top_logprobs(logits, chosen, count)[0].rank for count in range(5)}) == 1
