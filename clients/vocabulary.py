"""What the three clients share: options, and text and arrays to and from Triton's tensors. No transport."""

from __future__ import annotations

import math
import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import np_to_triton_dtype

from clients.errors import BadInput
from shoal.dialect import PROMPT_NAME, TEXT

EMBEDDING = "embedding"
BATCH_SIZE = 32
TABLE_BATCH_SIZE = 256
Tensor = TypeVar("Tensor")
Arrays = Mapping[str, NDArray]
# Columns by name, or a matrix [rows, features].
Table = Mapping[str, Sequence[Any]] | NDArray | Sequence[Sequence[float]]


@dataclass(frozen=True)
class Tls:
    """Certificates for an encrypted connection.

    Attributes:
        ca: certificates to trust, PEM; None: the system's.
        certificate, key: this client's own, PEM, for mutual TLS; both or neither.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("mutual TLS needs both the certificate and the key")

    def grpc_options(self) -> dict[str, Any]:
        """Arguments of tritonclient's gRPC clients."""
        return {
            "ssl": True,
            "root_certificates": str(self.ca) if self.ca else None,
            "private_key": str(self.key) if self.key else None,
            "certificate_chain": str(self.certificate) if self.certificate else None,
        }

    def context(self) -> ssl.SSLContext:
        """The context of TLS for HTTP."""
        context = ssl.create_default_context(cafile=self.ca)
        if self.certificate and self.key:
            context.load_cert_chain(self.certificate, self.key)
        return context


LONGEST_SECONDS = 1e8


def seconds(timeout: Any) -> float:
    """A deadline in seconds, checked.

    Raises:
        BadInput: it is no number, not above zero, or of more than three years.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, Real):
        raise BadInput(f"timeout is {type(timeout).__name__}, it must be a number of seconds above zero")
    try:
        given = float(timeout)
    except OverflowError:
        given = math.inf
    if not 0 < given <= LONGEST_SECONDS:
        raise BadInput(f"timeout is {given:g}, it must be a number of seconds above zero, at most 1e8")
    return given


def check_word(what: str, value: Any, *, empty: bool = False) -> None:
    """Refuse what cannot be sent as a name.

    Args:
        empty: whether "" is one.

    Raises:
        BadInput: it is no string, empty, or not UTF-8.
    """
    if not isinstance(value, str):
        raise BadInput(f"{what} is {type(value).__name__}, not str")
    if not value and not empty:
        raise BadInput(f"{what} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"{what} cannot be encoded as UTF-8: {error.reason}") from error


def listed(values: Any, what: str) -> Sequence[Any]:
    """Values of a request, which must be several.

    Raises:
        BadInput: they are one string, no list, or none.
    """
    if isinstance(values, str | bytes):
        raise BadInput(f"{what} is one string", hint="pass a list of strings")
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if not isinstance(values, Sequence):
        raise BadInput(f"{what} is {type(values).__name__}, not a list")
    if not values:
        raise BadInput(f"{what} is empty", hint="pass at least one")
    return values


def check_batch_size(size: Any) -> None:
    """Refuse what is no number of rows.

    Raises:
        BadInput: it is no whole number above zero.
    """
    if isinstance(size, bool) or not isinstance(size, Integral) or size < 1:
        raise BadInput(f"batch_size is {size!r}, it must be a whole number above zero")


def host_and_port(url: str) -> str:
    """`host:port` of an address that may begin with `http://` or `grpc://`.

    Raises:
        BadInput: it is not an address.
    """
    address = re.sub(r"^(http|grpc)://", "", url).rstrip("/")
    if not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+):\d{1,5}", address):
        raise BadInput(f"{url!r} is not an address", hint="host:port, e.g. 127.0.0.1:8001")
    return address


def embedding_of(outputs: Arrays, model: str) -> NDArray[np.float32]:
    """The output `embedding` [texts, width] of a request.

    Raises:
        BadInput: the model has no such output.
    """
    if EMBEDDING not in outputs:
        raise BadInput(f"{model} has no output {EMBEDDING}, it has {', '.join(outputs)}")
    return outputs[EMBEDDING]


def text_array(texts: Sequence[str]) -> dict[str, NDArray]:
    """Text as the input `text`: object array [n, 1] of UTF-8 bytes.

    Raises:
        BadInput: it is one string instead of a list, empty, or holds something that is not a string.
    """
    texts = listed(texts, "texts")
    rows = []
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise BadInput(f"text {index} is {type(text).__name__}, not str")
        try:
            rows.append([text.encode("utf-8")])
        except UnicodeEncodeError as error:
            raise BadInput(f"text {index} cannot be encoded as UTF-8: {error.reason}") from error
    return {TEXT: np.array(rows, dtype=object)}


def prompted(texts: Sequence[str], prompt: str | None) -> Arrays:
    """Texts as the input `text`, and before which prompt, by its name, as the input `prompt_name`."""
    arrays = text_array(texts)
    if prompt is None:
        return arrays
    return arrays | {PROMPT_NAME: np.repeat(text_array([prompt])[TEXT], len(texts), axis=0)}


def check_prompts(metadata: Mapping[str, Any], model: str) -> None:
    """Refuse a prompt for a model that has none; which it has, the server knows.

    Raises:
        BadInput: the model takes no `prompt_name`.
    """
    if PROMPT_NAME not in [entry["name"] for entry in metadata["inputs"]]:
        raise BadInput(f"{model} has no prompts", hint="leave prompt out")


def batches(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """Parts of at most `size` texts; a request must not exceed the model's `max_batch_size`."""
    check_batch_size(size)
    texts = listed(texts, "texts")
    for start in range(0, len(texts), size):
        yield texts[start : start + size]


def to_inputs(kind: type[Tensor], arrays: Arrays) -> list[Tensor]:
    """Arrays as the transport's `InferInput`s.

    Raises:
        BadInput: a value is not an array, or has a dtype Triton does not know.
    """
    if not isinstance(arrays, Mapping):
        raise BadInput(f"inputs is {type(arrays).__name__}, not arrays by their names")
    tensors = []
    for name, array in arrays.items():
        dtype = np_to_triton_dtype(array.dtype) if isinstance(array, np.ndarray) else None
        if dtype is None:
            raise BadInput(
                f"input {name} is {getattr(array, 'dtype', type(array).__name__)}, which has no tensor type"
            )
        tensor: Any = kind(name, list(array.shape), dtype)  # type: ignore[call-arg]
        try:
            tensor.set_data_from_numpy(array)
        except UnicodeEncodeError as error:
            raise BadInput(f"input {name} cannot be encoded as UTF-8: {error.reason}") from error
        tensors.append(tensor)
    return tensors


def to_arrays(result: Any, names: Sequence[str]) -> dict[str, NDArray]:
    """A transport's result as arrays by output name."""
    return {name: result.as_numpy(name) for name in names}
