"""lm-evaluation-harness scores a checkpoint through the gateway as transformers computes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.external_clients.conftest import Caller, Writer

QUESTIONS = [
    {"question": "What is the capital of France?", "choices": ["London", "Paris", "Rome"], "answer": 1},
    {"question": "What do fish breathe with?", "choices": ["Gills", "Wings", "Wheels"], "answer": 0},
    {"question": "Which is a colour?", "choices": ["Seven", "Running", "Blue"], "answer": 2},
    {"question": "What is two plus two?", "choices": ["Four", "Nine", "Zero"], "answer": 0},
    # Characters whose bytes are tokens of their own, and the token that ends a text as a choice.
    {"question": "How is fish written in Japanese?", "choices": ["魚", "🐟", "fish<|im_end|>"], "answer": 0},
]
TASKS = {
    "choices": """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}]
""",
    "written": """
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 16, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


def encoded(writer: Writer, question: dict[str, Any], choice: str) -> tuple[list[int], list[int]]:
    """The tokens of a question, and those of an answer to it as they stand behind the question."""
    prompt = f"Question: {question['question']}\nAnswer:"
    context = writer.tokenizer.encode(prompt)
    return context, writer.tokenizer.encode(f"{prompt} {choice}")[len(context) :]


@pytest.mark.parametrize(
    "how", [{}, {"tokenized_requests": False, "num_concurrent": 4}, {"batch_size": 4}], ids=str
)
def test_likelihoods_are_those_of_transformers(
    call: Caller, writer: Writer, checkpoints: dict[str, Path], tmp_path: Path, how: dict[str, Any]
) -> None:
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    where = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
    for name, text in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\n{where}{text}")
    told = call(
        "lm_eval",
        tokenizer=str(checkpoints["smollm2"]),
        folder=str(tmp_path),
        tasks=list(TASKS),
        how=how,
    )
    right = 0
    for place, found in sorted(told["samples"]["choices"]):
        question = QUESTIONS[place]
        expected = [writer.likelihood(*encoded(writer, question, choice)) for choice in question["choices"]]
        assert [likelihood for likelihood, _ in found] == pytest.approx(
            [likelihood for likelihood, _ in expected], abs=2e-3
        )
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
        likelihoods = [likelihood for likelihood, _ in expected]
        right += likelihoods.index(max(likelihoods)) == question["answer"]
    assert told["results"]["choices"]["acc,none"] == right / len(QUESTIONS)
    for place, (text,) in told["samples"]["written"]:
        whole = writer.complete(f"Question: {QUESTIONS[place]['question']}\nAnswer:", 16)
        assert text == whole.split("\n")[0]
