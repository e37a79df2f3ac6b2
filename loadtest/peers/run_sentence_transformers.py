"""The first service of an embedder: FastAPI, one uvicorn worker, `SentenceTransformer.encode` in fp32.

It answers POST /embeddings on loopback in the shape of OpenAI's API, vectors in base64, which is less work
than digits. An endpoint that is no coroutine runs in FastAPI's thread pool, so several calls of `encode`
run at once, each with all of torch's threads: as it comes, and not as an expert would set it.
"""

from __future__ import annotations

import argparse
from base64 import b64encode
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

from loadtest.peers.server import HOST


class Texts(BaseModel):
    """What is embedded; other fields are ignored."""

    input: list[str]


def embedder(model: SentenceTransformer) -> FastAPI:
    """The application of one model."""
    app = FastAPI()

    def embed(texts: Texts) -> dict[str, Any]:
        vectors = model.encode(texts.input, show_progress_bar=False)
        rows = [b64encode(np.asarray(vector, np.float32).tobytes()).decode() for vector in vectors]
        return {"data": [{"index": place, "embedding": row} for place, row in enumerate(rows)]}

    app.get("/health")(lambda: "ready")
    app.post("/embeddings")(embed)
    return app


def main() -> None:
    """Serve until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a folder")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    app = embedder(SentenceTransformer(options.model, device="cpu", local_files_only=True))
    uvicorn.run(app, host=HOST, port=options.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
