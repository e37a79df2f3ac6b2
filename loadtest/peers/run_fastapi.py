"""What an engineer writes without a model server: FastAPI, one uvicorn worker, one ONNX Runtime session.

The model answers POST /classify on loopback: a row of a table as JSON, or a picture as its file's bytes. An
endpoint that is no coroutine runs in FastAPI's thread pool, so that one request is read while another runs.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from numpy.typing import NDArray
from PIL import Image

from loadtest.peers.rows import Label, Row
from loadtest.peers.server import HOST


async def content_of(request: Request) -> bytes:
    """The body of a request as it came."""
    return bytes(await request.body())


def pixels(content: bytes, processor: dict[str, Any]) -> NDArray[np.float32]:
    """A picture as float32 [1, 3, height, width], resized and normalized as the checkpoint says.

    Raises:
        OSError: it is no picture.
    """
    size = (processor["size"]["width"], processor["size"]["height"])
    image = Image.open(io.BytesIO(content)).convert("RGB")
    resized = image.resize(size, Image.Resampling(processor["resample"]))
    values = np.asarray(resized, np.float32) * np.float32(processor["rescale_factor"])
    mean, std = (np.array(processor[f"image_{name}"], np.float32) for name in ("mean", "std"))
    return ((values - mean) / std).transpose(2, 0, 1)[None]


def classifier(session: onnxruntime.InferenceSession, processor: dict[str, Any] | None) -> FastAPI:
    """The application of one model.

    Args:
        processor: the settings of its pictures; None: it reads a row of a table.
    """
    app = FastAPI()
    name = session.get_inputs()[0].name

    def classified(values: NDArray[np.float32]) -> list[Label]:
        labels, scores = session.run(["label", "score"], {name: values})
        found = zip(labels[0].tolist(), scores[0].tolist(), strict=True)
        return [Label(label=label, score=score) for label, score in found]

    def row(row: Row) -> list[Label]:
        return classified(np.array([row.features], np.float32))

    def picture(content: Annotated[bytes, Depends(content_of)]) -> list[Label]:
        assert processor is not None  # noqa: S101 - or there is no such endpoint
        try:
            values = pixels(content, processor)
        except OSError as error:
            raise HTTPException(422, str(error)) from error
        return classified(values)

    app.get("/health")(lambda: "ready")
    app.post("/classify")(row if processor is None else picture)
    return app


def main() -> None:
    """Serve until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--onnx", required=True)
    parser.add_argument("--processor", type=Path, help="preprocessor_config.json of a model of pictures")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    processor = json.loads(options.processor.read_text()) if options.processor else None
    session = onnxruntime.InferenceSession(options.onnx, providers=["CPUExecutionProvider"])
    app = classifier(session, processor)
    uvicorn.run(app, host=HOST, port=options.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
