"""Answers as people see them."""

from __future__ import annotations

import io

from rich.console import Console

from shoal import show

ANSWER = {
    "label": [["good", "fair", "bad"], ["bad", "", ""]],
    "score": [[0.5, 0.3, 0.2], [0.9, 0.0, 0.0]],
    "num_input_tokens": [[7], [5]],
}


def test_a_row_has_all_its_labels_whatever_else_has_one_value_a_row() -> None:
    console = Console(file=(shown := io.StringIO()), width=100)
    console.print(show.answers_table(ANSWER, ["a fish", "a bird"]))
    head, _, *rows = [line.split() for line in shown.getvalue().splitlines() if line.strip()]
    assert head == ["label", "score"]
    assert rows == [
        ["a", "fish", "good", "0.5000"],
        ["fair", "0.3000"],
        ["bad", "0.2000"],
        ["a", "bird", "bad", "0.9000"],
    ]


def test_one_answer_in_a_few_words() -> None:
    assert show.one_answer(ANSWER) == "label good, score 0.5000"
