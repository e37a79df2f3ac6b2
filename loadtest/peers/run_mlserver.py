"""MLServer with its scikit-learn runtime and its defaults: one worker process, and no adaptive batching.

It trains `example:forest`, writes it and MLServer's two settings files into the cache, and becomes the
server, which answers `POST /v2/models/forest/infer` on loopback until it is ended.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import joblib

from loadtest.peers.forest import trained
from loadtest.peers.server import HOST, free_port


def main() -> None:
    """Train, and become the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the model and its settings")
    options = parser.parse_args()
    folder = options.cache / "forest"
    folder.mkdir(parents=True, exist_ok=True)
    joblib.dump(trained(), folder / "model.joblib")
    server = {
        "host": HOST,
        "http_port": options.port,
        "grpc_port": free_port(),
        "metrics_port": free_port(),
        "debug": False,
    }
    model = {
        "name": "forest",
        "implementation": "mlserver_sklearn.SKLearnModel",
        "parameters": {"uri": "./model.joblib", "version": "1"},
    }
    (folder / "settings.json").write_text(json.dumps(server))
    (folder / "model-settings.json").write_text(json.dumps(model))
    program = str(Path(sys.executable).with_name("mlserver"))
    os.execv(program, [program, "start", str(folder)])  # noqa: S606


if __name__ == "__main__":
    main()
