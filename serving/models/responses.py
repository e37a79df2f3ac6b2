"""Requests to responses, for every Python model that maps arrays to arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from serving.models.admission import Admission, QueueFull
from serving.models.backend_utils import pb_utils

MOST_SAID = 2_000  # characters of an error


def inputs(request: Any, *names: str) -> list[NDArray]:
    """The arrays of a request's inputs."""
    return [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in names]


def optional(request: Any, *names: str) -> dict[str, NDArray]:
    """The arrays of those inputs that a request has, by name."""
    found = {name: pb_utils.get_input_tensor_by_name(request, name) for name in names}
    return {name: tensor.as_numpy() for name, tensor in found.items() if tensor is not None}


def answers(
    requests: Sequence[Any],
    answer: Callable[[Any], Mapping[str, NDArray]],
    admission: Admission | None = None,
) -> list[Any]:
    """One response a request, in order. An error is that request's own.

    Args:
        answer: output arrays by name, of one request; a ValueError is the caller's fault, anything else ours.
        admission: of the first step of an ensemble, to the network behind it.
    """
    made = [_response(request, answer, admission) for request in requests]
    if admission is not None:
        admission.send()
    return made


def _response(
    request: Any, answer: Callable[[Any], Mapping[str, NDArray]], admission: Admission | None
) -> Any:
    try:
        if admission is not None:
            admission.admit(request)
        arrays = answer(request)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in arrays.items()])
    except QueueFull as error:  # counted, and not logged: there may be thousands in a second
        return failed(error)
    except ValueError as error:
        pb_utils.Logger.log_warn(f"[request id: {request.request_id()}] refused: {error}")
        return failed(error)
    except Exception as error:  # noqa: BLE001 - the requests beside this one must not fail with it
        pb_utils.Logger.log_error(f"[request id: {request.request_id()}] {type(error).__name__}: {error}")
        return failed(error)


def failed(error: Exception) -> Any:
    """The response to a request that an error ended: a ValueError is the caller's fault."""
    codes = pb_utils.TritonError
    code = codes.UNAVAILABLE if isinstance(error, QueueFull) else codes.INTERNAL
    code = codes.INVALID_ARG if isinstance(error, ValueError) else code
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(in_short(str(error)), code))


def in_short(message: str) -> str:
    """An error of at most `MOST_SAID` characters, whatever it quotes."""
    return message if len(message) <= MOST_SAID else f"{message[:MOST_SAID]}..."
