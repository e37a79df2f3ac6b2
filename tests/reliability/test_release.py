"""`deploy/release.sh` from a checkpoint to a promoted version, with a real S3 server, Envoy and callers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import Ridge

from clients import ClientError, GrpcClient
from shoal.manifest import served_manifests
from tests.conftest import ROOT
from tests.reliability import canaries
from tests.stores import s3

pytestmark = pytest.mark.faults
NAME = "rows"
ROW = np.ones((1, 6), np.float32)


def checkpoint(path: Path, factor: float) -> Path:
    table = np.random.default_rng(1).normal(size=(60, 6))
    joblib.dump(Ridge(alpha=1e-6).fit(table, table @ np.full(6, factor)), path)
    return path


def slow_checkpoint(path: Path) -> Path:
    """So many trees that an answer takes several times as long."""
    random = np.random.default_rng(1)
    table = random.normal(size=(2000, 6))
    forest = RandomForestRegressor(3000, max_leaf_nodes=200, n_jobs=2, random_state=0)
    joblib.dump(forest.fit(table, random.normal(size=2000)), path)
    return path


def served(production: Path) -> int:
    return next(served_manifests(production, NAME)).version


def released(
    source: Path, store: str, production: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [ROOT / "deploy" / "release.sh", NAME, source, store, "--trust-pickle"],
        env={**os.environ, "PATH": programs, "PRODUCTION": str(production), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )


@contextmanager
def asked(grpc: int) -> Iterator[Counter[str]]:
    """What callers get: answers, rounded, and errors."""
    seen: Counter[str] = Counter()
    stop = threading.Event()

    def ask() -> None:
        with GrpcClient(f"127.0.0.1:{grpc}", timeout=60.0) as client:
            while not stop.is_set():
                try:
                    seen[f"{float(client.predict(ROW, model=NAME).ravel()[0]):.0f}"] += 1
                except ClientError as error:
                    seen[f"{type(error).__name__}: {error}"] += 1

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


def test_a_release_from_a_checkpoint_to_all_callers(tmp_path: Path) -> None:
    production = tmp_path / "model_repository"
    production.mkdir()
    environment = {"RATE": "20", "SECONDS_OF_TEST": "16", "TOLERANCE": "1.0"}  # beside others on this machine
    with s3(tmp_path / "weed") as place:
        first = released(checkpoint(tmp_path / "a.pkl", 1.0), place.url, production, **environment)
        assert first.returncode == 0, first.stdout
        assert "the store has no version of rows yet" in first.stdout
        assert served(production) == 1
        with canaries.scene(tmp_path, production) as scene:
            environment |= {"CANARY": str(scene.steering), "SHOAL_STATE": str(scene.server.state)}
            environment |= {"CANARY_OPTIONS": "--share 50% --max 5m --guard errors --guard p50<=2x"}
            with asked(scene.grpc) as seen:
                second = released(checkpoint(tmp_path / "b.pkl", 2.0), place.url, production, **environment)
            assert second.returncode == 0, second.stdout
            assert "against the server beside it" in second.stdout
            assert "promoted: every guard is met" in second.stdout
            assert set(seen) == {"6", "12"}  # and no error
            assert served(production) == 2
            again = released(tmp_path / "b.pkl", place.url, production, **environment)
            assert "it is version 2, which is served already" in again.stdout
            assert again.returncode == 0, again.stdout
            environment |= {"TOLERANCE": "0.2", "SECONDS_OF_TEST": "32"}
            slow = released(slow_checkpoint(tmp_path / "c.pkl"), place.url, production, **environment)
            assert slow.returncode == 1, slow.stdout
            assert "a regression: more than 20% slower" in slow.stdout
            assert served(production) == 2
