"""What users call, whatever transport is below it: every method and its documentation once.

`clients.blocking` is made from this file by `make clients`, and only this one is edited.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from clients import answers
from clients.answers import Call, Entity, Found, Generated, Label, ZeroShotLabel
from clients.errors import BadInput, ClientError, ServerFault, Timeout
from clients.generation import Answer, Part, conversation_arrays, flags_of, joined, request_arrays
from clients.vocabulary import (
    BATCH_SIZE,
    TABLE_BATCH_SIZE,
    Arrays,
    Table,
    batches,
    check_prompts,
    check_word,
    embedding_of,
    prompted,
    seconds,
)
from shoal.chat import ChatTemplate, Message
from shoal.dialect import MESSAGES

Client = TypeVar("Client", bound="AsyncClient")
T = TypeVar("T")


class AsyncClient(ABC):
    """The vocabulary of all clients, on top of what a transport does. A `with` block closes the connection.

    Attributes:
        timeout: deadline of each call in seconds, where the call does not say another.
        closed: whether `close` was called.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = seconds(timeout)
        self.closed = False
        self._templates: dict[str, ChatTemplate] = {}
        self._known: dict[str, frozenset[str]] = {}
        self._kinds: dict[str, dict[str, str]] = {}

    # What a transport does. Arguments have been checked.

    @abstractmethod
    async def _infer(
        self, model: str, inputs: Arrays, version: str, timeout: float, request_id: str
    ) -> dict[str, NDArray]: ...

    @abstractmethod
    def _stream(
        self, model: str, inputs: Arrays, timeout: float, request_id: str
    ) -> AsyncGenerator[Part, None]:
        """The parts of an answer as they come; a closed iterator cancels the request on the server."""

    @abstractmethod
    async def _ready(self, model: str) -> bool: ...

    @abstractmethod
    async def _metadata(self, model: str) -> dict[str, Any]: ...

    @abstractmethod
    async def _config(self, model: str) -> dict[str, Any]: ...

    @abstractmethod
    async def _close(self) -> None: ...

    async def infer(
        self,
        model: str,
        inputs: Arrays,
        *,
        version: str = "",
        timeout: float | None = None,
        request_id: str = "",
    ) -> dict[str, NDArray]:
        """One request. Arrays by input name in, arrays by output name out.

        Args:
            version: of the model; "": the one the server serves by default.
            timeout: deadline in seconds, instead of the client's.
            request_id: returned and logged by the server.

        Raises:
            BadInput: an argument cannot be sent.
            ClientError: see `clients.errors`.
        """
        self._check(model, version=version, request_id=request_id)
        return await self._infer(model, inputs, version, self._deadline(timeout), request_id)

    async def ready(self, model: str = "") -> bool:
        """Whether the server, or one model, says it is ready; False too where nobody answers."""
        self._check_open()
        check_word("model", model, empty=True)
        try:
            return await self._ready(model)
        except ClientError:
            return False

    async def metadata(self, model: str) -> dict[str, Any]:
        """Name, versions, inputs and outputs of a model.

        Raises:
            ClientError: see `clients.errors`.
        """
        self._check(model)
        return await self._metadata(model)

    async def config(self, model: str) -> dict[str, Any]:
        """A model's config, as Triton keeps it; a closed endpoint, which the admin key opens.

        Raises:
            ClientError: see `clients.errors`.
        """
        self._check(model)
        return await self._config(model)

    async def close(self) -> None:
        """Close the connection. What is called afterwards, or read of a stream, is a `ClientError`."""
        self.closed = True
        await self._close()

    def _check(self, model: str, *, version: str = "", request_id: str = "") -> None:
        self._check_open()
        check_word("model", model)
        check_word("version", version, empty=True)
        check_word("request_id", request_id, empty=True)

    def _check_open(self) -> None:
        if self.closed:
            raise ClientError("the client is closed", hint="make another one")

    def _deadline(self, timeout: float | None) -> float:
        return self.timeout if timeout is None else seconds(timeout)

    def generate(
        self,
        prompt: str,
        *,
        model: str = "smollm2",
        timeout: float | None = None,
        request_id: str = "",
        **sampling: Any,
    ) -> AsyncGenerator[Part, None]:
        """Text as it is generated. An iterator that is closed or dropped cancels the request on the server.

        Args:
            timeout: deadline of the whole answer in seconds, instead of the client's; the time that its
                reader takes counts.
            request_id: returned and logged by the server.
            sampling: vLLM's sampling parameters, e.g. `max_tokens=64, temperature=0, stop=["\\n"]`,
                `max_tokens=None` for all that the context holds, `logit_bias={5: -100}`,
                `structured_outputs={"choice": ["yes", "no"]}`; docs/generation.md has them all.

        Raises:
            BadInput: at once, where an argument cannot be sent.
            ClientError: as the parts come; see `clients.errors`.
        """
        self._check(model, request_id=request_id)
        inputs = request_arrays(prompt, sampling)
        return self._parts(model, inputs, self._deadline(timeout), request_id)

    async def _parts(
        self, model: str, inputs: Arrays, timeout: float, request_id: str
    ) -> AsyncGenerator[Part, None]:
        arrays = {**inputs, **flags_of(await self._names(model))}
        end = time.monotonic() + timeout
        try:
            async with aclosing(self._stream(model, arrays, timeout, request_id)) as parts:
                async for part in parts:
                    self._check_open()
                    if time.monotonic() > end:
                        raise Timeout("no answer before the deadline")
                    yield part
        except ServerFault as error:  # gRPC may have words of its own for a deadline
            if time.monotonic() < end:
                raise
            raise Timeout("no answer before the deadline") from error

    async def _names(self, model: str) -> frozenset[str]:
        """The names of a model's inputs, asked for once."""
        if model not in self._known:
            metadata = await self.metadata(model)
            self._known[model] = frozenset(entry["name"] for entry in metadata["inputs"])
        return self._known[model]

    async def complete(self, prompt: str, **options: Any) -> Answer:
        """The whole answer to a prompt; options are those of `generate`."""
        return joined([part async for part in self.generate(prompt, **options)])

    def chat(
        self,
        messages: Sequence[Message],
        *,
        model: str = "smollm2",
        timeout: float | None = None,
        request_id: str = "",
        **sampling: Any,
    ) -> AsyncGenerator[Part, None]:
        """The assistant's next message, with the model's own chat template; see `generate`.

        The server renders the template. Where a model cannot, this client does, which needs the admin key of
        a server that has one.

        Args:
            messages: each with `role` (system, user or assistant) and `content`.
        """
        self._check(model, request_id=request_id)
        request_arrays("checked at once", sampling)
        return self._chat(messages, model, self._deadline(timeout), request_id, sampling)

    async def _chat(
        self,
        messages: Sequence[Message],
        model: str,
        timeout: float,
        request_id: str,
        sampling: Mapping[str, Any],
    ) -> AsyncGenerator[Part, None]:
        if MESSAGES in await self._names(model):
            inputs = conversation_arrays(messages, sampling)
        else:  # of another maker, or exported by an earlier Shoal
            if model not in self._templates:
                self._templates[model] = ChatTemplate.of(await self.config(model))
            inputs = request_arrays(self._templates[model].render(messages), sampling)
        async with aclosing(self._parts(model, inputs, timeout, request_id)) as parts:
            async for part in parts:
                yield part

    async def embed(
        self,
        texts: Sequence[str],
        *,
        model: str = "minilm",
        timeout: float | None = None,
        batch_size: int = BATCH_SIZE,
        prompt: str | None = None,
    ) -> NDArray[np.float32]:
        """Text to vectors, float32 [texts, width], any number of texts, `batch_size` a request.

        Args:
            timeout: deadline in seconds of each request, instead of the client's.
            prompt: what the texts are for, e.g. `query`, of a model that tells its texts apart by how they
                begin; sentence-transformers' `prompt_name`. None: as the model itself has it.

        Raises:
            ClientError: see `clients.errors`.
        """
        if prompt is not None:
            check_prompts(await self.metadata(model), model)
        calls = (
            Call(prompted(batch, prompt), lambda arrays: [embedding_of(arrays, model)])
            for batch in batches(texts, batch_size)
        )
        return np.concatenate(await self._ask(model, calls, timeout))

    async def classify(
        self,
        texts: Sequence[str | tuple[str, str]],
        *,
        model: str,
        timeout: float | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> list[list[Label]]:
        """Labels of each text, or of each pair of texts, the likeliest first.

        Args:
            timeout: deadline in seconds of each request, instead of the client's.
            batch_size: rows a request.

        Raises:
            ClientError: see `clients.errors`.
        """
        return await self._ask(model, answers.classify(texts, batch_size), timeout)

    async def classify_images(
        self,
        files: Sequence[bytes],
        *,
        model: str,
        timeout: float | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> list[list[Label]]:
        """Labels of each picture, given as the content of its PNG or JPEG file; see `classify`."""
        return await self._ask(model, answers.images(files, batch_size), timeout)

    async def fill_mask(
        self,
        texts: Sequence[str],
        *,
        model: str,
        timeout: float | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> list[list[Label]]:
        """The tokens that may stand for the one mask of each text; see `classify`."""
        return await self._ask(model, answers.classify(texts, batch_size), timeout)

    async def entities(
        self,
        texts: Sequence[str],
        *,
        model: str,
        timeout: float | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> list[list[Entity]]:
        """The entities of each text, with their places; see `classify`."""
        return await self._ask(model, answers.entities(texts, batch_size), timeout)

    async def answer(self, question: str, context: str, *, model: str, timeout: float | None = None) -> Found:
        """What answers a question in a context, with its place."""
        return (await self._ask(model, [answers.answer(question, context)], timeout))[0]

    async def zero_shot(
        self,
        texts: Sequence[str],
        candidates: Sequence[str],
        *,
        model: str,
        timeout: float | None = None,
        batch_size: int = 8,
    ) -> list[list[ZeroShotLabel]]:
        """Candidate labels of each text, the likeliest first; see `classify`."""
        return await self._ask(model, answers.zero_shot(texts, candidates, batch_size), timeout)

    async def rank(
        self,
        query: str,
        texts: Sequence[str],
        *,
        model: str,
        timeout: float | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> list[float]:
        """How well each text answers a query, in their order; see `classify`."""
        return await self._ask(model, answers.rank(query, texts, batch_size), timeout)

    async def classify_rows(
        self,
        table: Table,
        *,
        model: str,
        timeout: float | None = None,
        batch_size: int = TABLE_BATCH_SIZE,
    ) -> list[list[Label]]:
        """Labels of each row of a table, the likeliest first; see `classify`.

        Args:
            table: columns by name, of numbers or of text, None where a value is missing, or a data frame;
                or a matrix [rows, features] for a model whose features have no names: `clients.tables`.
        """
        async with self._inputs_of(model) as kinds:
            return await self._ask(model, answers.classify_rows(table, kinds, batch_size), timeout)

    async def predict(
        self,
        table: Table,
        *,
        model: str,
        timeout: float | None = None,
        batch_size: int = TABLE_BATCH_SIZE,
    ) -> NDArray[np.float32]:
        """What a regression says of each row of a table, float32 [rows, outputs]; see `classify_rows`."""
        async with self._inputs_of(model) as kinds:
            rows = await self._ask(model, answers.predict(table, kinds, batch_size), timeout)
        return np.stack(rows)

    async def text_to_text(
        self,
        texts: Sequence[str],
        *,
        model: str,
        max_new_tokens: int | None = None,
        timeout: float | None = None,
        batch_size: int = 8,
    ) -> list[Generated]:
        """What an encoder-decoder (a translation, a summary, ...) makes of each text; see `classify`.

        Args:
            max_new_tokens: longest answer, where it should be shorter than the model's own.
        """
        return await self._ask(model, answers.text_to_text(texts, max_new_tokens, batch_size), timeout)

    @asynccontextmanager
    async def _inputs_of(self, model: str) -> AsyncIterator[dict[str, str]]:
        """A model's inputs with their datatypes, asked once; and anew after it refused something, since
        another version of it may read others."""
        self._check(model)
        if model not in self._kinds:
            self._kinds[model] = answers.kinds_of(await self.metadata(model))
        try:
            yield self._kinds[model]
        except BadInput:
            self._kinds.pop(model, None)
            raise

    async def _ask(self, model: str, calls: Iterable[Call[T]], timeout: float | None) -> list[T]:
        """Send the requests one after another, and join what they give, in order."""
        found: list[T] = []
        for call in calls:
            found += call.read(await self.infer(model, call.inputs, timeout=timeout))
        return found

    async def __aenter__(self: Client) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
