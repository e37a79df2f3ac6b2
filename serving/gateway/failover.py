"""Requests that outlive the server they were sent to.

A request that fails because its server has gone is sent to another server, or to the same one once it serves
again. It is sent a second time and no third: a request which brings servers down brings down two at most.

An answer that has begun is generated again from its beginning, in the same version (by the hash of its
files), from the same inputs and with the same seed. What its caller has is compared with what comes, by
character, and left out. An answer that would go on in another way is ended with an error, `stream_lost`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import msgspec
from numpy.typing import NDArray

from clients.errors import ClientError, Timeout, Unavailable
from serving.gateway.errors import stream_lost
from serving.gateway.http import Call
from serving.gateway.models import Model
from serving.gateway.replicas import Replica, Replicas
from serving.gateway.triton import Part

# Log probabilities may differ in their last digits where other requests ran beside this one.
_SAME_LOGPROB = 1e-3
# A server that does not answer a request of less time does not count as failing: it may have been too short.
_PATIENCE_SECONDS = 10.0
_SEED_BITS = 53


def with_seed(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling parameters by which an answer can be generated again: a seed is drawn where none is given."""
    given = sampling.get("seed")
    return {**sampling, "seed": secrets.randbits(_SEED_BITS) if given in (None, -1) else given}


class Differs(Exception):
    """An answer that was generated again is another one; the argument says where."""


class _Logprob(msgspec.Struct, frozen=True):
    logprob: float | None = None


_Position = tuple[str, float | None]  # the token that was chosen
_POSITIONS = msgspec.json.Decoder(list[dict[str, _Logprob]] | None)
_ENTRIES = msgspec.json.Decoder(list[msgspec.Raw] | None)


class Replay:
    """One answer, which may be generated more than once, and of which everything is handed on once.

    Parts of two runs are divided in other ways, so each of text, number of tokens and log probabilities is
    followed by itself.

    Attributes:
        begun: whether something was handed on.
        finished: whether the last part was.
        behind: whether something of it has not come again in the present run.
    """

    def __init__(self) -> None:
        self.begun = self.finished = self.behind = False
        self._input_tokens = self._cached_tokens = 0
        self._pieces: list[str] = []
        self._text = ""  # of all pieces, while a run is behind
        self._tokens = 0
        self._positions: list[_Position] = []
        self._at = (0, 0, 0)  # what has come in a run that is behind: characters, tokens, log probabilities

    def restart(self) -> None:
        """The answer is generated again from its beginning."""
        self._text = "".join(self._pieces)
        self._pieces = [self._text]
        self._at = (0, 0, 0)
        self.behind = self.begun

    def add(self, part: Part) -> Part | None:
        """What is new in a part of the present run; None: nothing.

        Raises:
            Differs: it is not what was handed on before.
        """
        new = self._new(part) if self.behind else part
        if new is None:
            return None
        if not self.begun:
            self._input_tokens, self._cached_tokens = part.input_tokens, part.cached_tokens
        self._pieces.append(new.text)
        self._tokens += new.tokens
        self._positions += _positions(new.logprobs)
        self.begun, self.finished = True, bool(new.finish_reason)
        return new

    def _new(self, part: Part) -> Part | None:
        if part.input_tokens and self._input_tokens and part.input_tokens != self._input_tokens:
            raise Differs(f"the prompt has {part.input_tokens} tokens instead of {self._input_tokens}")
        texts, tokens, positions = self._at
        same = min(len(part.text), len(self._text) - texts)
        if not self._text.startswith(part.text[:same], texts):
            raise Differs(f"the text differs after {texts} characters")
        known = min(part.tokens, self._tokens - tokens)
        given = _positions(part.logprobs)
        again = min(len(given), len(self._positions) - positions)
        for place, position in enumerate(given[:again], positions):
            if not _same(position, self._positions[place]):
                raise Differs(f"the log probability of token {place} differs")
        self._at = texts + len(part.text), tokens + part.tokens, positions + len(given)
        had = len(self._text), self._tokens, len(self._positions)
        self.behind = any(at < before for at, before in zip(self._at, had, strict=True))
        self._text += part.text[same:]
        if part.finish_reason and self.behind:
            raise Differs("the answer ends earlier")
        new = replace(
            part,
            text=part.text[same:],
            tokens=part.tokens - known,
            input_tokens=self._input_tokens,
            cached_tokens=self._cached_tokens,
            logprobs=_after(part.logprobs, again),
            prompt_logprobs="",
        )
        return new if new.text or new.tokens or new.logprobs or new.finish_reason else None


def _positions(logprobs: str) -> list[_Position]:
    found = _POSITIONS.decode(logprobs) if logprobs else None
    return [(token, entry.logprob) for position in found or () for token, entry in [*position.items()][:1]]


def _same(one: _Position, other: _Position) -> bool:
    if None in (one[1], other[1]):
        return one == other
    return one[0] == other[0] and abs((one[1] or 0.0) - (other[1] or 0.0)) <= _SAME_LOGPROB


def _after(logprobs: str, known: int) -> str:
    """The log probabilities without those of the first tokens."""
    if not known:
        return logprobs
    left = (_ENTRIES.decode(logprobs) or [])[known:]
    return msgspec.json.encode(left).decode() if left else ""


class Failover:
    """The way to the servers.

    Args:
        replicas: the servers.
        recovery_seconds: how long a request waits for a server, after its own has gone.
    """

    def __init__(self, replicas: Replicas, recovery_seconds: float) -> None:
        self._replicas, self._recovery_seconds = replicas, recovery_seconds

    async def infer(self, call: Call, model: Model, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """One request of arrays; see `Triton.infer`.

        Raises:
            ClientError: see `clients.errors`.
        """
        replica = self._replicas.choose(model)
        waits = self._wait_of(replica)
        try:
            return await self._infer(replica, call, model, inputs)
        except Unavailable:
            other = await self._another(call, model, replica, waits, exact=False)
            if other is None:
                raise
        return await self._infer(other, call, model, inputs)

    async def _infer(
        self, replica: Replica, call: Call, model: Model, inputs: Mapping[str, NDArray]
    ) -> dict[str, NDArray]:
        timeout = call.seconds_left
        with replica.running():
            try:
                arrays = await replica.triton.infer(
                    model.name,
                    inputs,
                    timeout=timeout,
                    request_id=call.id,
                    traceparent=call.record.traceparent,
                )
            except ClientError as error:
                _note(replica, error, timeout)
                raise
        replica.load.answered(time.monotonic())
        return arrays

    async def generate(
        self, call: Call, model: Model, inputs: Mapping[str, NDArray], request_id: str
    ) -> AsyncGenerator[Part, None]:
        """The parts of an answer; see `Triton.generate`. It must have a seed, see `with_seed`.

        Raises:
            ClientError: see `clients.errors`.
            ApiError: the answer had begun, and cannot be brought to its end.
        """
        replay = Replay()
        replica = self._replicas.choose(model)
        waits = self._wait_of(replica)
        try:
            async with aclosing(self._run(replica, call, model, inputs, request_id, replay)) as parts:
                async for part in parts:
                    yield part
            return
        except Unavailable:
            if replay.finished:
                return
            other = await self._another(call, model, replica, waits, exact=replay.begun)
            if other is None and not replay.begun:
                raise
        if other is None:
            raise stream_lost("no server has the version that had begun")
        begun = replay.begun
        replay.restart()
        try:
            async with aclosing(self._run(other, call, model, inputs, request_id, replay)) as parts:
                async for part in parts:
                    yield part
            if replay.behind:
                raise Differs("the answer ends earlier")
        except Differs as error:
            raise stream_lost(f"another server answered otherwise: {error}") from error
        except Timeout:
            raise
        except ClientError as error:
            if replay.finished:
                return
            if not begun and not replay.begun:
                raise
            raise stream_lost("another server failed as well") from error

    async def _run(
        self,
        replica: Replica,
        call: Call,
        model: Model,
        inputs: Mapping[str, NDArray],
        request_id: str,
        replay: Replay,
    ) -> AsyncGenerator[Part, None]:
        timeout = call.seconds_left
        with replica.running():
            answer = replica.triton.generate(
                model.name,
                inputs,
                timeout=timeout,
                request_id=request_id,
                traceparent=call.record.traceparent,
            )
            try:
                async with aclosing(answer) as parts:
                    async for part in parts:
                        replica.load.answered(time.monotonic())
                        if (new := replay.add(part)) is not None:
                            yield new
            except ClientError as error:
                _note(replica, error, timeout)
                raise

    def _wait_of(self, replica: Replica) -> float:
        """Whether a request that this server fails waits for one to come back, in seconds.

        Where the supervisor had said already that the server does not serve, it may take any time.
        """
        return self._recovery_seconds if replica.models.ready else 0.0

    async def _another(
        self, call: Call, model: Model, failed: Replica, waits: float, *, exact: bool
    ) -> Replica | None:
        now = time.monotonic()
        until = min(now + waits, call.deadline)
        return await self._replicas.another(model, failed, since=now, until=until, exact=exact)


def _note(replica: Replica, error: ClientError, timeout: float) -> None:
    if isinstance(error, Unavailable) or (isinstance(error, Timeout) and timeout >= _PATIENCE_SECONDS):
        replica.load.failed(time.monotonic())
