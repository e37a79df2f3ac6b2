"""Triton's side of the backend: auto-complete a config, load one session an instance, answer requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

from serving import heartbeat
from serving.models.backend_utils import version_folder
from serving.onnxruntime.batching import BadRows, run_of
from serving.onnxruntime.options import BadConfig, Options
from serving.onnxruntime.sessions import Arrays, check_runtime, open_session
from shoal.errors import first_line

DEFAULT_FILE = "model.onnx"
DEFAULT_MAX_BATCH_SIZE = 4  # what Triton documents for auto-completed models that can batch

_TRITON_TYPES = {
    "tensor(float)": "TYPE_FP32",
    "tensor(float16)": "TYPE_FP16",
    "tensor(double)": "TYPE_FP64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(bool)": "TYPE_BOOL",
    "tensor(string)": "TYPE_STRING",
}


class TritonPythonModel:
    """One instance: one ONNX Runtime session."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Fill in what config.pbtxt leaves out, from the graph: inputs, outputs, batch size, batching."""
        config = auto_complete_model_config.as_dict()
        given = {entry["name"] for entry in (*config["input"], *config["output"])}
        if config["input"] and config["output"]:
            return auto_complete_model_config
        path = Path(pb_utils.get_model_dir()) / (config["default_model_filename"] or DEFAULT_FILE)
        session = open_session(path, Options.from_config(config))
        tensors = [*session.get_inputs(), *session.get_outputs()]
        batches = all(tensor.shape and not isinstance(tensor.shape[0], int) for tensor in tensors)
        if batches and config["max_batch_size"] == 0 and not given:
            auto_complete_model_config.set_max_batch_size(DEFAULT_MAX_BATCH_SIZE)
            auto_complete_model_config.set_dynamic_batching()
        skip = 1 if auto_complete_model_config.as_dict()["max_batch_size"] > 0 else 0
        for tensor in session.get_inputs():
            if tensor.name not in given:
                auto_complete_model_config.add_input(_as_config(tensor, skip))
        for tensor in session.get_outputs():
            if tensor.name not in given:
                auto_complete_model_config.add_output(_as_config(tensor, skip))
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Open the session of this instance."""
        heartbeat.start()
        config = json.loads(args["model_config"])
        filename = config.get("default_model_filename") or DEFAULT_FILE
        path = version_folder(args) / filename
        gpu = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None
        check_runtime(path.parent)
        asked = Options.from_config(config)
        self._session = open_session(path, asked, gpu=gpu)
        self._inputs = [tensor.name for tensor in self._session.get_inputs()]
        self._outputs = [tensor.name for tensor in self._session.get_outputs()]
        self._run = run_of(asked)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, in order.

        All requests run as one batch, or in groups of rows of about one length where the config allows ragged
        batches. Where that fails they run one by one, so that the request at
        fault fails alone.
        """
        # What nobody asks for is not computed, nor carried to another process.
        asked = {name for request in requests for name in request.requested_output_names()}
        outputs = [name for name in self._outputs if name in asked]
        try:
            feeds = [self._feed(request) for request in requests]
            results = self._run(self._session, outputs, feeds)
        except Exception:  # noqa: BLE001 - onnxruntime's errors and numpy's share no base but this
            return [self._answer_alone(request, outputs) for request in requests]
        return [self._response(outputs, result) for result in results]

    def _answer_alone(self, request: Any, outputs: list[str]) -> Any:
        try:
            return self._response(outputs, self._run(self._session, outputs, [self._feed(request)])[0])
        except Exception as error:  # noqa: BLE001
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(_reason(error), _code(error)))

    def _feed(self, request: Any) -> Arrays:
        tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in self._inputs}
        return {name: _text(tensor.as_numpy()) for name, tensor in tensors.items()}

    def _response(self, outputs: list[str], result: list[Any]) -> Any:
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, _bytes(array)) for name, array in zip(outputs, result, strict=True)]
        )


def _text(array: Any) -> Any:
    """Triton gives text as bytes, ONNX Runtime takes it as such."""
    if array.dtype != object:
        return array
    return np.array([text.decode() for text in array.reshape(-1)], object).reshape(array.shape)


def _bytes(array: Any) -> Any:
    """The way back."""
    if array.dtype != object:
        return array
    return np.array([text.encode() for text in array.reshape(-1)], object).reshape(array.shape)


def _reason(error: Exception) -> str:
    return f"ONNX Runtime: {first_line(error)}"


def _code(error: Exception) -> Any:
    """An input the graph cannot take is the caller's fault, anything else ours."""
    faults = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, BadRows
    return pb_utils.TritonError.INVALID_ARG if isinstance(error, faults) else pb_utils.TritonError.INTERNAL


def _as_config(tensor: Any, skip: int) -> dict[str, Any]:
    if tensor.type not in _TRITON_TYPES:
        raise BadConfig(f"{tensor.name} is {tensor.type}, which this backend cannot pass on")
    dims = [size if isinstance(size, int) else -1 for size in tensor.shape[skip:]]
    return {"name": tensor.name, "data_type": _TRITON_TYPES[tensor.type], "dims": dims}
