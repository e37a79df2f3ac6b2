"""What a person types to a model's arrays, and its answer to plain values, whatever the model."""

from __future__ import annotations

import base64
import json
import os
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.dialect import TEXT, TEXT_INPUT
from shoal.errors import UsageError

_NUMBERS = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "INT32": np.int32}
SAMPLE_TEXT = "Fish swim in shoals."


def arrays_of(
    config: Mapping[str, Any],
    metadata: Mapping[str, Any],
    texts: Sequence[str],
    pairs: Sequence[str],
    options: Sequence[str] = (),
) -> dict[str, NDArray]:
    """The inputs of one request.

    Args:
        config, metadata: of the model, as Triton gives them.
        texts: rows of the input `text`.
        pairs: `NAME=VALUE` of the other inputs, or `NAME=@FILE`; each row gets all of them.
        options: of the command, for a hint that can be copied.

    Raises:
        UsageError: an input is missing, unknown, or not what its type says.
    """
    kinds = {entry["name"]: entry["datatype"] for entry in metadata["inputs"]}
    values: dict[str, list[Any]] = defaultdict(list)
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name not in kinds:
            raise UsageError(f"--input {pair} is not NAME=VALUE", hint=f"names: {', '.join(kinds)}")
        values[name] += _values(name, value, kinds[name])
    if texts and "text" not in kinds:
        raise UsageError(
            f"this model has no input text, it has {', '.join(kinds)}",
            hint=sample_line(config, metadata, options),
        )
    given = {*values, *_optional(config), *(["text"] if texts else [])}
    missing = [name for name in kinds if name not in given]
    if missing:
        wants = f"{metadata['name']} wants {', '.join(missing)}"
        raise UsageError(wants, hint=sample_line(config, metadata, options))
    rows = max(1, len(texts))
    made = {name: np.array([values[name]] * rows, dtype_of(kinds[name])) for name in values}
    if texts:
        made["text"] = np.array([[os.fsencode(text)] for text in texts], object)
    return made


def sample_arrays(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, NDArray]:
    """One row that a model takes: the sample in its config, or one made up by its types.

    What is optional is left out: so the answer is what users get who ask for nothing special.
    """
    stated = config.get("parameters", {}).get("sample", {}).get("string_value", "{}")
    sample = json.loads(stated)
    encoded = sample.pop("encoding", "") == "base64"
    made = {}
    optional = _optional(config)
    for entry in metadata["inputs"]:
        if entry["name"] in optional:
            continue
        shape = [max(1, int(size)) for size in entry["shape"]]
        dtype = dtype_of(entry["datatype"])
        if entry["name"] in sample:
            values = sample[entry["name"]]
            if dtype is object:
                values = [base64.b64decode(value) if encoded else value.encode() for value in values]
            made[entry["name"]] = np.array([values], dtype)
        else:
            made[entry["name"]] = np.full(shape, SAMPLE_TEXT.encode() if dtype is object else 1, dtype)
    return made


def sample_line(config: Mapping[str, Any], metadata: Mapping[str, Any], options: Sequence[str]) -> str:
    """The command that sends a row which the model takes, for a shell such as bash.

    A file, such as a picture's, is written out in base64.
    """
    words = [shlex.join(["shoal", "infer", *options, metadata["name"]])]
    for name, array in sample_arrays(config, metadata).items():
        values = array.reshape(-1).tolist()
        if array.dtype != object:
            numbers = ",".join(str(array.dtype.type(value)) for value in values)
            words.append(f"-i {shlex.quote(f'{name}={numbers}')}")
        elif name in (TEXT, TEXT_INPUT) and len(values) == 1:
            words.append(shlex.quote(values[0].decode()))
        else:
            words += [f"-i {_written(name, value)}" for value in values]
    return " ".join(words)


def _written(name: str, value: bytes) -> str:
    try:
        return shlex.quote(f"{name}={value.decode()}")
    except UnicodeDecodeError:
        return f"{shlex.quote(name)}=@<(base64 -d <<< {base64.b64encode(value).decode()})"


def _optional(config: Mapping[str, Any]) -> set[str]:
    """Names of the inputs that a request may leave out; metadata do not tell."""
    return {entry["name"] for entry in config.get("input", ()) if entry.get("optional")}


def as_protocol(arrays: Mapping[str, NDArray]) -> list[dict[str, Any]] | None:
    """Arrays as the inputs of a request in JSON, or None where one holds bytes that are no text."""
    made = []
    for name, array in arrays.items():
        kinds = {np.dtype(dtype): kind for kind, dtype in _NUMBERS.items()}
        try:
            data = [value.decode() if isinstance(value, bytes) else value for value in array.ravel().tolist()]
        except UnicodeDecodeError:
            return None
        kind = kinds.get(array.dtype, "BYTES")
        made.append({"name": name, "shape": list(array.shape), "datatype": kind, "data": data})
    return made


def parts(arrays: Mapping[str, NDArray], size: int) -> Iterator[dict[str, NDArray]]:
    """A request as several of at most `size` rows."""
    for start in range(0, len(next(iter(arrays.values()))), size):
        yield {name: array[start : start + size] for name, array in arrays.items()}


def as_rows(answered: Sequence[Mapping[str, NDArray]]) -> dict[str, list[Any]]:
    """The outputs of several requests as one, by name a list of rows, of plain JSON types."""
    return {
        name: [row for outputs in answered for row in _plain(outputs[name].tolist())] for name in answered[0]
    }


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _values(name: str, text: str, kind: str) -> list[Any]:
    if kind == "BYTES":
        if not text.startswith("@"):
            return [os.fsencode(text)]  # the bytes that were typed: the server says what is wrong with them
        try:
            return [Path(text[1:]).expanduser().read_bytes()]
        except OSError as error:
            raise UsageError(f"{text[1:]} cannot be read: {error.strerror}") from error
    try:
        return [_NUMBERS[kind](part) for part in text.split(",")]
    except (KeyError, ValueError) as error:
        raise UsageError(f"--input {name}={text} is no value of the type {kind}: {error}") from error


def dtype_of(kind: str) -> Any:
    """numpy's type of one of Triton's, `object` for texts and what is not a number."""
    return _NUMBERS.get(kind, object)
