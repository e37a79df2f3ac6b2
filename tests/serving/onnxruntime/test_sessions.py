"""Sessions whose provider cannot be used: ONNX Runtime would go on with the CPU."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from export.device import require_gpu, smallest_graph
from serving.onnxruntime import sessions
from serving.onnxruntime.options import BadConfig, session_options
from shoal.errors import ExportError

CUDA = "CUDAExecutionProvider"


@pytest.fixture
def says_it_has_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `onnxruntime-gpu` without CUDA libraries: it lists the provider, and the session lacks it."""
    plain = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, sessions.CPU])
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda model, options, providers: plain(model, options, providers=[sessions.CPU]),
    )


@pytest.mark.usefixtures("says_it_has_cuda")
def test_a_gpu_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(smallest_graph())
    expected = f"cannot use {CUDA}: .*libonnxruntime_providers_cuda.so: cannot open.*pip install"
    with pytest.raises(BadConfig, match=expected):
        sessions.load_session(path, session_options(), sessions.providers_of(0))
    assert sessions.load_session(path, session_options(), sessions.providers_of(None)).get_inputs()


@pytest.mark.usefixtures("says_it_has_cuda")
def test_a_precision_for_a_gpu_is_refused_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.device.gpus", lambda: ["a GPU"])
    with pytest.raises(ExportError, match=f"^fp16 must be measured on an NVIDIA GPU; .*cannot use {CUDA}"):
        require_gpu(["fp16"])
