"""The responses to one request of a decoder: parts of its answer as Triton's tensors, or an error."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from serving.generation.deliveries import described
from serving.generation.engine import QueueFull
from serving.generation.params import BadRequest, Busy, SamplingParams
from serving.generation.sampling import TokenLogprob
from serving.generation.sequence import Chunk, Failure
from serving.models import inputs
from serving.models.backend_utils import pb_utils
from serving.models.responses import in_short
from shoal.dialect import (
    CACHED_TOKENS,
    CUMULATIVE_LOGPROB,
    EXCLUDE_INPUT,
    FINISH_REASON,
    INPUT_TOKENS,
    INVALID_REQUEST,
    LOGPROBS,
    ON_DEMAND,
    OUTPUT_TOKENS,
    PROMPT_LOGPROBS,
    RETURN,
    SAMPLING,
    STOP_REASON,
    STREAM,
    TEXT_INPUT,
    TEXT_OUTPUT,
)

# A token's own text, and the bytes that it stands for.
Told = Callable[[int], tuple[str, bytes]]


class Answer:
    """The responses to one request.

    Raises:
        Nothing: a response that cannot be sent has nobody to receive it.
    """

    def __init__(self, request: Any) -> None:
        self._sender = request.get_response_sender()
        self.is_cancelled = self._sender.is_cancelled
        self._wanted = [name for name in ON_DEMAND if inputs.flag_of(request, f"{RETURN}{name}")]
        self.stream = bool(inputs.flag_of(request, STREAM))
        self._excludes = inputs.flag_of(request, EXCLUDE_INPUT, default=None)
        self._text = ""
        self._prompt: Sequence[int] = ()
        self._cumulated = 0.0
        self._told_prompt = False
        self._token: Told | None = None

    def prepare(
        self,
        text: str | None,
        prompt: Sequence[int],
        params: SamplingParams,
        token: Told,
    ) -> None:
        """What the responses refer to.

        Args:
            text: of the prompt, which a response that is the whole answer begins with unless the request says
                otherwise; None: there is none.
            token: gives a token's text and bytes.

        Raises:
            BadRequest: the flags contradict each other or the parameters.
        """
        if self._excludes is False and self.stream:
            raise BadRequest(f"{EXCLUDE_INPUT} cannot be false in a stream")
        if self._excludes is False and text is None:
            raise BadRequest(f"{EXCLUDE_INPUT} can be false only where {TEXT_INPUT} is the prompt")
        asked = {LOGPROBS, CUMULATIVE_LOGPROB}.intersection(self._wanted)
        if asked and params.logprobs is None:
            raise BadRequest(f"{RETURN}{min(asked)} needs logprobs in {SAMPLING}")
        if PROMPT_LOGPROBS in self._wanted and params.prompt_logprobs is None:
            raise BadRequest(f"{RETURN}{PROMPT_LOGPROBS} needs prompt_logprobs in {SAMPLING}")
        self._text = text if text and not self.stream and not self._excludes else ""
        self._prompt, self._token = prompt, token

    def deliver(self, part: Chunk | tuple[Failure, str]) -> None:
        """Send a part; see `serving.generation.sequence.Request.deliver`."""
        if isinstance(part, Chunk):
            final = part.finish_reason is not None
            self._send(pb_utils.InferenceResponse(self._tensors(part)), final)
            return
        failure, message = part
        codes = {
            Failure.DEADLINE: pb_utils.TritonError.UNAVAILABLE,
            Failure.CANCELLED: pb_utils.TritonError.CANCELLED,
            Failure.STOPPING: pb_utils.TritonError.UNAVAILABLE,
            Failure.UNMET: pb_utils.TritonError.INVALID_ARG,
            Failure.INTERNAL: pb_utils.TritonError.INTERNAL,
        }
        prefix = INVALID_REQUEST if failure is Failure.UNMET else f"{failure.value}: "
        self.fail(codes[failure], f"{prefix}{message}")

    def refuse(self, error: Exception) -> None:
        """End a request that was not begun."""
        if isinstance(error, QueueFull | Busy):
            self.fail(pb_utils.TritonError.UNAVAILABLE, str(error))
        elif isinstance(error, ValueError):
            self.fail(pb_utils.TritonError.INVALID_ARG, f"{INVALID_REQUEST}{error}")
        else:
            self.fail(pb_utils.TritonError.INTERNAL, described(error))

    def fail(self, code: Any, message: str) -> None:
        """End with an error."""
        # It may quote half a character.
        text = in_short(message).encode("utf-8", errors="backslashreplace").decode()
        self._send(pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code)), final=True)

    def _send(self, response: Any, final: bool) -> None:
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
        try:
            self._sender.send(response, flags=flags)
        except Exception as error:  # noqa: BLE001 - the stream is gone; the engine must go on
            pb_utils.Logger.log_warn(f"a response could not be sent: {error}")

    def _tensors(self, chunk: Chunk) -> list[Any]:
        text = self._text + chunk.text
        chosen = [position[0].logprob for position in chunk.logprobs]
        self._cumulated += sum(chosen)
        values: dict[str, Callable[[], Any]] = {
            FINISH_REASON: lambda: _strings([chunk.finish_reason or ""]),
            CUMULATIVE_LOGPROB: lambda: np.array([self._cumulated], np.float32),
            LOGPROBS: lambda: _strings([json.dumps([self._logprobs(place) for place in chunk.logprobs])]),
            PROMPT_LOGPROBS: lambda: _strings([json.dumps(self._of_prompt(chunk))]),
            STOP_REASON: lambda: _strings([json.dumps(chunk.stop_reason)]),
            INPUT_TOKENS: lambda: np.array([len(self._prompt)], np.uint32),
            OUTPUT_TOKENS: lambda: np.array([chunk.tokens], np.uint32),
            CACHED_TOKENS: lambda: np.array([chunk.cached], np.uint32),
        }
        tensors = [pb_utils.Tensor(TEXT_OUTPUT, _strings([text]))]
        return tensors + [pb_utils.Tensor(name, values[name]()) for name in self._wanted]

    def _logprobs(self, position: Sequence[TokenLogprob]) -> dict[str, Any]:
        """One position as the vLLM backend writes it: token id -> logprob, rank and text; bytes are ours."""
        assert self._token is not None  # noqa: S101 - prepared
        told = {}
        for entry in position:
            text, content = self._token(entry.token)
            told[str(entry.token)] = {
                "logprob": entry.logprob,
                "rank": entry.rank,
                "decoded_token": text,
                "bytes": list(content),
            }
        return told

    def _of_prompt(self, chunk: Chunk) -> list[dict[str, Any]]:
        """The prompt's positions, in the first response. Nothing stands before its first token."""
        if not chunk.prompt_logprobs and (self._told_prompt or len(self._prompt) > 1):
            return []
        self._told_prompt = True
        assert self._token is not None  # noqa: S101 - prepared
        text, content = self._token(self._prompt[0])
        first = {
            "logprob": None,
            "rank": None,
            "decoded_token": text,
            "bytes": list(content),
        }
        return [{str(self._prompt[0]): first}, *(self._logprobs(place) for place in chunk.prompt_logprobs)]


def _strings(values: Sequence[str]) -> Any:
    return np.array([value.encode() for value in values], dtype=object)
