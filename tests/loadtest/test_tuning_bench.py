"""Settings on the real server, tested by real Locust."""

from __future__ import annotations

import json
import subprocess
import sys
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
        changed = {
            **settings.default,
            "version": 1,
            "instances x threads": "2 x 1",
            "waits for others, us": 500,
        }
        assert bench.measure(changed, 10.0, 2).met
        assert set(bench.queues()) == {"minilm", "minilm_encoder", "minilm_tokenizer"}
        assert len(embedded.servers()) >= 2
        with pytest.raises(ServerError, match="the server died"):
            server = bench._server(settings.default)
            embedded.stop(server)
            bench._server = lambda *_: server  # type: ignore[method-assign]
            bench.measure(settings.default, 10.0, 3)
    assert not list(repository.parent.glob(".shoal-tune-*"))
    assert {path: path.stat().st_mtime_ns for path in repository.rglob("config.pbtxt")} == before


@pytest.mark.slow
def test_a_search_is_applied_and_priced(own_repository: Path, tmp_path: Path) -> None:
    """The command on a real service, with two versions, of which the tuner may take either."""
    folder = tmp_path / "tuned"

    def shoal(*arguments: str) -> str:
        command = [sys.executable, "-m", "shoal", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    here = ("-r", str(own_repository), "--report", str(folder))
    asked = ("tune", "minilm", "--slo", "p90=400ms", "--min-cosine", "0.5", "--seconds", "2", *here)
    told = json.loads(shoal(*asked, "--budget", "150s", "--apply", "--json"))
    assert len(told["same"]) == 2 and told["tried"]
    assert told["in_flight"] > 0
    report = json.loads((folder / "report.json").read_text())
    assert report["max_rate"] == told["rate"] and report["served"]["version"] in (1, 2)
    costs = json.loads(shoal("cost", str(folder), "--rps", "1000", "--json", "--report", str(tmp_path)))
    assert costs["machines"] and all(row["option"].startswith("minilm v") for row in costs["machines"])
    versions = json.loads(shoal("versions", "minilm", "-r", str(own_repository), "--json"))
    assert len(versions["versions"]) == (3 if "published" in told else 2)
    assert not list(own_repository.parent.glob(".shoal-tune-*"))
