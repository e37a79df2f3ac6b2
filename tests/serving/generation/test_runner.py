"""A long prompt is written in several runs, which nobody can tell from one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from serving.generation import runner as runners
from serving.generation.runner import DecoderRunner

PROMPT = [int(token) for token in np.random.default_rng(0).integers(5, 90, 70)]


@pytest.mark.parametrize("wanted", [[69], [0], [0, 22, 23, 24, 69], list(range(70))])
def test_a_prompt_in_several_runs_is_the_same_to_the_last_bit(
    tiny_repository: Path, monkeypatch: pytest.MonkeyPatch, wanted: list[int]
) -> None:
    found = []
    for most in (len(PROMPT), 30, 1):  # one run; 24, 24 and 22 tokens; a token each
        monkeypatch.setattr(runners, "RUN_TOKENS", most)
        runner = DecoderRunner(tiny_repository / "tiny" / "1" / "model.onnx", rows=2, max_length=128)
        runner.prefill(1, PROMPT[:10], 0, [0])
        logits = runner.prefill(1, PROMPT, 10, wanted)
        found.append((logits, runner.save(1, 0, 80)))
    (logits, cache), several, single = found
    assert logits.shape == (len(wanted), runner.vocabulary)
    assert np.array_equal(several[0], logits) and np.array_equal(several[1], cache)
    assert np.allclose(single[0], logits, atol=1e-5)  # a matrix of one row is multiplied in another order
