"""Settings on the real server, tested by real Locust."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest import headless
from loadtest.tuning import space
from loadtest.tuning.bench import Bench
from serving import embedded
from shoal.errors import ServerError
from shoal.manifest import manifests, served_manifests


def test_settings_are_served_and_tested(repository: Path, tmp_path: Path) -> None:
    served = next(served_manifests(repository, "minilm"))
    others = [each for each in manifests(repository, "minilm") if each.version != served.version]
    settings = space.space_of("minilm", served, others, cpus=2)
    plan = headless.Plan("minilm", 0, 2, "grpc", "-", "-", arrival="constant", slo="p90=400ms")
    before = {path: path.stat().st_mtime_ns for path in repository.rglob("config.pbtxt")}
    with Bench(repository, settings, plan, tmp_path) as bench:
        kept = bench.measure(settings.default, 10.0, 1)
        assert kept.met and kept.goodput == 1.0 and kept.reached["p90=400ms"] is not None
        changed = {**settings.default, "version": 1, "instances x threads": "2 x 1", "queue delay, us": 500}
        assert bench.measure(changed, 10.0, 2).met
        assert set(bench.queues()) == {"minilm", "minilm_encoder", "minilm_tokenizer"}
        assert len(embedded.servers()) >= 2
        with pytest.raises(ServerError, match="the server died"):
            server = bench._server(settings.default)
            embedded.stop(server)
            bench._server = lambda *_: server  # type: ignore[method-assign]
            bench.measure(settings.default, 10.0, 3)
    assert not list(repository.parent.glob(".tune-*"))
    assert {path: path.stat().st_mtime_ns for path in repository.rglob("config.pbtxt")} == before
