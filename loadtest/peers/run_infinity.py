"""infinity: its server of embeddings, with its torch engine or with ONNX Runtime through optimum.

Becomes the server, which answers POST /embeddings on loopback until it is ended.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from loadtest.peers.server import HOST

ENGINES = ("torch", "optimum")
# It asks no hub, and tells nobody that it runs.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
}


def exported(model: Path, cache: Path) -> Path:
    """The model as ONNX, by optimum, made once for these weights. Infinity lays what it optimizes there."""
    digest = hashlib.sha256()
    for file in sorted(model.glob("*.safetensors")):
        digest.update(file.read_bytes())
    folder = cache / f"onnx-{digest.hexdigest()[:12]}"
    if folder.exists():
        return folder
    # PyTorch's new exporter needs one more package, and this optimum is older than it.
    torch = import_module("torch")
    torch.onnx.export = functools.partial(torch.onnx.export, dynamo=False)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        made = Path(temporary) / "made"
        import_module("optimum.exporters.onnx").main_export(
            str(model), made, task="feature-extraction", library_name="transformers"
        )
        shutil.move(made, folder)
    return folder


def pooling(model: Path) -> str:
    """How the model makes one vector of its tokens' vectors; with optimum infinity does not look that up."""
    settings = model / "1_Pooling" / "config.json"
    cls = settings.exists() and json.loads(settings.read_text())["pooling_mode_cls_token"]
    return "cls" if cls else "mean"


def main() -> None:
    """Export if need be, and become the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--port", required=True)
    parser.add_argument("--cache", type=Path, required=True, help="folder for what is kept between runs")
    options = parser.parse_args()
    os.environ |= ENVIRONMENT
    model = options.model.resolve()
    command = [
        *(str(Path(sys.executable).with_name("infinity_emb")), "v2", "--engine", options.engine),
        *("--model-id", str(model if options.engine == "torch" else exported(model, options.cache))),
        *("--served-model-name", "model", "--pooling-method", pooling(model), "--device", "cpu"),
        # A line for each request would cost time, and says nothing.
        *("--host", HOST, "--port", options.port, "--log-level", "warning"),
    ]
    os.execv(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main()
