"""Thoughts are told from answers, however the text is split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.gateway.reasoning import Reasoning

TEXTS = {
    "<think>\nLet me see.\n</think>\n\nIt is 4.": ("Let me see.\n", "It is 4."),
    "  <think>a</think>b</think>c": ("a", "b</think>c"),
    "It is 4.": ("", "It is 4."),
    " <thin": ("", " <thin"),
    "<think>cut </thi": ("cut </thi", ""),
    "<think></think>": ("", ""),
    "a <think>b</think>": ("", "a <think>b</think>"),
}


@pytest.mark.parametrize("text", TEXTS)
@given(data=st.data())
def test_any_split_says_the_same(text: str, data: st.DataObject) -> None:
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    reasoning = Reasoning.of("x</think>")
    told = [*(reasoning.add(piece) for piece in pieces), reasoning.end()]
    assert ("".join(t for t, _ in told), "".join(a for _, a in told)) == TEXTS[text]


def test_a_model_that_does_not_think_may_write_the_word() -> None:
    reasoning = Reasoning.of("{{ messages }}")
    assert reasoning.add("<think>a</think>b") == ("", "<think>a</think>b") and reasoning.end() == ("", "")
