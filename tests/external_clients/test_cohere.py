"""Cohere's client asks a ranker."""

from __future__ import annotations

import numpy as np
from sentence_transformers import CrossEncoder

from tests.external_clients.conftest import Caller

QUERY = "Who wrote Python?"
ABSENT = "The model `nothing` does not exist; GET /v1/models lists those that do"
TEXTS = ["Guido van Rossum wrote Python.", "Fish swim in shoals.", "Birds fly.", "a b c", "Snakes eat mice."]


def test_documents_are_ranked_as_the_cross_encoder_ranks_them(call: Caller, ranker: CrossEncoder) -> None:
    told = call("cohere", query=QUERY, texts=TEXTS)
    scores = ranker.predict([(QUERY, text) for text in TEXTS])
    order = np.argsort(-scores, kind="stable").tolist()[:3]
    for version in ("v1", "v2", "asynchronous"):
        assert [place for place, _ in told[version]] == order
        np.testing.assert_allclose([score for _, score in told[version]], scores[order], atol=1e-4)
    assert told["error"] == {"message": ABSENT}
