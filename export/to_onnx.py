"""A checkpoint with the head of its task to one ONNX graph, through optimum or through PyTorch's dynamo.

What a task needs is part of the graph: pooling, normalization, probabilities, the names of labels. 384
floats a text cross the wire, not 384 a token.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from export.exported import Exported
from export.kinds import kind_of, registered_for
from export.loading import load, of_a_library
from export.opened import Opened
from export.source import Checkpoint
from export.tasks.heads import Head
from export.tasks.task import Task
from shoal.errors import ExportError

OPSET = 17
DYNAMO_OPSET = 18  # the lowest it writes without a conversion
# Sizes of two samples: what differs between their outputs is free, and its size tells which dimension it is.
_SAMPLES = ({"rows": 2, "sequences": 3, "tokens": 12}, {"rows": 5, "sequences": 4, "tokens": 15})
Feed = Mapping[str, NDArray]
Axes = dict[str, dict[int, str]]


def load_head(opened: Opened, task: Task) -> Head:
    """The PyTorch original in fp32, in evaluation mode: what every version is compared with.

    Raises:
        ExportError: transformers cannot load it, or it lacks what the task needs.
    """
    _check_architecture(opened.checkpoint, task)
    head = task.head(load(task.transformer(opened), opened.checkpoint, task.name), opened).eval()
    _check_inputs(head.backbone, opened, task)
    _check_vocabulary(head.backbone, opened)
    return head


def _check_architecture(checkpoint: Checkpoint, task: Task) -> None:
    """Refuse another task's head, whose weights may have names and shapes of the one that is wanted."""
    kind = kind_of(checkpoint)
    wanted = registered_for(task.auto)
    if wanted and kind.architecture not in wanted and kind.headed:
        raise ExportError(
            f"{checkpoint.id} is a {kind.architecture}, which has no head for {task.name}",
            hint="choose another --task, or a checkpoint that was trained for this one",
        )


def _check_inputs(backbone: PreTrainedModel, opened: Opened, task: Task) -> None:
    """Refuse a network that cannot leave padding out."""
    if task.layout is not None and "attention_mask" not in _parameters(backbone):
        raise ExportError(
            f"{opened.checkpoint.id} is a {type(backbone).__name__}, which takes no attention mask: padding"
            " would change its answers",
            hint="choose an architecture that takes one",
        )


def _check_vocabulary(backbone: PreTrainedModel, opened: Opened) -> None:
    """Refuse a tokenizer that is another model's: its tokens have no vectors."""
    if opened.tokenizer is None:
        return
    rows = getattr(backbone.get_input_embeddings(), "num_embeddings", None)
    if rows is not None and opened.tokenizer.vocab_size > rows:
        raise ExportError(
            f"the tokenizer of {opened.checkpoint.id} has {opened.tokenizer.vocab_size} tokens and the model"
            f" vectors for {rows}",
            hint="is it the tokenizer that the model was trained with?",
        )


def _parameters(backbone: PreTrainedModel) -> set[str]:
    return set(inspect.signature(backbone.forward).parameters)


def network_inputs(head: Head, task: Task, opened: Opened) -> tuple[str, ...]:
    """Names of what the network reads of the features.

    Token types are left out where they are all 0: that is what a network takes where there are none.
    """
    if task.layout is None:
        return ("pixel_values",)
    assert opened.tokenizer is not None  # noqa: S101 - a task over texts
    told = [opened.tokenizer("a")] + ([opened.tokenizer("a", "b")] if task.pairs else [])
    types = any(any(entry.get("token_type_ids", ())) for entry in told)
    typed = types and "token_type_ids" in _parameters(head.backbone)
    sentence = getattr(head, "sentence", None)
    prompts = sentence is not None and not sentence.include_prompt
    return (
        *("input_ids", "attention_mask"),
        *(("token_type_ids",) if typed else ()),
        *(("pooling_mask",) if prompts else ()),
    )


# Tokens of an input at most, where neither the checkpoint nor its positions say how many.
LONGEST = 4096
# What modules call their table of position vectors.
_TABLES = ("position_embeddings", "position_embedding", "embed_positions", "wpe")


def positions_of(backbone: PreTrainedModel) -> int | None:
    """Tokens of an input at most, by the tables of position vectors that a model adds; None: it has none.

    Families of RoBERTa keep the first positions for padding, they count from the padding's index on; those of
    BART keep two.
    """
    found = []
    for module in backbone.modules():
        for table in (getattr(module, name, None) for name in _TABLES):
            if isinstance(table, torch.nn.Embedding):
                padding = getattr(module, "padding_idx", None)
                kept = padding + 1 if isinstance(padding, int) else 0
                found.append(table.num_embeddings - int(getattr(table, "offset", kept)))
    return min(found, default=None)


def to_onnx(head: Head, path: Path, feed: Feed) -> Exported:
    """Export by `exporter_of(head)`.

    Args:
        feed: inputs by name, of at least one row; all dimensions but those of a picture become free.

    Raises:
        ExportError: neither exporter can follow this architecture.
    """
    first, second = (
        {name: torch.from_numpy(_sized(array, sizes)) for name, array in feed.items()} for sizes in _SAMPLES
    )
    inputs = {name: _free(first[name], second[name]) for name in first}
    with torch.inference_mode():
        results = [head(**sample) for sample in (first, second)]
    outputs = {name: _free(*(result[name] for result in results)) for name in head.outputs}
    exporters = {"optimum": through_optimum, "dynamo": through_dynamo}
    with of_a_library(f"the architecture {head.config.model_type} cannot be exported"):
        exporters[exporter_of(head)](head, path, first, inputs, outputs)
    _state_sizes(path, {name: result for name, result in results[0].items()}, outputs)
    return Exported.read(path)


def exporter_of(head: Head) -> str:
    """`optimum`, where it is installed and knows the architecture, and so patches what a tracer cannot
    follow; else `dynamo`, PyTorch's own exporter, which is also the one for transformers 5."""
    return "optimum" if _optimum_config(head) is not None else "dynamo"


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

    logging.getLogger("optimum").setLevel(logging.ERROR)
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
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
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


def _sized(array: NDArray, sizes: Mapping[str, int]) -> NDArray:
    """An input of [rows, tokens], [rows, sequences, tokens] or [rows, 3, height, width] with other sizes."""
    axes = {2: ("rows", "tokens"), 3: ("rows", "sequences", "tokens"), 4: ("rows",)}[array.ndim]
    for axis, name in enumerate(axes):
        array = np.take(array, np.arange(sizes[name]) % array.shape[axis], axis=axis)
    return array


def _free(first: torch.Tensor, second: torch.Tensor) -> dict[int, str]:
    """Names of the dimensions in which two samples differ; no two of them have one size."""
    names = {size: name for name, size in _SAMPLES[0].items()}
    pairs = enumerate(zip(first.shape, second.shape, strict=True))
    return {axis: names[size] for axis, (size, other) in pairs if size != other}


def _state_sizes(path: Path, outputs: Mapping[str, torch.Tensor], free: Mapping[str, dict[int, str]]) -> None:
    """Write the fixed sizes of outputs into the graph: the tracer leaves them free after a reduction."""
    model = onnx.load(path)
    for value in model.graph.output:
        axes = value.type.tensor_type.shape
        del axes.dim[:]
        for axis, size in enumerate(outputs[value.name].shape):
            dim = axes.dim.add()
            if axis in free[value.name]:
                dim.dim_param = free[value.name][axis]
            else:
                dim.dim_value = size
    onnx.save(model, path)


def finish(exported: Exported, path: Path, head: Head, task: Task, opened: Opened, top_k: int) -> Exported:
    """Add what PyTorch cannot express to a graph, after its precision was chosen: labels."""
    model = onnx.load(exported.path)
    task.finish(model, head, opened, top_k)
    onnx.save(model, path)
    return Exported.read(path)
