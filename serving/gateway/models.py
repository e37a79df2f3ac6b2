"""What a server behind the gateway serves, as its supervisor tells it, asked for again every second."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from http.client import HTTPException
from urllib.parse import quote

import msgspec

from clients.errors import Unavailable
from serving.catalogue import Entry

_log = logging.getLogger(__name__)
ASK_SECONDS = 1.0
_ANSWER_SECONDS = 5.0


class Model(Entry, frozen=True, kw_only=True):
    """A model as its supervisor describes it."""

    @property
    def fingerprint(self) -> str:
        """What OpenAI calls `system_fingerprint`: the version that answers."""
        return f"fp_{self.sha256}" if self.sha256 else f"{self.name}/{self.version}"


class Told(msgspec.Struct, frozen=True):
    """What is read of `serving.catalogue.Catalogue`."""

    models: list[Model]
    ready: bool


class Models:
    """What one server serves now.

    Args:
        url: of its supervisor's catalogue.
        came_back: is called when it serves again, after it did not.

    Attributes:
        problem: what keeps it from serving, in words; None: nothing.
        down: whether no server runs, as its supervisor says. Where that does not answer, nobody knows.
        changes: how often the version of each model has changed.
        asked: when the last question was asked that was answered, on the clock of `time.monotonic`.
    """

    def __init__(self, url: str, came_back: Callable[[], None] = lambda: None) -> None:
        self._url, self._came_back = url, came_back
        self._models: dict[str, Model] = {}
        self._task: asyncio.Task[None] | None = None
        self.problem: str | None = "the list of models has not been read yet"
        self.down = False
        self.changes: Counter[str] = Counter()
        self.asked = -math.inf

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        return self.problem is None

    def all(self) -> list[Model]:
        """All models, also while the server does not serve: it may only be starting again."""
        return list(self._models.values())

    def get(self, name: str) -> Model | None:
        """A model by its name; None: there is none."""
        return self._models.get(name)

    async def tokenizer(self, model: Model) -> bytes:
        """`tokenizer.json` of a model in this version.

        Raises:
            Unavailable: the supervisor does not give it, or that of another version.
        """
        url = f"{self._url}/{quote(model.name, safe='')}/tokenizer"
        try:
            content, tag = await asyncio.to_thread(_fetch, url)
        except (OSError, ValueError, HTTPException) as error:
            _log.warning("%s: %s", url, error)
            raise Unavailable(f"{model.name}: its tokenizer cannot be had") from error
        if tag != f'"{model.tag}"':
            raise Unavailable(f"{model.name}: another version has just taken the place of this one")
        return content

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
        asked = time.monotonic()
        try:
            content, _ = await asyncio.to_thread(_fetch, self._url)
            told = msgspec.json.decode(content, type=Told)
        except (OSError, ValueError, HTTPException, msgspec.MsgspecError) as error:
            problem = f"{self._url} does not list models: {getattr(error, 'reason', error)}"
            if problem != self.problem:
                _log.warning(problem)
            self.problem = problem
            return
        self.take(told, asked)

    def take(self, told: Told, asked: float) -> None:
        """Take up what a supervisor has answered to a question of some time."""
        was_known, was_ready, self.asked = self.asked > -math.inf, self.ready, asked
        self.problem = None if told.ready else "the model server does not serve"
        self.down = not told.ready and not told.models
        if not self.down:
            self.changes.update(
                model.name
                for model in told.models
                if (before := self.get(model.name)) and before.fingerprint != model.fingerprint
            )
            self._models = {model.name: model for model in told.models}
        if was_known and self.ready and not was_ready:
            self._came_back()


def _fetch(url: str) -> tuple[bytes, str]:
    """The content of a page, and its tag."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=_ANSWER_SECONDS) as response:
        return bytes(response.read()), response.headers.get("ETag", "")
