"""A decoder over pages: what is computed of a token depends on its own sequence and on nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from export.exported import Exported
from export.generation.to_openvino import to_openvino
from serving.generation import memory
from serving.generation.model import MixingModel, Part
from serving.generation.paged_runner import PAGE, PagedRunner
from serving.generation.runtime import difference, open_runner, runtime_of
from serving.onnxruntime import sessions
from serving.onnxruntime.options import BadConfig
from shoal.progress import Silent
from tests.decoders import EXACT, needs_vnni

TOKENS = [int(token) for token in np.random.default_rng(0).integers(5, 90, 400)]
LENGTHS = (5, PAGE - 1, PAGE, PAGE + 1, 100)


@pytest.fixture(scope="module")
def graph(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    plain = Exported.read(tiny_repository / "tiny" / "1" / "model.onnx")
    return to_openvino(plain, tmp_path_factory.mktemp("paged") / "openvino.onnx", Silent()).path


@pytest.fixture
def runner(graph: Path) -> PagedRunner:
    return PagedRunner(graph, rows=8, max_length=3 * PAGE + 30)


def _prompt(number: int) -> list[int]:
    return TOKENS[number * 31 : number * 31 + LENGTHS[number]]


def _next(runner: PagedRunner, rows: Sequence[int]) -> list[np.ndarray]:
    """Logits of the same next token of several sequences, the first as long as the rows need."""
    parts = [Part(row, [7], LENGTHS[row], [0]) for row in rows]
    return list(runner.run(parts).copy())


@needs_vnni
def test_alone_in_company_and_beside_a_prompt_are_the_same_to_the_last_bit(runner: PagedRunner) -> None:
    for number in range(len(LENGTHS)):
        runner.prefill(number, _prompt(number), 0, [0])
    together = _next(runner, range(len(LENGTHS)))
    for row in range(len(LENGTHS)):
        alone = runner.decode([7], [LENGTHS[0]])[0].copy() if row == 0 else _next(runner, [row])[0]
        assert np.array_equal(alone, together[row])
        prompt = Part(6, TOKENS[200 : 200 + 40], 0, [39])
        (beside, written) = runner.run([Part(row, [7], LENGTHS[row], [0]), prompt]).copy()
        assert np.array_equal(beside, together[row])
        assert np.array_equal(written, runner.prefill(7, TOKENS[200 : 200 + 40], 0, [39])[0])


@needs_vnni
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_more_threads_than_sequences_add_up_in_no_other_order(graph: Path, threads: int) -> None:
    """OpenVINO has two ways to share attention among threads, and chooses by how many sequences there are."""
    runner = PagedRunner(graph, rows=8, max_length=3 * PAGE + 30, threads=threads)
    for number in range(len(LENGTHS)):
        runner.prefill(number, _prompt(number), 0, [0])
    together = _next(runner, range(len(LENGTHS)))
    for count in range(1, len(LENGTHS)):
        for alone, beside in zip(_next(runner, range(count)), together, strict=False):
            assert np.array_equal(alone, beside)


@pytest.mark.parametrize("cut", [2, 16, PAGE, PAGE + 3, 98])
def test_where_a_prompt_is_cut_changes_nothing(runner: PagedRunner, cut: int) -> None:
    tokens = TOKENS[:100]
    whole = runner.prefill(0, tokens, 0, range(100))
    first = runner.prefill(1, tokens[:cut], 0, range(cut))
    rest = runner.prefill(1, tokens[cut:], cut, range(100 - cut))
    assert np.array_equal(np.concatenate([first, rest]), whole)


@needs_vnni
def test_prompts_together_are_the_same_as_by_themselves(runner: PagedRunner) -> None:
    prompts = [_prompt(number) for number in range(4)]
    together = runner.prefill_together(2, prompts)
    for prompt, logits in zip(prompts, together, strict=True):
        assert np.array_equal(runner.prefill(0, prompt, 0, [len(prompt) - 1])[0], logits)


def test_what_is_kept_and_what_is_moved_is_read_as_it_was(runner: PagedRunner) -> None:
    prompt = TOKENS[:80]
    runner.prefill(0, prompt, 0, [0])
    expected = runner.decode([9], [80]).copy()
    kept = [runner.save(0, start, start + 16) for start in range(0, 80, 16)]
    runner.prefill(0, TOKENS[100:190], 0, [0])  # what is kept is a copy
    for number, saved in enumerate(kept):
        runner.restore(5, 16 * number, saved)
    runner.move(5, 0, 80)
    assert np.array_equal(runner.decode([9], [80]), expected)
    runner.prefill(5, TOKENS[:90], 0, [0])  # the row that was left is another's now
    assert np.array_equal(runner.decode([9], [80]), expected)


def test_a_row_may_be_filled_to_its_end(runner: PagedRunner) -> None:
    length = runner.max_length
    runner.prefill(7, TOKENS[: length - 1], 0, [0])
    runner.prefill(6, TOKENS[: length - 1], 0, [0])
    last = runner.run([Part(7, [3], length - 1, [0]), Part(6, [3], length - 1, [0])])
    assert np.array_equal(last[0], last[1]) and np.isfinite(last).all()


def test_memory_is_told_and_refused(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = PagedRunner(graph, rows=4, max_length=1024)
    told, fits = runner.memory.describe()
    assert fits and "memory is taken as they are written" in told
    assert runner.memory.bytes_per_token == 2 * 2 * (
        16 + 8
    )  # keys and values of 2 heads, with scale and zero point
    weights = graph.stat().st_size
    monkeypatch.setattr(memory, "memory_bytes", lambda: weights + 1024 * runner.memory.bytes_per_token - 1)
    with pytest.raises(BadConfig, match="one context of 1024 tokens needs .* lower max_model_len"):
        PagedRunner(graph, rows=4, max_length=1024)


def test_an_older_openvino_than_the_one_that_made_a_version_is_refused(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / sessions.FILENAME).touch()
    for made_with, package, refused in (
        ("2099.1.0", "openvino", True),
        ("2020.1.0", "openvino", False),
        ("2099.1.0", "onnxruntime", False),  # which does not run this version
    ):
        manifest = SimpleNamespace(tools={package: made_with})
        monkeypatch.setattr(sessions.Manifest, "load", lambda path, manifest=manifest: manifest)
        if refused:
            with pytest.raises(BadConfig, match=r"made with openvino 2099\.1\.0, .*; upgrade openvino"):
                sessions.check_runtime(tmp_path, "openvino")
        else:
            sessions.check_runtime(tmp_path, "openvino")


def test_the_file_says_what_runs_it(graph: Path, tmp_path: Path) -> None:
    assert runtime_of(graph) == "openvino" and runtime_of(tmp_path / "model.onnx") == "onnxruntime"
    assert isinstance(open_runner(graph, rows=1, max_length=64), MixingModel)
    with pytest.raises(BadConfig, match="is for CPUs"):
        open_runner(graph, rows=1, max_length=64, gpu=0)
    broken = tmp_path / "openvino.onnx"
    broken.write_bytes(graph.read_bytes()[:1000])
    with pytest.raises(RuntimeError):
        open_runner(broken, rows=1, max_length=64)


def test_whether_company_changes_an_answer_is_measured(runner: PagedRunner, tiny_repository: Path) -> None:
    """OpenVINO is exact on some CPUs, ONNX Runtime on all: the export publishes by this figure."""
    assert (difference(runner) == 0) is EXACT
    exact = open_runner(tiny_repository / "tiny" / "1" / "model.onnx", rows=8, max_length=48)
    assert difference(exact) == 0
