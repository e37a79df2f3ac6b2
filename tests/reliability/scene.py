"""What the tests of this room begin with: a world whose answers of each version are known."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shoal import repository as store
from shoal import rollouts
from tests.reliability import callers, models
from tests.reliability.callers import Calls
from tests.reliability.kinds import MODELS, Scene
from tests.reliability.world import world


@contextmanager
def scene_of(repository: Path, folder: Path, chance: random.Random) -> Iterator[Scene]:
    """A service of its own; version 2 of each model is served."""
    with pytest.MonkeyPatch.context() as patch, world(repository, folder) as made:
        patch.setenv(rollouts.VARIABLE, str(made.state))
        calls = Calls(made.http, made.grpc, {model: [] for model in MODELS})
        scene = Scene(made, calls, chance, dict.fromkeys(MODELS, 2))
        for version in models.VERSIONS:
            for model in MODELS:
                assert scene.ask(model, version)
            for model in MODELS:
                wait_until_served(scene, model, version)
                calls.known[model].append(callers.answers_of(calls, model))
        scene.said.clear()
        yield scene


def wait_until_served(scene: Scene, model: str, version: int, seconds: float = 60.0) -> None:
    """As `shoal promote --wait` does; see `shoal.rollouts.wait_until_served`."""
    configs = store.version_of(scene.world.repository, model, version).configs
    rollouts.wait_until_served(scene.world.repository, configs, seconds)
