"""Versions of a few bytes, for tests of what is done with versions and not of what is in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shoal.hashes import sha256
from shoal.paths import write_atomic

CONFIG = """name: "{name}"
backend: "onnxruntime"
version_policy {{
  specific {{
    versions: {version}
  }}
}}
"""


def add(repository: Path, network: str, version: int, *, model: str = "m", task: str | None = None) -> None:
    """A version as an export leaves it, of a few bytes, and served."""
    folder = repository / network / str(version)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(f"{network} {version}".encode())
    config = CONFIG.format(name=network, version=version)
    entry: dict[str, Any] = {
        **{key: {} for key in ("onnx", "tools", "machine", "evidence")},
        **{"model": model, "network": network, "version": version, "precision": "fp32", "schema": 2},
        **{"source": {"id": "here"}, "recipe": {"task": task}, "created": "2026-01-01T00:00:00+00:00"},
        "files": {f"{network}/{version}/model.onnx": sha256(folder / "model.onnx")},
        "configs": {network: config},
    }
    (folder / "manifest.json").write_text(json.dumps(entry))
    write_atomic(repository / network / "config.pbtxt", config)
    path = repository / network / "served.json"
    before = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps([*before, version]))
