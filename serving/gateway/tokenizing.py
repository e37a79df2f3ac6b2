"""The tokenizers of the models that are served, read from their supervisors when they are first asked for."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict

from tokenizers import Tokenizer

from clients.errors import Unavailable
from serving.gateway.models import Model
from serving.gateway.replicas import Replicas

_log = logging.getLogger(__name__)
MOST_KEPT = 8  # one of the largest vocabularies takes some 200 MB


class Tokenizers:
    """Tokenizers by model and version; those that were not asked for the longest go first.

    Args:
        replicas: the servers, each with its supervisor.
    """

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self._kept: OrderedDict[tuple[str, str], asyncio.Task[Tokenizer]] = OrderedDict()

    async def of(self, model: Model) -> Tokenizer:
        """The tokenizer of a model in this version. It neither truncates nor pads, and must not be changed.

        Raises:
            Unavailable: nobody has it just now.
        """
        key = (model.name, model.tag)
        task = self._kept.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._kept[key] = asyncio.create_task(self._load(model))
        self._kept.move_to_end(key)
        if len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        # Others may wait for the same one when a caller leaves.
        return await asyncio.shield(task)

    async def _load(self, model: Model) -> Tokenizer:
        content = await self._replicas.choose(model).models.tokenizer(model)
        try:
            return await asyncio.to_thread(_read, content)
        except Exception as error:  # `tokenizers` raises no class of its own
            _log.warning("the tokenizer of %s cannot be read: %s", model.name, error)
            raise Unavailable(f"{model.name}: its tokenizer.json cannot be read") from error


def _read(content: bytes) -> Tokenizer:
    tokenizer = Tokenizer.from_buffer(content)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
