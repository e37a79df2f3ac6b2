"""`/similarity` of text-embeddings-inference; its other paths are in `test_tasks`."""

from __future__ import annotations

import numpy as np
import pytest

from clients import GrpcClient
from serving.service import Service
from tests.serving.gateway.running import Running


def test_the_cosine_of_each_text_with_the_first(running: Running, service: Service) -> None:
    first, others = (
        "Fish swim in shoals.",
        ["Herrings are never alone.", "Birds fly.", "Fish swim in shoals."],
    )
    with GrpcClient(service.grpc) as client:
        vectors = np.array(client.embed([first, *others]), np.float64)
    expected = [v @ vectors[0] / (np.linalg.norm(v) * np.linalg.norm(vectors[0])) for v in vectors[1:]]
    body = {"inputs": {"source_sentence": first, "sentences": others}, "parameters": {"truncate": True}}
    status, told, _ = running.post("/similarity", body)
    assert status == 200 and told == pytest.approx(expected, abs=2e-3)
    status, told, _ = running.post("/similarity", {"inputs": {"source_sentence": first, "sentences": []}})
    assert status == 400 and told["error_type"] == "Validation"
