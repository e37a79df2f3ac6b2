"""A graph being rewritten: constants by name, who makes and who reads each value, nodes to add or drop."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from graphlib import TopologicalSorter
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

CONTRIB = "com.microsoft"
_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


class Graph:
    """See the module."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        _constants_to_initializers(model.graph)
        _read_constants_themselves(model.graph)
        self.constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
        self.producer = {name: node for node in model.graph.node for name in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in _read_by(node):
                self.consumers[name].append(node)
        self._added: list[onnx.NodeProto] = []
        self._dropped: set[str] = set()  # a value has one producer, so its name identifies the node

    def constant(self, name: str, value: NDArray | np.generic) -> str:
        """Add an initializer once; returns its name."""
        if name not in self.constants:
            self.constants[name] = np.asarray(value)
            self.model.graph.initializer.append(numpy_helper.from_array(self.constants[name], name))
        return name

    def replace(self, name: str, value: NDArray) -> None:
        """Give an initializer another value."""
        self.constants[name] = value
        (initializer,) = (entry for entry in self.model.graph.initializer if entry.name == name)
        initializer.CopyFrom(numpy_helper.from_array(value, name))

    def add(
        self, op: str, inputs: Sequence[str], output: str, *, domain: str = "", **attributes: object
    ) -> str:
        """Add a node with one output; returns the output's name."""
        self._added.append(helper.make_node(op, inputs, [output], name=output, domain=domain, **attributes))
        return output

    @property
    def made(self) -> set[str]:
        """Names of the values of nodes that were added."""
        return {name for node in self._added for name in node.output}

    def add_many(self, op: str, inputs: Sequence[str], outputs: list[str], **attributes: object) -> list[str]:
        """Add a node with several outputs; returns their names."""
        self._added.append(helper.make_node(op, inputs, outputs, name=outputs[0], **attributes))
        return outputs

    def reduce(self, op: str, value: str, output: str) -> str:
        """Add a reduction over the last axis, which is kept; returns the output's name.

        Until opset 17 the axes are an attribute, from then on an input.
        """
        if max(e.version for e in self.model.opset_import if e.domain in ("", "ai.onnx")) < 18:
            return self.add(op, [value], output, axes=[-1], keepdims=1)
        axes = self.constant("shoal/last_axis", np.array([-1], np.int64))
        return self.add(op, [value, axes], output, keepdims=1)

    def take_bias(self, product: onnx.NodeProto) -> tuple[NDArray[np.float32] | None, str]:
        """Drop a product and the bias added to it. Returns the bias [columns], and the name of the sum.

        The bias stands in an Add behind the product, or in the fourth input of the attention that reads
        it, as [query, key, value].
        """
        (output,) = product.output
        self._dropped.add(output)
        readers = self.consumers[output]
        if len(readers) != 1:
            return None, output
        (reader,) = readers
        if reader.op_type == "Add":
            constants = [name for name in reader.input if name in self.constants]
            if constants and self.constants[constants[0]].ndim == 1:
                self._dropped.add(reader.output[0])
                return self.constants[constants[0]], reader.output[0]
        if reader.op_type == "MultiHeadAttention" and len(reader.input) > 3 and reader.input[3]:
            position = list(reader.input[:3]).index(output)
            return np.split(self.constants[reader.input[3]], 3)[position], output
        return None, output

    def keep_residual_sums_apart(self) -> None:
        """Write the Add before each LayerNormalization as Sum.

        ONNX Runtime fuses Add + LayerNormalization at load; on a CPU the fused kernel
        (SkipLayerNormalization) is three times slower than the two it replaces.
        """
        for name, readers in self.consumers.items():
            node = self.maker(name)
            normalized = any(reader.op_type == "LayerNormalization" for reader in readers)
            if node.op_type == "Add" and normalized:
                node.op_type = "Sum"

    def maker(self, name: str) -> onnx.NodeProto:
        """The node that makes a value; an empty one of what no node makes."""
        return self.producer.get(name, onnx.NodeProto())

    def is_product(self, node: onnx.NodeProto) -> bool:
        """Whether a node multiplies an activation with a constant matrix."""
        return node.op_type == "MatMul" and node.input[1] in self.constants

    def products(self) -> dict[str, list[onnx.NodeProto]]:
        """The products with a constant matrix, by the activation they read."""
        groups: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.model.graph.node:
            if self.is_product(node) and self.constants[node.input[1]].ndim == 2:
                groups[node.input[0]].append(node)
        return dict(groups)

    def table(self, gather: onnx.NodeProto) -> NDArray[np.float32]:
        """The constant [tokens, width] that a node takes vectors from; a tied one behind its Transpose."""
        name = gather.input[0]
        tied = self.producer.get(name)
        return self.constants[name] if tied is None else self.constants[tied.input[0]].T

    def drop(self, node: onnx.NodeProto) -> None:
        """Leave a node out."""
        self._dropped.update(name for name in node.output if name)

    def finish(self) -> onnx.ModelProto:
        """Put the nodes in order: without those dropped, those nobody reads, and their weights."""
        graph = self.model.graph
        nodes = [node for node in graph.node if not self._dropped.intersection(node.output)]
        for node in nodes:  # an attention whose biases were taken, all three
            if node.op_type == "MultiHeadAttention" and self._dropped.issuperset(node.input[:3]):
                node.input[3] = ""
        del graph.node[:]
        wanted = {value.name for value in graph.output}
        graph.node.extend(_in_order(nodes + self._added, wanted))
        used = {name for node in graph.node for name in _read_by(node)}
        used.update(value.name for value in graph.output)
        weights = [weight for weight in graph.initializer if weight.name in used]
        del graph.initializer[:]
        graph.initializer.extend(weights)
        if not any(entry.domain == CONTRIB for entry in self.model.opset_import):
            self.model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
        return self.model

    def save(self, path: Path) -> None:
        """Finish, and write the file."""
        onnx.save(self.finish(), path)


def _in_order(nodes: Sequence[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    """The nodes from which a wanted value can be reached, each behind those whose values it reads."""
    producer = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    behind: dict[int, list[int]] = {}
    pending = [producer[name] for name in wanted if name in producer]
    while pending:
        index = pending.pop()
        if index not in behind:
            behind[index] = [producer[name] for name in _read_by(nodes[index]) if name in producer]
            pending += behind[index]
    order = TopologicalSorter({index: behind[index] for index in sorted(behind)})
    return [nodes[index] for index in order.static_order()]


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Names of the values that a node reads, itself or in the branches of an `If` or the body of a `Loop`."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs) if attribute.type in _GRAPHS else ():
            own = {name for child in inner.node for name in child.output}
            own.update(value.name for value in (*inner.input, *inner.initializer))
            for child in inner.node:
                yield from (name for name in _read_by(child) if name not in own)
            # A branch may hand an outer value on as it is.
            yield from (value.name for value in inner.output if value.name not in own)


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Tensors that the tracer wrote as `Constant` nodes, where every reader looks for them."""
    kept = []
    for node in graph.node:
        tensors = [a.t for a in node.attribute if a.name == "value"] if node.op_type == "Constant" else []
        if not tensors:
            kept.append(node)
        for tensor in tensors:
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name = node.output[0]
    del graph.node[:]
    graph.node.extend(kept)


def _read_constants_themselves(graph: onnx.GraphProto) -> None:
    """Let nodes read an initializer and not its `Identity`, as which the tracer writes an equal one."""
    originals = {initializer.name: initializer.name for initializer in graph.initializer}
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = originals.get(name, name)
        if node.op_type == "Identity" and node.input[0] in originals:
            originals[node.output[0]] = node.input[0]
