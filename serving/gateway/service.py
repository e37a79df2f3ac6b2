"""What stands behind every protocol: models, the way to them, keys and quotas."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager

from numpy.typing import NDArray

from serving.gateway.cl100k import Cl100k
from serving.gateway.errors import ApiError, overloaded, unknown_model
from serving.gateway.generation import Asked, merged
from serving.gateway.http import Call
from serving.gateway.keys import Key, Keys
from serving.gateway.models import Model, Models
from serving.gateway.quotas import QuotaExceeded, Quotas, StorageUnavailable, headers
from serving.gateway.settings import GatewaySettings
from serving.gateway.triton import Part, Triton, generation_inputs
from shoal.dialect import INPUT_TOKENS
from shoal.errors import UsageError

_log = logging.getLogger(__name__)
# Requests to a model that says nothing of its own queue.
MOST_AT_ONCE = 256
# By which the tokens of a request are guessed before they are counted.
BYTES_PER_TOKEN = 4


class Gateway:
    """One gateway, used inside of one event loop.

    Args:
        settings: see there.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.models = Models(settings.catalogue)
        self.keys = Keys(settings.keys) if settings.keys is not None else None
        if self.keys is not None and self.keys.open:
            raise UsageError(
                f"{settings.keys} holds no key", hint="make one: shoal keys add NAME --store FILE"
            )
        self.quotas = Quotas(settings.storage, on_error=settings.on_storage_error)
        self._cl100k = Cl100k.read(settings.cl100k) if settings.cl100k is not None else None
        self._running: Counter[str] = Counter()

    async def start(self) -> None:
        """Find out what is served."""
        self.triton = Triton(self.settings.triton)
        await self.models.start()

    async def close(self) -> None:
        """End what runs."""
        await self.models.close()
        await self.triton.close()

    def caller(self, given: Mapping[str, str]) -> Key | None:
        """Whose request this is; None: no keys are set up, and anybody on this machine may call.

        Raises:
            ApiError: the key is missing or not valid.
        """
        if self.keys is None:
            return None
        scheme, _, secret = given.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            secret = given.get("x-api-key", "")
        key = self.keys.find(secret.strip()) if secret.strip() else None
        if key is None:
            said = "Incorrect API key provided" if secret.strip() else "You did not provide an API key"
            raise ApiError(
                401,
                f"{said}. Send it as Authorization: Bearer KEY.",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return key

    @asynccontextmanager
    async def counted(self, call: Call) -> AsyncIterator[dict[str, str]]:
        """Count a request and its tokens for its key while it runs; gives the headers that tell what is left.

        Raises:
            ApiError: the key has used up a limit, or nobody can tell whether it has.
        """
        if call.caller is None:
            yield {}
            return
        try:
            grant = await self.quotas.take(call.caller, len(call.body) // BYTES_PER_TOKEN)
        except QuotaExceeded as error:
            raise ApiError(
                429,
                f"{error.message}: {error.hint}",
                kind=error.which,
                code="rate_limit_exceeded",
                headers=headers(error),
            ) from None
        except StorageUnavailable as error:
            raise overloaded(error.message) from None
        async with grant:
            try:
                yield headers(grant)
            finally:
                await self.quotas.settle(grant, call.meter.tokens)

    def allowed(self, call: Call) -> list[Model]:
        """The models that a caller may use."""
        return [
            model for model in self.models.all() if call.caller is None or call.caller.may_call(model.name)
        ]

    def model(self, call: Call, name: object, task: str) -> Model:
        """A model of a task that a caller may use.

        Raises:
            ApiError: there is none of that name for it, or its task is another.
        """
        model = self.models.find(name)
        # First, so that a key learns nothing of models that are not for it.
        if call.caller is not None and not call.caller.may_call(model.name):
            raise unknown_model(model.name)
        if model.task != task:
            raise ApiError(
                400,
                f"The model `{model.name}` is for {model.task or 'another task'}, not for {task}",
                param="model",
                code="wrong_task",
            )
        return model

    def only(self, call: Call, name: str | None, task: str) -> Model:
        """The model of a task, where a protocol has no name for it: the one that is named, or the only one.

        Raises:
            ApiError: there is none, or there are several and none is named.
        """
        if name is not None:
            return self.model(call, name, task)
        found = [model for model in self.allowed(call) if model.task == task]
        if len(found) != 1:
            names = ", ".join(model.name for model in found)
            said = f"several models are served for {task}: name one as model ({names})"
            raise ApiError(400, said if found else f"no model is served for {task}", param="model")
        return found[0]

    def token_ids(self, model: Model) -> Cl100k | None:
        """What token ids mean that an embedder is asked for; None: they are refused."""
        return self._cl100k if self.settings.token_ids.get(model.name) == "cl100k" else None

    async def infer(self, call: Call, model: Model, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """One request of arrays; see `Triton.infer`."""
        async with self._place(model, 1):
            arrays = await self.triton.infer(
                model.name, inputs, timeout=call.seconds_left, request_id=call.id
            )
        if INPUT_TOKENS in arrays:
            call.meter.add(int(arrays[INPUT_TOKENS].sum()))
        return arrays

    async def generate(
        self, call: Call, model: Model, asked: Sequence[Asked], *, stream: bool
    ) -> AsyncGenerator[tuple[int, Part], None]:
        """The parts of all answers of a request, numbered through; without `stream` each comes in one."""
        streams = [(one, choice) for one in asked for choice in range(one.choices)]
        async with self._place(model, len(streams)):
            answers = [
                self.triton.generate(
                    model.name,
                    generation_inputs(
                        list(model.inputs), sampling=one.sampling_of(choice), stream=stream, **one.inputs
                    ),
                    timeout=call.seconds_left,
                    request_id=f"{call.id}-{index}" if index else call.id,
                )
                for index, (one, choice) in enumerate(streams)
            ]
            async with aclosing(merged(answers)) as parts:
                prompts: set[int] = set()
                async for index, part in parts:
                    if index not in prompts:
                        prompts.add(index)
                        call.meter.add(part.input_tokens)
                    call.meter.add(part.tokens)
                    yield index, part

    @asynccontextmanager
    async def _place(self, model: Model, count: int) -> AsyncIterator[None]:
        """Room for some requests to a model, so that no more wait than can.

        Raises:
            ApiError: there is none.
        """
        most = (model.max_num_seqs + model.max_queue_size) or MOST_AT_ONCE
        if self._running[model.name] + count > most:
            raise overloaded(f"{self._running[model.name]} requests to {model.name} run or wait")
        self._running[model.name] += count
        try:
            yield
        finally:
            self._running[model.name] -= count
