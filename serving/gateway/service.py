"""What stands behind every protocol: models, the way to them, keys and quotas."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager

from numpy.typing import NDArray

from serving.gateway.admission import Line, priority_of, room_of
from serving.gateway.bodies import most_tokens
from serving.gateway.cache import HEADER, Cache, Keeps, body_of, key_of, store_of
from serving.gateway.cl100k import Cl100k
from serving.gateway.errors import ApiError, overloaded, unknown_model
from serving.gateway.failover import Failover, with_seed
from serving.gateway.generation import Asked, merged
from serving.gateway.http import Answer, Call, Stopping
from serving.gateway.keys import Key, Keys
from serving.gateway.models import Model
from serving.gateway.observed import Observed
from serving.gateway.origin import check_origin
from serving.gateway.quotas import QuotaExceeded, Quotas, StorageUnavailable, headers
from serving.gateway.replicas import Replicas
from serving.gateway.settings import GatewaySettings
from serving.gateway.tokenizing import Tokenizers
from serving.gateway.triton import Part, generation_inputs
from shoal.dialect import INPUT_TOKENS
from shoal.errors import UsageError

_log = logging.getLogger(__name__)


class Gateway:
    """One gateway, used inside of one event loop.

    Args:
        settings: see there.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.keys = Keys(settings.keys) if settings.keys is not None else None
        if self.keys is not None and self.keys.open:
            raise UsageError(
                f"{settings.keys} holds no key",
                hint=f"make one: shoal keys add NAME --store {settings.keys}",
            )
        self.stopping = Stopping()
        self.observed = Observed(settings)
        self.quotas = Quotas(settings.storage, on_error=settings.on_storage_error)
        self._cl100k = Cl100k.read(settings.cl100k) if settings.cl100k is not None else None
        self._cache = Cache(store_of(settings.cache)) if settings.cache is not None else None
        self._lines: defaultdict[str, Line] = defaultdict(Line)

    async def start(self) -> None:
        """Find out what is served."""
        servers = list(zip(self.settings.triton, self.settings.catalogue, strict=True))
        authority = self.settings.triton_authority
        self.replicas = Replicas(servers, authority.read_bytes() if authority is not None else None)
        self._failover = Failover(self.replicas, self.settings.recovery_seconds)
        self.tokenizers = Tokenizers(self.replicas)
        await self.replicas.start()

    async def close(self) -> None:
        """End what runs."""
        await self.replicas.close()
        if self._cache is not None:
            await self._cache.close()
        await self.observed.close()

    def check_origin(self, headers: Sequence[tuple[bytes, bytes]], *, public: bool) -> None:
        """Refuse what a page of somebody else in a browser may have sent, where no key would stop it.

        Raises:
            ApiError: see `serving.gateway.origin`.
        """
        if self.keys is None:
            check_origin(headers, self.settings.allowed_hosts, public=public)

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
        limit = call.caller.limits.tokens_per_minute
        tokens = most_tokens(call.body) if limit is not None else 0
        if limit is not None and tokens > limit:
            raise ApiError(
                429,
                f"this request may use {tokens} tokens, and the key has {limit} a minute: ask for fewer",
                kind="tokens",
                code="rate_limit_exceeded",
                headers={"x-should-retry": "false"},
            )
        try:
            grant = await self.quotas.take(call.caller, tokens)
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
            model for model in self.replicas.all() if call.caller is None or call.caller.may_call(model.name)
        ]

    def model(self, call: Call, name: object, task: str | None = None) -> Model:
        """A model of a task, or of any, that a caller may use.

        Raises:
            ApiError: there is none of that name for it, or its task is another.
        """
        model = self.replicas.find(name)
        # First, so that a key learns nothing of models that are not for it.
        if call.caller is not None and not call.caller.may_call(model.name):
            raise unknown_model(model.name)
        call.record.served_by(model.name, model.version, model.task)
        if task is not None and model.task != task:
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
        return _only(call, [model for model in self.allowed(call) if model.task == task], f"for {task}")

    def tokenizing(self, call: Call, name: str | None) -> Model:
        """The model whose tokenizer is asked for: the one that is named, or the only one that has any.

        Raises:
            ApiError: there is none, it has no tokenizer, or there are several and none is named.
        """
        if name is None:
            return _only(call, [model for model in self.allowed(call) if model.tokenizer], "with a tokenizer")
        model = self.model(call, name)
        if not model.tokenizer:
            said = f"The model `{model.name}` has no tokenizer"
            raise ApiError(400, said, param="model", code="wrong_task")
        return model

    def token_ids(self, model: Model) -> Cl100k | None:
        """What token ids mean that an embedder is asked for; None: they are refused."""
        return self._cl100k if self.settings.token_ids.get(model.name) == "cl100k" else None

    async def kept(
        self, call: Call, path: str, keeps: Keeps, work: Callable[[], Awaitable[Answer]]
    ) -> Answer:
        """The answer of some work, or that which was given to the same request, where it would be the same.

        Args:
            path: with the names of its parameters.
            keeps: which answers of this endpoint are.
        """
        body = body_of(call, keeps) if self._cache is not None else None
        name = body.get("model") if body is not None else None
        if self._cache is None or body is None or not isinstance(name, str):
            return await work()
        version = self.replicas.version(name)
        if version is None or (call.caller is not None and not call.caller.may_call(name)):
            return await work()
        found = self.replicas.find(name)
        call.record.served_by(found.name, found.version, found.task)
        whose = call.caller.id if call.caller is not None and self.settings.cache_scope == "key" else ""
        key = key_of(version, path.format(**call.path), body, whose)
        answer = await self._cache.answer(
            key, call, work, still=lambda: self.replicas.version(name) == version
        )
        call.record.cache = answer.headers.get(HEADER, "")
        return answer

    async def infer(self, call: Call, model: Model, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """One request of arrays; see `Failover.infer`."""
        async with self._place(call, model, 1):
            arrays = await self._failover.infer(call, model, inputs)
        if INPUT_TOKENS in arrays:
            tokens = int(arrays[INPUT_TOKENS].sum())
            call.meter.add(tokens)
            call.record.input_tokens += tokens
        return arrays

    async def generate(
        self, call: Call, model: Model, asked: Sequence[Asked], *, stream: bool
    ) -> AsyncGenerator[tuple[int, Part], None]:
        """The parts of all answers of a request, numbered through; without `stream` each comes in one."""
        streams = [(one, choice) for one in asked for choice in range(one.choices)]
        record = call.record
        record.stream, record.choices = stream, len(streams)
        async with self._place(call, model, len(streams)):
            answers = [
                self._failover.generate(
                    call,
                    model,
                    generation_inputs(
                        list(model.inputs),
                        sampling=with_seed(one.sampling_of(choice)),
                        stream=stream,
                        **one.inputs,
                    ),
                    f"{call.id}-{index}" if index else call.id,
                )
                for index, (one, choice) in enumerate(streams)
            ]
            async with aclosing(merged(answers)) as parts:
                prompts: set[int] = set()
                async for index, part in parts:
                    if index not in prompts:
                        prompts.add(index)
                        if streams[index][1] == 0:  # a prompt counts once, as in the usage
                            call.meter.add(part.input_tokens)
                            record.prompt(part.input_tokens, part.cached_tokens)
                    call.meter.add(part.tokens)
                    record.part(index, part.text, part.tokens, part.finish_reason)
                    yield index, part

    def _place(self, call: Call, model: Model, count: int) -> AbstractAsyncContextManager[None]:
        """Room for some requests to a model; see `Line.place`."""
        return self._lines[model.name].place(
            count, room_of(model, self.replicas.number(model.name)), priority_of(call), call.deadline
        )


def _only(call: Call, found: Sequence[Model], what: str) -> Model:
    """The one model that was found.

    Raises:
        ApiError: there are none, or several.
    """
    if len(found) != 1:
        names = ", ".join(model.name for model in found)
        said = f"several models are served {what}: name one as model ({names})"
        raise ApiError(400, said if found else f"no model is served {what}", param="model")
    call.record.served_by(found[0].name, found[0].version, found[0].task)
    return found[0]
