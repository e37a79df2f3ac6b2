"""What a request to a decoder brings: tensors of one element, and the request's own parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from serving.generation.params import BadRequest
from serving.models.backend_utils import pb_utils
from serving.probe import PARAMETER

# Parameters of a request that are not for sampling: those of ours, and of Triton's and its clients.
# A body of `generate` may hold any of them.
_NOT_SAMPLING = (
    PARAMETER,
    "id",
    "timeout",
    "priority",
    "binary_data_output",
    "sequence_id",
    "sequence_start",
    "sequence_end",
)


def sampling_of(given: str, parameters: Mapping[str, Any]) -> str:
    """The text of `sampling_parameters`; where there is none, the request's own parameters as JSON.

    So does Triton's vLLM backend: its users write `"parameters": {"max_tokens": 8}` in a body of `generate`.
    """
    if given.strip():
        return given
    asked = {
        name: value
        for name, value in parameters.items()
        if name not in _NOT_SAMPLING and not name.startswith("triton_")
    }
    return json.dumps(asked) if asked else ""


def microseconds(given: Any) -> int:
    """A timeout as the body of `generate` has it, which Triton hands on as a parameter like any other.

    Raises:
        BadRequest: it is none.
    """
    if isinstance(given, bool) or not isinstance(given, int) or given < 0:
        raise BadRequest(f"timeout is {str(given)[:40]!r}, it must be a whole number of microseconds")
    return given


def _first(request: Any, name: str) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    values = tensor.as_numpy().reshape(-1)
    return values[0] if len(values) else None


def flag_of(request: Any, name: str, *, default: bool | None = False) -> bool | None:
    """A BOOL input; `default` where it is absent."""
    value = _first(request, name)
    return default if value is None else bool(value)


def ids_of(request: Any, name: str) -> list[int] | None:
    """An input of whole numbers, at least one of them; None where it is absent.

    Raises:
        BadRequest: it is empty.
    """
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    values = [int(value) for value in tensor.as_numpy().reshape(-1)]
    if not values:
        raise BadRequest(f"{name} is empty")
    return values


def text_of(request: Any, name: str, most: int, why: str = "") -> str:
    """A text, "" where it is absent.

    Args:
        most: bytes of UTF-8 that it may have.
        why: ends the error of a longer one.

    Raises:
        BadRequest: it is too long or not UTF-8.
    """
    value = _first(request, name)
    if value is None:
        return ""
    if len(value) > most:
        raise BadRequest(f"{name} has {len(value)} bytes, at most {most} are accepted{why}")
    try:
        return bytes(value).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"{name} is not UTF-8: byte {error.start} is 0x{value[error.start]:02x}") from None
