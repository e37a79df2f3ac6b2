"""People who ask for versions while all else goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shoal import repository as store
from shoal import rollouts
from shoal.errors import ShoalError
from tests.reliability.models import MODELS, VERSIONS
from tests.reliability.scene import Scene


@contextmanager
def promoted(scene: Scene) -> Iterator[None]:
    """Sometimes they wait for it: what is then said to be served must be."""
    model = scene.chance.choice(MODELS)
    version = scene.chance.choice(VERSIONS)
    if scene.ask(model, version) and scene.chance.random() < 0.3:
        configs = store.version_of(scene.world.repository, model, version).configs
        try:
            rollouts.wait_until_served(scene.world.repository, configs, 20)
            said = "wait: served"
        except ShoalError as error:
            said = f"wait: {type(error).__name__}"
        scene.said[said] = scene.said.get(said, 0) + 1
    yield


@contextmanager
def rolled_back(scene: Scene) -> Iterator[None]:
    model = scene.chance.choice(MODELS)
    try:
        scene.asked[model] = store.rollback(scene.world.repository, model).version
        said = "rollback: asked for"
    except ShoalError as error:
        said = f"rollback: {type(error).__name__}"
    scene.said[said] = scene.said.get(said, 0) + 1
    yield
