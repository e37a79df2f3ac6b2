"""What Triton's `triton_python_backend_utils` gives to Python models, where there is no Triton.

With it the same model classes run in any Python process: evidence is taken from them before anything is
published (`serving.in_process`). The interface is that of triton-inference-server/python_backend, its README.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class Tensor:
    """A named array."""

    def __init__(self, name: str, array: NDArray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> NDArray:
        return self._array


class TritonError:
    """Why a request failed; codes are those of Triton."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class InferenceResponse:
    """Outputs, or an error."""

    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def error(self) -> TritonError | None:
        return self._error


class ResponseSender:
    """Where a model sends responses that it does not return.

    Args:
        receive: is called with each response (None: only a flag came) and whether it is the last.
    """

    def __init__(self, receive: Callable[[InferenceResponse | None, bool], None]) -> None:
        self._receive = receive

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        self._receive(response, bool(flags & TRITONSERVER_RESPONSE_COMPLETE_FINAL))

    def is_cancelled(self) -> bool:
        return False


class InferenceRequest:
    """One request as a Python model sees it.

    Args:
        inputs: arrays by name.
        outputs: names of the outputs that are asked for.
        sender: of a model that does not return its responses.
    """

    def __init__(
        self, inputs: Mapping[str, NDArray], outputs: Sequence[str], sender: ResponseSender | None = None
    ) -> None:
        self._inputs, self._outputs, self._sender = dict(inputs), list(outputs), sender

    def inputs(self) -> list[Tensor]:
        return [Tensor(name, array) for name, array in self._inputs.items()]

    def tensor(self, name: str) -> Tensor | None:
        """An input by its name; None where the request has none of that name."""
        return Tensor(name, self._inputs[name]) if name in self._inputs else None

    def requested_output_names(self) -> list[str]:
        return self._outputs

    def get_response_sender(self) -> ResponseSender:
        if self._sender is None:
            raise RuntimeError("this request has no response sender")
        return self._sender

    def request_id(self) -> str:
        return ""

    def timeout(self) -> int:
        return 0

    def parameters(self) -> str:
        return json.dumps({})


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    """Find an input of a request, as Triton's function of this name does."""
    return request.tensor(name)


class Logger:
    """Triton's log, as Python's. What is a refusal to a server is an answer here: nothing is shown."""

    _log = logging.getLogger(__name__)
    log_error = log_warn = log_info = log_verbose = staticmethod(_log.debug)


class MetricFamily:
    """Counts nothing."""

    COUNTER, GAUGE, HISTOGRAM = range(3)

    def __init__(self, **_: Any) -> None:
        pass

    def Metric(self, **_: Any) -> MetricFamily:
        return self

    def increment(self, value: float) -> None:
        pass

    set = observe = increment
