"""Several servers behind one gateway: what each serves, which one takes a request, and which can go on.

A server is one Triton with its supervisor, which says what it serves and whether it does. Servers need not
serve the same models, nor the same versions: during a rollout they do not. So a request is bound to a version
when its model is looked up, and goes to a server that has this version.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

from clients.errors import Unavailable
from serving.gateway.balance import Load, pick
from serving.gateway.errors import ApiError, unknown_model
from serving.gateway.models import Model, Models
from serving.gateway.triton import Triton

_LOOK_SECONDS = 0.1  # between two looks whether a server has come back


class Replica:
    """One server. Used inside of one event loop.

    Args:
        address: host:port of its gRPC endpoint.
        catalogue: URL of its supervisor's list.
        authority: see `Triton`.

    Attributes:
        models: what it serves.
        triton: the way to it.
        load: how busy it is, and how it does.
    """

    def __init__(self, address: str, catalogue: str, authority: bytes | None = None) -> None:
        self.load = Load()
        self.models = Models(catalogue, came_back=lambda: self.load.came_back(time.monotonic()))
        self.triton = Triton(address, authority)

    @contextmanager
    def running(self) -> Iterator[None]:
        """One request runs here."""
        self.load.running += 1
        try:
            yield
        finally:
            self.load.running -= 1


class Replicas:
    """All servers behind a gateway. Used inside of one event loop.

    Args:
        servers: the address and the catalogue of each; at least one.
        authority: see `Triton`.
    """

    def __init__(self, servers: Sequence[tuple[str, str]], authority: bytes | None = None) -> None:
        self._replicas = [Replica(*server, authority) for server in servers]
        self._rng = random.Random()  # noqa: S311 - chance, no secret

    async def start(self) -> None:
        """Find out what each serves."""
        await asyncio.gather(*(replica.models.start() for replica in self._replicas))

    async def close(self) -> None:
        """End what runs."""
        for replica in self._replicas:
            await replica.models.close()
            await replica.triton.close()

    @property
    def problem(self) -> str | None:
        """What keeps every server from serving; None: at least one serves."""
        problems = [replica.models.problem for replica in self._replicas]
        return None if None in problems else problems[0]

    def all(self) -> list[Model]:
        """All models that are served, by name; of several versions the newest."""
        found: dict[str, Model] = {}
        for replica in self._replicas:
            for model in replica.models.all():
                if model.name not in found or model.version > found[model.name].version:
                    found[model.name] = model
        return [found[name] for name in sorted(found)]

    def find(self, name: Any) -> Model:
        """A model by its name, in the version that the next request may be bound to.

        Raises:
            ApiError: there is none of that name.
        """
        if not isinstance(name, str) or not name:
            raise ApiError(400, "model must be the name of a model", param="model", code="invalid_value")
        serving = [replica for replica in self._replicas if replica.models.get(name)]
        if not serving:
            raise unknown_model(name)
        model = self._best(serving).models.get(name)
        assert model is not None  # noqa: S101 - `serving` are those that have it
        return model

    def version(self, name: str) -> str | None:
        """What names the version of a model that every server serves which has it: the hash of its files, and
        how often it was another one.

        Between the moment when a server takes up another version and the one when this is told, answers may
        be of either. By the number nobody takes them for those of the same version once it comes back.

        Returns:
            None: servers have several versions, or one whose files are not known.
        """
        having = [(each.models, model) for each in self._replicas if (model := each.models.get(name))]
        hashes = {model.sha256 for _, model in having}
        if len(hashes) != 1 or "" in hashes:
            return None
        return f"{hashes.pop()}/{sum(models.changes[name] for models, _ in having)}"

    def number(self, name: str) -> int:
        """How many servers take requests for a model; at least 1."""
        return max(1, sum(1 for each in self._replicas if each.models.ready and each.models.get(name)))

    def choose(self, model: Model) -> Replica:
        """The server for a new request.

        Raises:
            Unavailable: no server runs that has the model.
        """
        up = [each for each in self._replicas if each.models.get(model.name) and not each.models.down]
        if not up:
            raise Unavailable(f"{model.name}: no server runs that serves it")
        # The version is gone where a server has just taken up another one.
        return self._best([each for each in up if _has(each, model)] or up)

    async def another(
        self, model: Model, failed: Replica, *, since: float, until: float, exact: bool
    ) -> Replica | None:
        """A server for a request that another one has failed, the same one after it has come back included.

        Args:
            model: in the version that is wanted.
            since: when it failed. What its supervisor says counts only if it was asked later.
            until: when to give up. Servers are asked once in any case.
            exact: whether its files must be known to be the same.

        Returns:
            One that was asked just now whether it serves the model; None: there is none.
        """
        if exact and not model.sha256:
            return None
        while True:
            now, ready = time.monotonic(), self._ready(since, failed)
            fit = [each for each in ready if _has(each, model)]
            costs = [(each.load.is_ejected(now), each is failed, each.load.cost(now)) for each in fit]
            for _, replica in sorted(zip(costs, fit, strict=True), key=itemgetter(0)):
                if await replica.triton.serves(model.name):
                    return replica
            # Every server serves, and none has this version any more.
            hopeless = not fit and len(ready) == len(self._replicas)
            if hopeless or time.monotonic() + _LOOK_SECONDS > until:
                return None
            await asyncio.sleep(_LOOK_SECONDS)

    def _ready(self, since: float, failed: Replica) -> list[Replica]:
        return [
            each
            for each in self._replicas
            if each.models.ready and (each is not failed or each.models.asked > since)
        ]

    def _best(self, candidates: list[Replica]) -> Replica:
        """Those that serve before those whose supervisor doubts it, and these before those that failed."""
        if len(candidates) == 1:
            return candidates[0]
        now = time.monotonic()

        def doubts(replica: Replica) -> tuple[bool, bool]:
            return replica.load.is_ejected(now), not replica.models.ready

        least = min(map(doubts, candidates))
        best = [each for each in candidates if doubts(each) == least]
        return pick(best, lambda each: each.load.cost(now), self._rng)


def _has(replica: Replica, model: Model) -> bool:
    found = replica.models.get(model.name)
    return found is not None and found.fingerprint == model.fingerprint
