"""Rows that are grouped by length: every row once, at the least cost, with the answers of each alone."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.onnxruntime.batching import STEP, BadRows, grouped, run_by_length, run_of
from serving.onnxruntime.options import BadConfig, Options
from serving.ragged import with_ragged_batches
from shoal.model_config import parse

CONFIG = """
name: "net" backend: "onnxruntime" max_batch_size: 64
input { name: "input_ids" data_type: TYPE_INT64 dims: -1 }
input { name: "attention_mask" data_type: TYPE_INT64 dims: -1 }
output { name: "embedding" data_type: TYPE_FP32 dims: 384 }
dynamic_batching { }
"""


def _cost(groups: list[list[int]], lengths: list[int], run: int) -> int:
    return sum(
        run + len(group) * -(-max(lengths[place] for place in group) // STEP) * STEP for group in groups
    )


def _cheapest(lengths: list[int], run: int) -> int:
    """Over every way to cut the sorted rows."""
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    costs = []
    for count in range(len(order)):
        for cuts in combinations(range(1, len(order)), count):
            ends = [0, *cuts, len(order)]
            costs.append(_cost([order[a:b] for a, b in pairwise(ends)], lengths, run))
    return min(costs)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 130), min_size=1, max_size=8), st.integers(0, 100))
def test_no_grouping_is_cheaper(lengths: list[int], run: int) -> None:
    groups = grouped(lengths, run=run)
    assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
    assert _cost(groups, lengths, run) == _cheapest(lengths, run)
    inside = [[lengths[place] for place in group] for group in groups]
    flat = [length for group in inside for length in group]
    assert flat == sorted(flat, reverse=True)


@given(st.lists(st.integers(1, 600), min_size=1, max_size=80), st.integers(8, 2000))
def test_a_run_has_no_more_tokens_than_it_may(lengths: list[int], most: int) -> None:
    groups = grouped(lengths, most=most)
    assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or _cost([group], lengths, 0) <= most


def test_one_long_text_does_not_pad_the_others() -> None:
    assert grouped([16] * 5 + [256] + [15] * 4) == [[5], [0, 1, 2, 3, 4, 6, 7, 8, 9]]
    assert grouped([16, 24]) == [[1, 0]]  # a second run would cost more than eight tokens


class Sums:
    """A network whose answer to a row is the sum of its tokens, and how many rows it was called with."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def run(self, outputs: list[str], feed: dict[str, Any]) -> list[Any]:
        self.shapes.append(feed["input_ids"].shape)
        assert feed["input_ids"].shape == feed["attention_mask"].shape
        sums = (feed["input_ids"] * feed["attention_mask"]).sum(axis=1, keepdims=True)
        return [{"sum": sums, "twice": 2 * sums}[name].astype(np.float32) for name in outputs]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=5), min_size=1, max_size=6), st.randoms())
def test_each_request_gets_the_answers_of_its_own_rows(requests: list[list[int]], chance: Any) -> None:
    feeds, expected = [], []
    for lengths in requests:
        width = max(lengths) + chance.randint(0, 40)  # as a tokenizer pads to one of its lengths
        ids, mask = np.full((len(lengths), width), 7), np.zeros((len(lengths), width), np.int64)
        for row, length in enumerate(lengths):
            mask[row, :length] = 1
            ids[row, :length] = [chance.randint(1, 1000) for _ in range(length)]
        feeds.append({"input_ids": ids, "attention_mask": mask})
        expected.append((ids * mask).sum(axis=1, keepdims=True))
    found = run_by_length(Sums(), ["twice", "sum"], feeds, padding=0)
    for (twice, sums), wanted in zip(found, expected, strict=True):
        assert sums.tolist() == wanted.tolist() and twice.tolist() == (2 * wanted).tolist()


class Last:
    """A network that answers with a row's last token that is no padding, as decoders that classify do.

    It has positions for so many tokens.
    """

    PADDING = 7

    def __init__(self, positions: int) -> None:
        self.positions = positions

    def run(self, outputs: list[str], feed: dict[str, Any]) -> list[Any]:
        ids = feed["input_ids"]
        assert ids.shape[1] <= self.positions
        place = ids.shape[1] - 1 - (ids[:, ::-1] != self.PADDING).argmax(axis=1)
        return [np.take_along_axis(ids, place[:, None], axis=1).astype(np.float32)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 77), st.booleans()), min_size=1, max_size=9))
def test_rows_are_filled_with_padding_and_never_beyond_their_request(rows: list[tuple[int, bool]]) -> None:
    feeds = []
    for number, (length, padded) in enumerate(rows):
        width = 77 if padded else length
        ids, mask = np.full((1, width), Last.PADDING), np.zeros((1, width), np.int64)
        ids[0, :length], mask[0, :length] = 100 + number, 1
        feeds.append({"input_ids": ids, "attention_mask": mask})
    found = run_by_length(Last(77), ["last"], feeds, padding=Last.PADDING)
    assert [answer.item() for (answer,) in found] == [100 + number for number in range(len(rows))]


@pytest.mark.parametrize("shapes", [((1, 20), (1, 5)), ((1, 5), (1, 20)), ((1, 0), (1, 0)), ((5,), (5,))])
def test_inputs_that_do_not_belong_together_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    feed = {
        name: np.ones(shape, np.int64)
        for name, shape in zip(("input_ids", "attention_mask"), shapes, strict=True)
    }
    with pytest.raises(BadRows, match="one shape"):
        run_by_length(Sums(), ["sum"], [feed], padding=0)


def test_padding_of_the_tokenizer_is_not_computed() -> None:
    network = Sums()
    mask = np.zeros((3, 256), np.int64)
    mask[:, :10] = 1
    run_by_length(
        network, ["sum"], [{"input_ids": np.ones((3, 256), np.int64), "attention_mask": mask}], padding=0
    )
    assert network.shapes == [(3, 16)]


@pytest.mark.parametrize(
    ("parameters", "shapes"),
    [
        ({"row_padding": "0"}, [(8, 64), (8, 8)]),
        ({"row_padding": "0", "max_run_padding": "456"}, [(16, 64)]),
        ({"row_padding": "0", "max_run_tokens": "128"}, [*[(2, 64)] * 4, (8, 8)]),
        ({}, [(16, 64)]),
    ],
)
def test_a_config_says_how_long_runs_are(parameters: dict[str, str], shapes: list[tuple[int, int]]) -> None:
    network = Sums()
    mask = np.ones((16, 64), np.int64)
    mask[8:, 8:] = 0
    asked = Options.from_config(
        {"parameters": {key: {"string_value": value} for key, value in parameters.items()}}
    )
    run_of(asked)(network, ["sum"], [{"input_ids": np.ones((16, 64), np.int64), "attention_mask": mask}])
    assert network.shapes == shapes


def test_a_limit_of_runs_that_is_no_number_is_refused() -> None:
    with pytest.raises(BadConfig, match="parameter max_run_tokens is 'many'"):
        Options.from_config({"parameters": {"max_run_tokens": {"string_value": "many"}}})


TOKENIZER = 'name: "m_tokenizer" backend: "python" parameters { key: "pad_id" value { string_value: "7" } }'


@pytest.mark.parametrize(
    "change",
    [
        ("onnxruntime", "python"),
        ("dims: 384", "dims: [-1, 9]"),  # a value for each token
        ("dims: -1", "dims: [-1, -1]"),  # several sequences in a row
        ("TYPE_INT64", "TYPE_INT32"),
        ("attention_mask", "other"),
        ('output { name: "embedding" data_type: TYPE_FP32 dims: 384 }', ""),  # Triton completes it
        ("dynamic_batching { }", ""),
        ("dynamic_batching", "dynamic_bathcing"),  # Triton refuses it
        ("max_batch_size: 64", "max_batch_size: 1"),
        ("dynamic_batching { }", "dynamic_batching { } instance_group { kind: KIND_GPU }"),
    ],
)
def test_other_networks_are_shown_as_they_are(change: tuple[str, str]) -> None:
    config = CONFIG.replace(*change)
    assert with_ragged_batches("m_encoder", {"m_encoder": config, "m_tokenizer": TOKENIZER}) == config


def test_a_network_whose_padding_nobody_knows_is_shown_as_it_is() -> None:
    without = TOKENIZER.replace("pad_id", "other")
    for configs in ({}, {"other_tokenizer": TOKENIZER}, {"m_tokenizer": without}, {"m_tokenizer": "{"}):
        assert with_ragged_batches("m_encoder", {"m_encoder": CONFIG, **configs}) == CONFIG
    assert with_ragged_batches("net", {"net": CONFIG, "net_tokenizer": TOKENIZER}) == CONFIG


def test_an_embedder_is_shown_with_ragged_batches_and_its_padding() -> None:
    shown = with_ragged_batches("m_encoder", {"m_encoder": CONFIG, "m_tokenizer": TOKENIZER})
    assert shown.count("allow_ragged_batch: true") == 2
    assert parse(shown).parameters["row_padding"].string_value == "7"
