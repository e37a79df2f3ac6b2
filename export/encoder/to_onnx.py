"""A checkpoint with the head of its task to one ONNX graph, through optimum or through PyTorch's dynamo.

What a task needs is part of the graph: pooling, normalization, probabilities, the names of labels. 384
floats a text cross the wire, not 384 a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper

from export.checkpoint.loading import of_a_library
from export.encoder.tasks.heads import Head
from export.encoder.verify import open_session
from export.exported import Exported
from export.likeness import difference
from shoal.errors import ExportError
from shoal.progress import Silent

OPSET = 17
DYNAMO_OPSET = 18  # the lowest it writes without a conversion
# Sizes of two samples: what differs between their outputs is free, and its size tells which dimension it is.
_SAMPLES = ({"rows": 2, "sequences": 3, "tokens": 12}, {"rows": 5, "sequences": 4, "tokens": 15})
_LAST = 1e-3  # two sums in another order are no further apart
Feed = Mapping[str, NDArray]
Axes = dict[str, dict[int, str]]


def to_onnx(head: Head, path: Path, feed: Feed, progress: Silent | None = None) -> Exported:
    """Export by the first of `exporters_of(head)` whose graph gives what the head gives.

    Args:
        feed: inputs by name, of at least one row; all dimensions but those of a picture become free.

    Raises:
        ExportError: no exporter can follow this architecture, or gives a graph that is right.
    """
    progress = progress or Silent()
    first, second = (
        {name: torch.from_numpy(array) for name, array in _sample(feed, sizes).items()} for sizes in _SAMPLES
    )
    inputs = {name: _free(first[name], second[name]) for name in first}
    with torch.inference_mode(), of_a_library(f"the architecture {head.config.model_type} cannot be run"):
        results = [head(**sample) for sample in (first, second)]
    outputs = {name: _free(*(result[name] for result in results)) for name in head.outputs}
    exporters = {"optimum": through_optimum, "dynamo": through_dynamo}
    reasons = []
    for name in exporters_of(head):
        try:
            with progress.step(f"Export to ONNX through {name}"), of_a_library(f"{name} gives up"):
                exporters[name](head, path, first, inputs, outputs)
                _state_sizes(path, results[0], outputs)
            with of_a_library(f"ONNX Runtime cannot run the graph of {name}"):
                _check(path, (first, second), results, name)
            return Exported.read(path)
        except ExportError as error:
            reasons.append(error.message)
    raise ExportError(
        f"the architecture {head.config.model_type} cannot be exported to ONNX: {reasons[0]}",
        hint="choose a checkpoint of another architecture; docs/models.md lists those that work",
    )


def exporters_of(head: Head) -> tuple[str, ...]:
    """`optimum`, where it is installed and knows the architecture, and so patches what a tracer cannot
    follow; then `dynamo`, PyTorch's own exporter, which is also the one for transformers 5."""
    return ("optimum", "dynamo") if _optimum_config(head) is not None else ("dynamo",)


def _check(
    path: Path, samples: Sequence[Mapping[str, torch.Tensor]], results: Sequence[Any], exporter: str
) -> None:
    """Refuse a graph that gives something else than what it was made from, at the sizes of both samples.

    Raises:
        ExportError: it does.
    """
    model = open_session(path)
    for sample, expected in zip(samples, results, strict=True):
        found = model({name: value.numpy() for name, value in sample.items()})
        for name, value in expected.items():
            wanted = value.numpy()
            if found[name].shape != wanted.shape:
                raise ExportError(
                    f"the graph of {exporter} gives {name} {found[name].shape}, not {wanted.shape}"
                )
            apart = difference(found[name], wanted)
            if not apart < _LAST:
                raise ExportError(
                    f"the graph of {exporter} gives another {name} than the model, by {apart:.2g}"
                )


def _optimum_config(head: Head) -> Any:
    """optimum's constructor of an export config for an architecture, or None."""
    try:
        # Registers what optimum knows; not to be had with transformers 5.
        from optimum.exporters.onnx import model_configs  # noqa: PLC0415, F401
        from optimum.exporters.tasks import TasksManager  # noqa: PLC0415
    except ImportError:
        return None
    try:
        return TasksManager.get_exporter_config_constructor(
            "onnx", model=head.backbone, task="feature-extraction", library_name="transformers"
        )
    except (KeyError, ValueError):
        return None


def through_optimum(
    head: Head, path: Path, sample: dict[str, torch.Tensor], inputs: Axes, outputs: Axes
) -> None:
    """Trace with the patches that optimum has for the architecture.

    Args:
        sample: inputs to trace with.
        inputs, outputs: names of the free dimensions of each, by axis.
    """
    from optimum.exporters.onnx import export  # noqa: PLC0415 - not with transformers 5

    base = type(_optimum_config(head)(head.config))

    class HeadConfig(base):  # type: ignore[misc, valid-type]
        """The architecture's own config, with the head's inputs and outputs."""

        @property
        def inputs(self) -> Axes:
            return inputs

        @property
        def outputs(self) -> Axes:
            return outputs

        def generate_dummy_inputs(self, framework: str = "pt", **_: Any) -> dict[str, Any]:
            arrays = framework == "np"  # for a session, to see which dimensions are free
            return {name: value.numpy() if arrays else value for name, value in sample.items()}

    export(head, HeadConfig(head.config, task="feature-extraction"), path, opset=OPSET)


def through_dynamo(
    head: Head, path: Path, sample: dict[str, torch.Tensor], inputs: Axes, outputs: Axes
) -> None:
    """Export the graph that torch.export captures; arguments as `through_optimum`'s."""
    free = {
        name: {axis: torch.export.Dim.DYNAMIC for axis in axes} if name in sample else None
        for name, axes in inputs.items()
    }
    program = torch.onnx.export(
        head,
        kwargs=sample,
        dynamic_shapes=free,
        input_names=list(sample),
        output_names=[f"{name}/output" for name in outputs],
        opset_version=DYNAMO_OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # noqa: S101 - it is, with dynamo
    program.save(path)
    model = onnx.load(path)
    # A value inside may have the name that the output is to have, and the exporter does not look.
    names = {name: f"{name}/inside" for name in outputs} | {f"{name}/output": name for name in outputs}
    for node in model.graph.node:
        for side in (node.input, node.output):
            side[:] = [names.get(name, name) for name in side]
    for value in (*model.graph.output, *model.graph.value_info):
        value.name = names.get(value.name, value.name)
    onnx.save(model, path)


def _sample(feed: Feed, sizes: Mapping[str, int]) -> dict[str, NDArray]:
    """Inputs of other sizes: [rows, tokens], [rows, sequences, tokens] or [rows, 3, height, width].

    Each sequence keeps its first and its last token, since some heads look for the one that ends a text.
    """
    made = {}
    for name, array in feed.items():
        repeated = array
        for axis, size in enumerate({2: ("rows",), 3: ("rows", "sequences"), 4: ("rows",)}[array.ndim]):
            repeated = np.take(repeated, np.arange(sizes[size]) % array.shape[axis], axis=axis)
        made[name] = repeated
    if "attention_mask" not in made:
        return made
    lengths = made["attention_mask"].sum(axis=-1)
    inside = np.arange(sizes["tokens"] - 1)
    places = np.empty((*lengths.shape, sizes["tokens"]), np.int64)
    places[..., :-1] = np.where(inside == 0, 0, 1 + (inside - 1) % np.maximum(1, lengths - 2)[..., None])
    places[..., -1] = lengths - 1
    return {name: np.take_along_axis(array, places, axis=-1) for name, array in made.items()}


def _free(first: torch.Tensor, second: torch.Tensor) -> dict[int, str]:
    """Names of the dimensions in which two samples differ; no two of them have one size."""
    names = {size: name for name, size in _SAMPLES[0].items()}
    pairs = enumerate(zip(first.shape, second.shape, strict=True))
    return {axis: names[size] for axis, (size, other) in pairs if size != other}


def _state_sizes(path: Path, outputs: Mapping[str, torch.Tensor], free: Mapping[str, dict[int, str]]) -> None:
    """Write the fixed sizes of outputs into the graph: the tracer leaves them free after a reduction."""
    model = onnx.load(path)
    for value in model.graph.output:
        shape = [free[value.name].get(axis, size) for axis, size in enumerate(outputs[value.name].shape)]
        value.type.CopyFrom(helper.make_tensor_type_proto(value.type.tensor_type.elem_type, shape))
    onnx.save(model, path)
