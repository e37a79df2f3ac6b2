"""The first service of a scikit-learn model: FastAPI, one uvicorn worker, `predict_proba` of the estimator.

It trains `example:forest` and answers POST /classify on loopback, a row of the table as JSON. An endpoint
that is no coroutine runs in FastAPI's thread pool.
"""

from __future__ import annotations

import argparse

import numpy as np
import uvicorn
from fastapi import FastAPI
from sklearn.pipeline import Pipeline

from loadtest.peers.forest import trained
from loadtest.peers.rows import Label, Row
from loadtest.peers.server import HOST


def classifier(model: Pipeline) -> FastAPI:
    """The application of one estimator."""
    app = FastAPI()

    def classify(row: Row) -> list[Label]:
        scores = model.predict_proba(np.array([row.features]))[0]
        order = np.argsort(-scores, kind="stable")
        return [Label(label=model.classes_[place], score=scores[place]) for place in order]

    app.get("/health")(lambda: "ready")
    app.post("/classify")(classify)
    return app


def main() -> None:
    """Serve until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    app = classifier(trained())
    uvicorn.run(app, host=HOST, port=options.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
