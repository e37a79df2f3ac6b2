"""The parameters of a model's `config.pbtxt`: texts by name, read as what a model declares of them.

msgspec converts and checks, in the words of its own errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

Read = TypeVar("Read")
# Of a network whose rows may be grouped by length: the token id that fills rows up, see `serving.ragged`; and
# the inputs that it reads.
ROW_PADDING = "row_padding"
# Of such a network, where an export chose others than `serving.onnxruntime.batching` has: the most tokens of
# one run, and those of padding that it may add to save another run.
MAX_RUN_TOKENS, MAX_RUN_PADDING = "max_run_tokens", "max_run_padding"
IDS, MASK = "input_ids", "attention_mask"


def parameters_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The parameters of a Triton model config, which is given as Triton's JSON has it."""
    return {key: value["string_value"] for key, value in config.get("parameters", {}).items()}


def read(kind: type[Read], given: Mapping[str, Any]) -> Read:
    """Parameters as a `msgspec.Struct`; "8" is read as a number and "true" as a bool where it declares one.

    Raises:
        ValueError: a parameter is missing, unknown or not what is declared; its name is in the message.
    """
    stripped = {
        key: value.strip() if isinstance(value, str) and value.strip().lstrip("+-").isdigit() else value
        for key, value in given.items()
    }
    try:
        return msgspec.convert(stripped, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"parameters of the model: {error}") from error
