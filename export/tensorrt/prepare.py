"""A graph made ready for TensorRT: in fp16, and without strings.

In a strongly typed network TensorRT computes in the types of the graph, so precision is chosen here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx.helper import get_node_attr_value
from onnx.utils import Extractor
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from export.exported import Exported
from shoal.errors import ExportError

# Sums over many values, exponentials and squares: in fp16 they lose digits or pass 65,504.
IN_FP32 = ("Softmax", "LogSoftmax", "LayerNormalization", "ReduceSum", "ReduceMean", "ReduceL2", "Pow")
FLOAT = onnx.TensorProto.FLOAT
_PRODUCTS = ("MatMul", "Gemm", "Conv")


def to_fp16(exported: Exported, path: Path) -> Exported:
    """Matrix products and what lies between them in fp16; inputs and outputs keep their names and types.

    What stays fp32: softmax, normalization and sums, and everything behind the last product (pooling, the
    norm of a vector, the softmax of a head), which takes no time to speak of.

    Args:
        exported: the plain graph in fp32, smaller than 2 GB.
        path: where the result is written.
    """
    model = onnx.load(exported.path)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"  # the converter knows nodes by name
    model = convert_float_to_float16(
        model,
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *IN_FP32],
        node_block_list=_behind_last_product(model),
    )
    _drop_round_trips(model)
    onnx.save(model, path)
    return Exported.read(path)


def _behind_last_product(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes from which no product is reached."""
    before: set[str] = set()  # values that some product depends on
    behind = []
    for node in reversed(model.graph.node):
        if node.op_type in _PRODUCTS or before.intersection(node.output):
            before.update(node.input)
        else:
            behind.append(node.name)
    return behind


def _drop_round_trips(model: onnx.ModelProto) -> None:
    """Let fp32 nodes read each other directly.

    The converter puts a cast to fp16 behind every node it leaves in fp32 and one back before the next, and
    repeats the latter, under one name, for each reader.
    """
    graph = model.graph
    unique = {node.output[0]: node for node in graph.node}
    down = {name: node for name, node in unique.items() if node.name.endswith("_cast_to_fp16_node")}
    outputs = {value.name for value in graph.output}
    renamed: dict[str, str] = {}
    for name, node in list(unique.items()):
        if node.op_type == "Cast" and get_node_attr_value(node, "to") == FLOAT and node.input[0] in down:
            source = down[node.input[0]].input[0]
            renamed[source if name in outputs else name] = name if name in outputs else source
            del unique[name]
    for node in unique.values():
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    kept = list(unique.values())
    del graph.node[:]
    graph.node.extend(kept)
    del graph.value_info[:]  # of the types before
    cleaned = OnnxModel(model)
    cleaned.prune_graph()
    cleaned.topological_sort()


@dataclass(frozen=True)
class Parts:
    """A graph cut where strings begin.

    Attributes:
        numeric: the part for TensorRT.
        tail: from the outputs of `numeric` to the outputs of strings; None where there are no strings.
    """

    numeric: onnx.ModelProto
    tail: onnx.ModelProto | None


def numeric_part(model: onnx.ModelProto) -> Parts:
    """Cut off what makes or reads strings, such as the lookup of a class's name.

    Raises:
        ExportError: strings are the graph's input, so nothing numeric stands on its own.
    """
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = inferred.graph
    strings = set(_string_values(graph))
    if named := [value.name for value in graph.input if value.name in strings]:
        raise ExportError(f"input {', '.join(named)} is of strings, which TensorRT does not know")
    tail_values: set[str] = set()
    cut: list[str] = []
    for node in graph.node:  # in the order of computation, as ONNX demands
        if strings.intersection((*node.input, *node.output)) or tail_values.intersection(node.input):
            tail_values.update(node.output)
            cut.extend(node.input)
    if not tail_values:
        return Parts(model, None)
    constants = {tensor.name for tensor in graph.initializer}
    outputs = [value.name for value in graph.output]
    known = {value.name for value in (*graph.value_info, *graph.input, *graph.output)}
    border = [name for name in dict.fromkeys(cut) if name and name not in constants | tail_values]
    border = [name for name in border if name not in strings]
    if unknown := [name for name in border if name not in known]:
        raise ExportError(f"the type of {', '.join(unknown)}, where strings begin, cannot be inferred")
    inputs = [value.name for value in graph.input]
    numeric = [name for name in outputs if name not in tail_values]
    numeric += [name for name in border if name not in (*numeric, *inputs)]
    extractor = Extractor(inferred)
    return Parts(
        extractor.extract_model(inputs, numeric),
        extractor.extract_model(border, [name for name in outputs if name in tail_values]),
    )


def _string_values(graph: onnx.GraphProto) -> Iterable[str]:
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == onnx.TensorProto.STRING:
            yield value.name
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.STRING:
            yield tensor.name
