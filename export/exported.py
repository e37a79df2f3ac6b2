"""An ONNX file and what its own graph says of it. Specs are read, never typed by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

# What the official container's ONNX Runtime loads.
MAX_OPSET = 22
MAX_IR_VERSION = 10


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph: name, ONNX element type (e.g. `INT64`), dims (-1: free)."""

    name: str
    dtype: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Exported:
    """An ONNX file on disk with its specs."""

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    ir_version: int

    @property
    def filename(self) -> str:
        """What it is called in a version's folder."""
        return "model.onnx"

    @property
    def provenance(self) -> dict[str, Any] | None:
        """What binds it to a machine, for the manifest: an ONNX file nothing, an engine its fingerprint."""
        return None

    @classmethod
    def read(cls, path: Path) -> Exported:
        """Read the specs from the graph; weights are not loaded twice.

        Raises:
            ValueError: the graph is newer than what the official container loads.
        """
        model = onnx.load(path, load_external_data=False)
        opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        if opset > MAX_OPSET or model.ir_version > MAX_IR_VERSION:
            raise ValueError(f"{path.name}: opset {opset}, IR {model.ir_version} are too new")
        return cls(
            path,
            tuple(_spec(value) for value in model.graph.input),
            tuple(_spec(value) for value in model.graph.output),
            opset,
            model.ir_version,
        )

    def describe(self) -> dict[str, Any]:
        """Describe it for the manifest, as plain JSON types."""
        return {
            "opset": self.opset,
            "ir_version": self.ir_version,
            "inputs": [vars(spec) | {"dims": list(spec.dims)} for spec in self.inputs],
            "outputs": [vars(spec) | {"dims": list(spec.dims)} for spec in self.outputs],
        }


def _spec(value: Any) -> TensorSpec:
    tensor = value.type.tensor_type
    dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
    return TensorSpec(value.name, onnx.TensorProto.DataType.Name(tensor.elem_type), dims)
