"""The models of a repository, joined in this process as Triton's ensembles join them.

The Python models are the served classes, read from the `model.py` of their version's folder and set up with
their `config.pbtxt`; a network is any function of arrays, for example an ONNX session. What is missing is
Triton itself: its scheduling, its batching, its protocols. Evidence is taken this way before anything is
published, and over the wire afterwards.
"""

from __future__ import annotations

import json
import runpy
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from google.protobuf import json_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2 as triton

from serving.models import stand_in

Arrays = Mapping[str, NDArray]
Network = Callable[[Arrays], Arrays]
STREAM_SECONDS = 600.0


class Refused(Exception):
    """A model answered a request with an error; the message is the model's own."""


@dataclass(frozen=True)
class Model:
    """One model of a repository.

    Attributes:
        config: as it stands in `config.pbtxt`.
        folder: of the version, with `model.py` and its files; unused of an ensemble and of a network.
        network: the function that runs the weights; None: a Python model or an ensemble.
    """

    config: triton.ModelConfig
    folder: Path | None = None
    network: Network | None = None


@dataclass
class InProcess:
    """Models that answer requests.

    Args:
        models: by name, with all steps of their ensembles.

    Raises:
        Exception: whatever a Python model raises when it is set up.
    """

    models: Mapping[str, Model]
    _python: dict[str, Any] = field(default_factory=dict)

    def infer(self, name: str, inputs: Arrays) -> dict[str, NDArray]:
        """Answer one request of a model.

        Args:
            inputs: arrays [rows, ...] by name, text as bytes.

        Raises:
            Refused: the model answers with an error.
        """
        model = self.models[name]
        if model.config.platform == "ensemble":
            return self._through(model.config, inputs)
        if model.network is not None:
            try:
                return {key: _bytes(value) for key, value in model.network(_texts(inputs)).items()}
            except Exception as error:
                raise Refused(str(error).strip() or type(error).__name__) from error
        (response,) = self._responses(name, inputs)
        return _arrays(response)

    def stream(self, name: str, inputs: Arrays) -> list[dict[str, NDArray]]:
        """Answer one request of a decoupled model: its responses, in order.

        Raises:
            Refused: one of them is an error, or the last did not come within ten minutes.
        """
        return [_arrays(response) for response in self._responses(name, inputs)]

    def _responses(self, name: str, inputs: Arrays) -> list[Any]:
        """What `execute` returns, or what it sends from then on."""
        found: list[Any] = []
        ended = threading.Event()

        def receive(response: stand_in.InferenceResponse | None, final: bool) -> None:
            if response is not None:
                found.append(response)
            if final:
                ended.set()

        outputs = [entry.name for entry in self.models[name].config.output]
        sender = stand_in.ResponseSender(receive)
        returned = self._open(name).execute([stand_in.InferenceRequest(inputs, outputs, sender)])
        if returned and returned[0] is not None:
            return list(returned)
        if not ended.wait(STREAM_SECONDS):
            raise Refused(f"{name} did not end its answer within {STREAM_SECONDS:.0f} seconds")
        return found

    def close(self) -> None:
        """End the Python models."""
        for model in self._python.values():
            with suppress(AttributeError):  # most have nothing to end
                model.finalize()
        self._python.clear()

    def __enter__(self) -> InProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _through(self, config: triton.ModelConfig, inputs: Arrays) -> dict[str, NDArray]:
        """An ensemble's steps, each with the tensors that its maps name."""
        tensors = dict(inputs)
        for step in config.ensemble_scheduling.step:
            given = {own: tensors[name] for own, name in step.input_map.items() if name in tensors}
            made = self.infer(step.model_name, given)
            tensors |= {name: made[own] for own, name in step.output_map.items()}
        return {entry.name: tensors[entry.name] for entry in config.output}

    def _open(self, name: str) -> Any:
        if name not in self._python:
            model = self.models[name]
            assert model.folder is not None  # noqa: S101 - a Python model has one
            # Not imported: that would leave bytecode in the repository, which Triton takes for a change.
            loaded = runpy.run_path(str(model.folder / "model.py"))["TritonPythonModel"]()
            config = json_format.MessageToDict(model.config, preserving_proto_field_name=True)
            loaded.initialize(
                {
                    "model_config": json.dumps(config),
                    "model_name": name,
                    "model_repository": str(model.folder.parent),
                    "model_version": model.folder.name,
                    "model_instance_kind": "GPU" if _on_gpu(model.config) else "CPU",
                    "model_instance_device_id": "0",
                }
            )
            self._python[name] = loaded
        return self._python[name]


def _on_gpu(config: triton.ModelConfig) -> bool:
    return any(group.kind == triton.ModelInstanceGroup.KIND_GPU for group in config.instance_group)


def _arrays(response: Any) -> dict[str, NDArray]:
    if response.error() is not None:
        raise Refused(response.error().message())
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


def _texts(arrays: Arrays) -> dict[str, NDArray]:
    """Bytes as the text that a graph takes."""
    return {name: _converted(array, bytes, lambda value: value.decode()) for name, array in arrays.items()}


def _bytes(array: NDArray) -> NDArray:
    """A graph's text as the bytes that Triton carries."""
    return _converted(np.asarray(array), str, lambda value: value.encode())


def _converted(array: NDArray, kind: type, convert: Callable[[Any], Any]) -> NDArray:
    if array.dtype != object:
        return array
    flat = [convert(value) if isinstance(value, kind) else value for value in array.reshape(-1)]
    made = np.empty(len(flat), object)
    made[:] = flat
    return made.reshape(array.shape)
