"""What the tests of this package begin with: a world whose answers of each version are known."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shoal import repository as store
from shoal import rollouts
from shoal.errors import ShoalError
from shoal.manifest import manifests
from tests.reliability import callers, models
from tests.reliability.callers import Calls
from tests.reliability.models import MODELS, VERSIONS
from tests.reliability.world import World, world

_HOLD = (0.2, 1.2)  # seconds


@dataclass
class Scene:
    """What a fault is given.

    Attributes:
        chance: where it draws from.
        asked: model -> the version that its user asked for last.
        said: what commands answered, counted.
    """

    world: World
    calls: Calls
    chance: random.Random
    asked: dict[str, int]
    said: dict[str, int] = field(default_factory=dict)

    def hold(self, seconds: tuple[float, float] = _HOLD) -> None:
        """Let it last for a while."""
        time.sleep(self.chance.uniform(*seconds))

    def network(self, model: str) -> str:
        """The folder whose versions are those of a model."""
        return next(m.network for m in manifests(self.world.repository) if m.model == model)

    def network_file(self, model: str, version: int) -> Path:
        """The weights of a version."""
        return self.world.repository / self.network(model) / str(version) / "model.onnx"

    def ask(self, model: str, version: int) -> bool:
        """Ask for a version as `shoal promote` does; whether the command said that it is asked for."""
        try:
            store.promote(self.world.repository, model, version)
        except (ShoalError, OSError) as error:
            name = type(error).__name__
            self.said[f"promote: {name}"] = self.said.get(f"promote: {name}", 0) + 1
            return False
        self.asked[model] = version
        self.said["promote: asked for"] = self.said.get("promote: asked for", 0) + 1
        return True

    def other(self, model: str) -> int:
        """A version that was not asked for."""
        return next(version for version in VERSIONS if version != self.asked[model])


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
