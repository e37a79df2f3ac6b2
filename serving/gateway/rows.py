"""Requests of many rows: split into batches, sent together, and their tokens counted."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from clients.answers import Call as Rows
from serving.gateway.errors import bad_request
from serving.gateway.http import Call
from serving.gateway.models import Model
from serving.gateway.service import Gateway
from shoal.dialect import INPUT_TOKENS

T = TypeVar("T")
BATCH = 32


def batch_size(model: Model) -> int:
    """Rows of one request to Triton."""
    return min(BATCH, model.max_batch_size or BATCH)


async def ask(gateway: Gateway, call: Call, model: Model, parts: Sequence[Rows[T]]) -> tuple[list[T], int]:
    """The values of all rows, in order, and the number of tokens, where the model counts them."""
    found = await gathered([gateway.infer(call, model, part.inputs) for part in parts])
    values = [value for part, arrays in zip(parts, found, strict=True) for value in part.read(arrays)]
    return values, tokens_in(found)


async def gathered(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What some coroutines give, in order; the first failure ends all."""
    if len(work) == 1:  # the usual case needs no task of its own
        return [await work[0]]
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def tokens_in(found: Sequence[Mapping[str, NDArray]]) -> int:
    """The tokens of some responses. A version that was exported earlier does not count them."""
    return sum(int(arrays[INPUT_TOKENS].sum()) for arrays in found if INPUT_TOKENS in arrays)


def column(texts: Sequence[str]) -> NDArray:
    """Texts as Triton takes them, one a row: [texts, 1].

    Raises:
        ApiError: one cannot be written as UTF-8.
    """
    try:
        return np.array([[text.encode()] for text in texts], dtype=object)
    except UnicodeEncodeError:
        raise bad_request("a text holds half of a surrogate pair", "input") from None
