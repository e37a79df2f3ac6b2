"""Log probabilities of completions, from the form in which the model writes them."""

from __future__ import annotations

import json

from serving.gateway.protocols.completions import Completion
from serving.gateway.triton import Part


def part(places: list[object]) -> Part:
    """A part of an answer with nothing but log probabilities."""
    return Part("", 1, "", 1, 0, json.dumps(places), "", "null")


def test_tokens_of_one_text_keep_the_likeliest() -> None:
    """Each half of a character reads as U+FFFD; lm-evaluation-harness compares with the best."""
    place = {
        "7": {"logprob": -0.5, "rank": 1, "decoded_token": "\ufffd", "bytes": [230]},
        "8": {"logprob": -2.0, "rank": 2, "decoded_token": "\ufffd", "bytes": [231]},
        "9": {"logprob": -3.0, "rank": 3, "decoded_token": "a", "bytes": [97]},
    }
    _, told = Completion(None, 3, empty=False).add(part([place]))
    assert told is not None and told["top_logprobs"] == [{"\ufffd": -0.5, "a": -3.0}]
    unlikely = {"9": place["9"]} | place
    _, told = Completion(None, 1, empty=False).add(part([unlikely]))
    assert told is not None and told["token_logprobs"] == [-3.0]
    assert told["top_logprobs"] == [{"\ufffd": -0.5, "a": -3.0}]
