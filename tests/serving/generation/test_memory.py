"""What a decoder's cache takes is told, and what cannot fit is refused when the model is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from serving.embedded import running
from serving.generation import memory as memories
from serving.generation.runner import DecoderRunner
from serving.onnxruntime.options import BadConfig
from shoal import model_config
from shoal.errors import ServerError


def _runner(repository: Path, monkeypatch: pytest.MonkeyPatch, memory: int) -> DecoderRunner:
    monkeypatch.setattr(memories, "memory_bytes", lambda: memory)
    return DecoderRunner(repository / "tiny" / "1" / "model.onnx", rows=4, max_length=1000)


def test_what_is_taken_is_told(tiny_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = _runner(tiny_repository, monkeypatch, 1 << 40)
    weights = (tiny_repository / "tiny" / "1" / "model.onnx").stat().st_size
    row = 1000 * runner.memory.bytes_per_token
    told, fits = runner.memory.describe()
    assert fits and f"{runner.memory.bytes_per_token / 1e3:.0f} kB a token" in told
    told, fits = _runner(tiny_repository, monkeypatch, weights + 4 * row - 1).memory.describe()
    assert not fits and told.endswith("lower max_num_seqs or max_model_len")
    with pytest.raises(BadConfig, match="one context of 1000 tokens needs .* lower max_model_len"):
        _runner(tiny_repository, monkeypatch, weights + row - 1)


@pytest.mark.parametrize("tokens", [2**28, 2**40])
def test_a_context_that_cannot_fit_is_refused_at_load(
    tiny_repository: Path, tmp_path: Path, tokens: int
) -> None:
    """Of the longer one not even the address space is to be had."""
    repository = shutil.copytree(tiny_repository, tmp_path / "model_repository")
    path = repository / "tiny" / "config.pbtxt"
    config = model_config.parse(path.read_text())
    config.parameters["max_model_len"].string_value = str(tokens)
    path.write_text(model_config.to_text(config))
    with (
        pytest.raises(ServerError, match="BadConfig: one context of [0-9]+ tokens needs"),
        running(repository),
    ):
        pass


def test_the_server_says_what_the_cache_takes(tiny_repository: Path) -> None:
    with running(tiny_repository) as server:
        assert "MB a request, and memory is taken as they are written" in server.log.read_text()
