"""What the server behind the gateway serves, as its supervisor tells it, asked for again every second."""

from __future__ import annotations

import asyncio
import logging
import urllib.error
import urllib.request
from typing import Any

import msgspec

from serving.gateway.errors import ApiError, unknown_model
from shoal.tasks import GENERATION

_log = logging.getLogger(__name__)
ASK_SECONDS = 1.0
_ANSWER_SECONDS = 5.0


class Model(msgspec.Struct, frozen=True):
    """A model, see `serving.catalogue.Entry`; what the gateway does not read is left out."""

    name: str
    task: str = ""
    version: int = 0
    precision: str = ""
    sha256: str = ""
    source: str = ""
    created: int = 0
    max_model_len: int = 0
    max_batch_size: int = 0
    max_num_seqs: int = 0
    max_queue_size: int = 0
    chat_template: str = ""
    tool_format: str = ""
    special_tokens: dict[str, Any] = {}
    control_tokens: dict[str, int] = {}
    prompts: dict[str, str] = {}
    labels: list[str] = []
    inputs: dict[str, dict[str, Any]] = {}
    outputs: dict[str, dict[str, Any]] = {}
    evidence: dict[str, Any] = {}

    @property
    def fingerprint(self) -> str:
        """What OpenAI calls `system_fingerprint`: the version that answers."""
        return f"fp_{self.sha256[:16]}" if self.sha256 else f"{self.name}/{self.version}"


class Catalogue(msgspec.Struct, frozen=True):
    """What a supervisor tells; while its server starts again it is not ready, and lists nothing."""

    models: list[Model]
    ready: bool = True


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

    def find(self, name: Any, *tasks: str) -> Model:
        """A model by its name.

        Args:
            tasks: those that the caller can use; none: any.

        Raises:
            ApiError: there is none of that name, or its task is another.
        """
        if not isinstance(name, str) or not name:
            raise ApiError(400, "model must be the name of a model", param="model", code="invalid_value")
        model = self._models.get(name)
        if model is None:
            raise unknown_model(name)
        if tasks and model.task not in tasks:
            raise ApiError(
                400,
                f"The model `{name}` is for {model.task or 'another task'}, not for {' or '.join(tasks)}",
                param="model",
                code="wrong_task",
            )
        return model

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
            told = msgspec.json.decode(content, type=Catalogue)
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


def is_decoder(model: Model) -> bool:
    """Whether a model generates text from a prompt."""
    return model.task == GENERATION
