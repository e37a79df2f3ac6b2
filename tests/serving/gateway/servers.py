"""Servers that nobody runs, for tests of what a gateway does with several."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from serving.gateway.models import Model, Told
from serving.gateway.replicas import Replica, Replicas
from serving.gateway.triton import Part

Script = Sequence[Part | Exception]


def model(name: str = "m", sha256: str = "aa", version: int = 1) -> Model:
    return Model(name=name, sha256=sha256, version=version)


def tell(replica: Replica, *models: Model, ready: bool = True, asked: float | None = None) -> None:
    """What its supervisor says."""
    replica.models.take(Told(list(models), ready), time.monotonic() if asked is None else asked)


class Servers(Replicas):
    """Three servers.

    Attributes:
        each: the three.
        reachable: those that answer a probe; at first all.
        scripts: what each answers to its next requests, of a decoder or of another model.
        asked: the servers that were sent a request, in this order, by their numbers.
    """

    def __init__(self) -> None:
        super().__init__([(f"127.0.0.1:{port}", f"http://127.0.0.1:{port}/catalogue") for port in (1, 2, 3)])
        self._rng = random.Random(0)
        self.each = self._replicas
        self.reachable = list(self.each)
        self.scripts: list[list[Script]] = [[], [], []]
        self.asked: list[int] = []
        for number, replica in enumerate(self.each):
            self._replace(number, replica)

    def _replace(self, number: int, replica: Replica) -> None:
        async def serves(name: str) -> bool:
            return replica in self.reachable

        async def generate(name: str, inputs: Any, **more: Any) -> AsyncGenerator[Part, None]:
            self.asked.append(number)
            for item in self.scripts[number].pop(0):
                if isinstance(item, Exception):
                    raise item
                yield item

        async def infer(name: str, inputs: Any, **more: Any) -> Any:
            self.asked.append(number)
            for item in self.scripts[number].pop(0):
                if isinstance(item, Exception):
                    raise item
            return {}

        for name, made in {"serves": serves, "generate": generate, "infer": infer}.items():
            setattr(replica.triton, name, made)

    def chosen(self, of: Model, times: int = 60) -> set[int]:
        """The numbers of those that are chosen for a model."""
        return {self.each.index(self.choose(of)) for _ in range(times)}
