"""What the server behind the gateway serves, as its supervisor tells it, asked for again every second."""

from __future__ import annotations

import asyncio
import logging
import urllib.error
import urllib.request
from typing import Any

import msgspec

from serving.catalogue import Entry
from serving.gateway.errors import ApiError, unknown_model

_log = logging.getLogger(__name__)
ASK_SECONDS = 1.0
_ANSWER_SECONDS = 5.0


class Model(Entry, frozen=True, kw_only=True):
    """A model as its supervisor describes it."""

    @property
    def fingerprint(self) -> str:
        """What OpenAI calls `system_fingerprint`: the version that answers."""
        return f"fp_{self.sha256}" if self.sha256 else f"{self.name}/{self.version}"


class _Told(msgspec.Struct, frozen=True):
    """What is read of `serving.catalogue.Catalogue`."""

    models: list[Model]
    ready: bool


class Models:
    """The models that are served now.

    Args:
        url: of the supervisor's catalogue.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._models: dict[str, Model] = {}
        self._task: asyncio.Task[None] | None = None
        self.problem: str | None = "the list of models has not been read yet"

    def all(self) -> list[Model]:
        """All, by name."""
        return sorted(self._models.values(), key=lambda model: model.name)

    def find(self, name: Any) -> Model:
        """A model by its name.

        Raises:
            ApiError: there is none of that name.
        """
        if not isinstance(name, str) or not name:
            raise ApiError(400, "model must be the name of a model", param="model", code="invalid_value")
        if name not in self._models:
            raise unknown_model(name)
        return self._models[name]

    async def start(self) -> None:
        """Read the list once, then again and again."""
        await self._read()
        self._task = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Read no more."""
        if self._task is not None:
            self._task.cancel()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(ASK_SECONDS)
            await self._read()

    async def _read(self) -> None:
        """Models that are known stay while the supervisor does not answer: it may only be starting again."""
        try:
            content = await asyncio.to_thread(_fetch, self._url)
            told = msgspec.json.decode(content, type=_Told)
        except (OSError, ValueError, urllib.error.URLError) as error:
            problem = f"{self._url} does not list models: {getattr(error, 'reason', error)}"
            if problem != self.problem:
                _log.warning(problem)
            self.problem = problem
            return
        self.problem = None if told.ready else "the model server does not serve"
        if not told.ready and not told.models:
            return
        self._models = {model.name: model for model in told.models}


def _fetch(url: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=_ANSWER_SECONDS) as response:
        return bytes(response.read())
