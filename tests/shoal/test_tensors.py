"""What a person types, and what is said of a model when nothing is typed."""

from __future__ import annotations

import base64
import json
import subprocess
from typing import Any

import pytest

from shoal.errors import UsageError
from shoal.tensors import arrays_of, sample_line


def described(name: str, sample: dict[str, Any], **inputs: tuple[str, list[int]]) -> tuple[Any, Any]:
    entries = [{"name": key, "datatype": kind, "shape": shape} for key, (kind, shape) in inputs.items()]
    config = {"parameters": {"sample": {"string_value": json.dumps(sample)}}} if sample else {}
    return config, {"name": name, "inputs": entries}


TEXT, NUMBER = ("BYTES", [-1, 1]), ("FP32", [-1, 1])
NLI = {"text": ["It's"], "candidate_labels": ["a b", "c"]}
LINES: list[tuple[tuple[Any, Any], list[str], str]] = [
    (described("minilm", {}, text=TEXT), [], "shoal infer minilm 'Fish swim in shoals.'"),
    (
        described("nli", NLI, text=TEXT, candidate_labels=("BYTES", [-1, -1])),
        ["--url", "x:1"],
        "shoal infer --url x:1 nli 'It'\"'\"'s' -i 'candidate_labels=a b' -i candidate_labels=c",
    ),
    (
        described("shop", {"city": ["Rome"], "age": [30.0]}, city=TEXT, age=NUMBER),
        ["-r", "my models"],
        "shoal infer -r 'my models' shop -i city=Rome -i age=30.0",
    ),
    (
        described("iris", {"features": [0.1, 16777217.0]}, features=("FP64", [-1, 2])),
        [],
        "shoal infer iris -i features=0.1,16777217.0",
    ),
    (
        described("pair", {"text": ["a", "b"]}, text=("BYTES", [-1, 2])),
        [],
        "shoal infer pair -i text=a -i text=b",
    ),
    (described("n", {}, count=("INT64", [-1, 1])), [], "shoal infer n -i count=1"),
]


@pytest.mark.parametrize(("model", "options", "line"), LINES)
def test_the_hint_is_a_command(model: tuple[Any, Any], options: list[str], line: str) -> None:
    config, metadata = model
    assert sample_line(config, metadata, options) == line
    with pytest.raises(UsageError, match=f"{metadata['name']} wants") as caught:
        arrays_of(config, metadata, [], [], options)
    assert (caught.value.hint, caught.value.exit_code) == (line, 2)


def test_a_file_is_written_out() -> None:
    content = b"\x89PNG\r\n\x1a\n\x00 not text \xff"
    sample = {"image": [base64.b64encode(content).decode()], "encoding": "base64"}
    line = sample_line(*described("photos", sample, image=("BYTES", [-1, 1])), [])
    shown = f'shoal() {{ cat "${{4#image=@}}"; }}; {line}'
    assert subprocess.run(["bash", "-c", shown], check=True, capture_output=True).stdout == content
