"""A definition that would take the model's process down, or keep it busy, ends another process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.generation import structure
from serving.generation.params import BadRequest, Busy
from serving.generation.structure import Compiler, Structures, grammar_of
from serving.generation.trial import Trial
from tests.serving.generation.test_text import END, byte_level


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, list[int]]:
    path = tmp_path_factory.mktemp("trial") / "tokenizer.json"
    byte_level().save(str(path))
    return path, byte_level().get_vocab_size(), [END]


@pytest.fixture(scope="module")
def trial(tokenizer: tuple[Path, int, list[int]]) -> Iterator[Trial]:
    made = Trial(*tokenizer)
    yield made
    made.close()


def _try(trial: Trial, kind: str, definition: object) -> str:
    return trial(kind, grammar_of(kind, definition))


def test_what_compiles_passes_and_what_does_not_is_refused_with_the_reason(trial: Trial) -> None:
    assert _try(trial, "regex", "a+") == ""
    assert _try(trial, "json", {"enum": ["日本", 1]}) == ""
    assert _try(trial, "regex", "(") == "unclosed group: ("
    assert _try(trial, "json", {"type": "string", "minLength": 3, "maxLength": 2}).startswith(
        "no text can match it"
    )


def test_a_stack_that_overflows_is_not_this_one(trial: Trial) -> None:
    rules = "\n".join(["start: r0", *(f"r{i}: r{i + 1}" for i in range(12_000)), 'r12000: "a"'])
    schema = {"$defs": {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(6000)}, "$ref": "#/$defs/a0"}
    schema["$defs"]["a6000"] = {"type": "null"}  # type: ignore[index]
    for kind, definition in (("grammar", rules), ("json", schema)):
        assert "too much memory, or it is nested too deep" in _try(trial, kind, definition)
    assert _try(trial, "choice", ["a"]) == ""


def test_what_takes_too_long_is_ended(trial: Trial) -> None:
    patterns = {"patternProperties": {f"^(a|b)*{i}x": {"type": "null"} for i in range(600)}}
    assert _try(trial, "json", patterns) == "to compile it takes more than 2 seconds"
    assert _try(trial, "choice", ["b"]) == ""


def test_a_helper_that_dies_is_told_of_and_comes_back(tokenizer: tuple[Path, int, list[int]]) -> None:
    trial = Trial(*tokenizer)
    assert _try(trial, "regex", "a") == ""
    os.kill(trial._helper.pid, signal.SIGKILL)
    trial._helper.wait()
    assert _try(trial, "regex", "a") == ""  # is remembered
    assert _try(trial, "regex", "[a-c]") == ""  # a new helper
    trial.close()


def test_a_helper_that_dies_while_it_is_asked_is_no_reason_to_refuse(
    tokenizer: tuple[Path, int, list[int]],
) -> None:
    trial = Trial(*tokenizer)
    os.kill(trial._helper.pid, signal.SIGKILL)
    trial._helper.wait()
    whole, trial._command = trial._command, [sys.executable, "-c", "input()"]
    with pytest.raises(OSError, match="the process that tries grammars has died"):
        _try(trial, "regex", "a")
    trial._helper.wait()
    trial._command = whole
    assert _try(trial, "regex", "a") == ""
    trial.close()


def test_once_closed_nothing_is_tried_and_no_process_is_left(tokenizer: tuple[Path, int, list[int]]) -> None:
    trial = Trial(*tokenizer)
    helper = trial._helper
    trial.close()
    with pytest.raises(OSError, match="the server is stopping"):
        _try(trial, "regex", "a")
    assert trial._helper is helper and helper.poll() is not None


def test_a_structure_is_compiled_only_after_its_trial(tokenizer: tuple[Path, int, list[int]]) -> None:
    class Refuses:
        def __init__(self) -> None:
            self.asked: list[tuple[str, str]] = []

        def __call__(self, kind: str, grammar: str) -> str:
            self.asked.append((kind, grammar))
            return "it is no good"

        def close(self) -> None:
            self.asked.clear()

    trial = Refuses()
    structures = Structures(Compiler(*tokenizer), trial)
    with pytest.raises(BadRequest, match="^structured_outputs: regex: it is no good$"):
        structures.matcher("regex", "a")
    assert trial.asked == [("regex", grammar_of("regex", "a"))]
    structures.close()
    assert not trial.asked


def test_how_much_a_grammar_takes_is_measured(trial: Trial) -> None:
    few, many = (grammar_of("choice", [f"w{n * 7919}" for n in range(count)]) for count in (2, 12_000))
    assert trial("choice", few) == trial("choice", many) == ""
    assert trial.size("choice", few) < 2**20 < trial.size("choice", many) < 64 * 2**20
    assert trial.size("choice", "never tried") == 0


def test_structures_together_are_limited(
    trial: Trial, tokenizer: tuple[Path, int, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a request holds counts as long as it is there."""
    structures = Structures(Compiler(*tokenizer), trial)
    words = [f"w{n * 7919}" for n in range(12_000)]
    first = structures.matcher("choice", words)
    size = trial.size("choice", grammar_of("choice", words))
    monkeypatch.setattr(structure, "MAX_TOGETHER", 2 * size)
    second = structures.matcher("choice", words)
    with pytest.raises(Busy, match="other requests take the memory for structures; try again later"):
        structures.matcher("choice", words)
    del first
    third = structures.matcher("choice", words)
    assert second.allowed().any() and third.allowed().any()
