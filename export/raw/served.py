"""What users get: the answers of the models that will be served, in this process, or of a server.

Over the wire the caller is tritonclient itself, which is not ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from export.originals.original import Row
from serving.in_process import Refused

Arrays = Mapping[str, NDArray]
TIMEOUT = 120.0  # seconds


class Caller(Protocol):
    """Sends a request to a model."""

    def infer(self, name: str, inputs: Arrays) -> Mapping[str, NDArray]:
        """One request, one response.

        Raises:
            Refused: the model answers with an error.
        """

    def stream(self, name: str, inputs: Arrays) -> Sequence[Mapping[str, NDArray]]:
        """One request of a decoupled model: its responses, in order.

        Raises:
            Refused: one of them is an error.
        """


class Wire:
    """A running server over gRPC, called by tritonclient.

    Args:
        address: host:port.
    """

    def __init__(self, address: str) -> None:
        self._client = triton.InferenceServerClient(address)

    def infer(self, name: str, inputs: Arrays) -> Mapping[str, NDArray]:
        """See `Caller`."""
        try:
            result = self._client.infer(name, _tensors(inputs), client_timeout=TIMEOUT)
        except InferenceServerException as error:
            raise Refused(error.message()) from error
        return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}

    def stream(self, name: str, inputs: Arrays) -> Sequence[Mapping[str, NDArray]]:
        """See `Caller`."""
        arrived: SimpleQueue[Any] = SimpleQueue()
        parts = []
        self._client.start_stream(lambda result, error: arrived.put((result, error)))
        try:
            self._client.async_stream_infer(name, _tensors(inputs), enable_empty_final_response=True)
            final = False
            while not final:
                result, error = arrived.get(timeout=TIMEOUT)
                if error is not None:
                    raise Refused(error.message())
                response = result.get_response()
                final = response.parameters["triton_final_response"].bool_param
                if response.outputs:
                    parts.append({output.name: result.as_numpy(output.name) for output in response.outputs})
        except Empty:
            raise Refused(f"no answer within {TIMEOUT:.0f} seconds") from None
        finally:
            self._client.stop_stream()
        return parts

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()


def _tensors(inputs: Arrays) -> list[triton.InferInput]:
    tensors = []
    for name, array in inputs.items():
        tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors


def version_folder(files: Mapping[str, Path | str], folder: Path) -> Path:
    """The files of a version, in a folder that is made and returned: text is written, files are linked."""
    folder.mkdir(parents=True)
    for name, value in files.items():
        if isinstance(value, Path):
            (folder / name).symlink_to(value.resolve())
        else:
            (folder / name).write_text(value, encoding="utf-8")
    return folder


def ask(caller: Caller, model: str, row: Row) -> dict[str, list[Any]] | Refused:
    """What a model answers to one raw input: by output, the values of its row; or its error."""
    try:
        outputs = caller.infer(model, arrays_of(row))
    except Refused as refused:
        return refused
    return {name: _plain(array[0]) for name, array in outputs.items()}


def arrays_of(row: Row) -> dict[str, NDArray]:
    """One raw input as a request: each input [1, values], bytes."""
    return {name: np.array([[_as_bytes(value) for value in values]], object) for name, values in row.items()}


def _as_bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _plain(values: NDArray) -> list[Any]:
    return [value.decode() if isinstance(value, bytes) else value for value in values.tolist()]
