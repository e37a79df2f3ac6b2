"""A small builder of ONNX graphs, and what flows through one: blocks of columns.

All arithmetic is in float64, as it is in scikit-learn. A table is a tuple of blocks, in the order of its
columns; what a bag of words makes stays sparse for as long as nobody asks for single columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from shoal.errors import ExportError

# Wider than this, a bag of words is not spread out for an estimator that reads single columns: 256 rows of
# it would take more than 250 MB.
MOST_SPREAD = 1 << 17
ML = "ai.onnx.ml"
OPSETS = {"": 21, ML: 3}
# What compares a number with another, and what makes numbers whose last bits depend on an order of summation
# or on a library: where these stand before those, a number on an edge may fall on either side.
_DECIDES = {
    "TreeEnsembleRegressor",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Floor",
    "Ceil",
    "Round",
}
_ROUNDED = {"MatMul", "ReduceSum", "Sum", "Log", "Exp", "Pow", "Tanh", "Sin", "Cos", "Softmax", "Sigmoid"}


class Unsupported(ExportError):
    """A part of an estimator has no conversion; the message names it, the hint is a way out."""


@dataclass(frozen=True)
class Dense:
    """Columns as DOUBLE [batch, width].

    Attributes:
        texts: where the columns hold text, what their numbers stand for: column -> its texts by number.
        held: whether the original holds them as a sparse matrix, in which a zero is what is not there.
    """

    name: str
    width: int
    texts: tuple[tuple[str, ...] | None, ...] = ()
    held: bool = False

    def vocabulary(self, column: int) -> tuple[str, ...] | None:
        """What the numbers of a column stand for; None: for themselves."""
        return self.texts[column] if self.texts else None


@dataclass(frozen=True)
class Sparse:
    """Columns of which a row has few: `indices` INT64 and `values` DOUBLE, both [batch, entries].

    An index that is `width` stands for no entry.

    Attributes:
        held: see `Dense`; here the form tells nothing of it.
    """

    indices: str
    values: str
    width: int
    held: bool = True


@dataclass(frozen=True)
class Document:
    """A column of texts for vectorizers: by its name among the estimator's columns."""

    column: str
    width: int = 1


Block = Dense | Sparse | Document
Table = tuple[Block, ...]


class Graph:
    """Nodes, constants and inputs of an ONNX graph that is being made."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.versions: dict[str, int] = {}
        self._constants: dict[Any, str] = {}
        self._whole: set[str] = set()
        self._count = 0

    def name(self) -> str:
        """A new name. No input has one like it: `export.tabular.columns` lets no colon through."""
        self._count += 1
        return f":{self._count}"

    def input(self, name: str, kind: int, width: int | str) -> str:
        """An input [batch, width]; a name instead of a width is any width."""
        self.inputs.append(helper.make_tensor_value_info(name, kind, ["batch", width]))
        return name

    def constant(self, value: ArrayLike, dtype: Any = np.float64) -> str:
        """A constant; equal ones are kept once."""
        array = np.asarray(value, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes() if array.dtype != object else tuple(array.flat))
        if key not in self._constants:
            self._constants[key] = self.name()
            if array.dtype == object:
                texts = [text.encode() for text in array.flat]
                made = helper.make_tensor(self._constants[key], TensorProto.STRING, array.shape, texts)
            else:
                made = numpy_helper.from_array(array, self._constants[key])
            self.initializers.append(made)
        return self._constants[key]

    def op(self, kind: str, *inputs: ArrayLike, domain: str = "", **attributes: Any) -> str:
        """A node of one output, whose name is returned; an input that is no name becomes a constant."""
        (name,) = self.ops(kind, *inputs, domain=domain, **attributes)
        return name

    def ops(
        self, kind: str, *inputs: ArrayLike, count: int = 1, domain: str = "", **attributes: Any
    ) -> list[str]:
        """A node of several outputs."""
        given = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        names = [self.name() for _ in range(count)]
        self.nodes.append(helper.make_node(kind, given, names, domain=domain, **attributes))
        return names

    def cast(self, value: str, kind: int) -> str:
        """The same numbers as another type."""
        return self.op("Cast", value, to=kind)

    def where(self, condition: str, yes: str | float, no: str | float) -> str:
        """Element by element."""
        return self.op("Where", condition, yes, no)

    def pick(self, value: str, columns: Sequence[int]) -> str:
        """Some of the columns."""
        return self.op("Gather", value, self.constant(columns, np.int64), axis=1)

    def total(self, value: str, axis: int = 1, *, keep: bool = True, whole: bool = False) -> str:
        """The sum along an axis.

        Args:
            whole: of whole numbers, so that no order of summation changes it.
        """
        made = self.op("ReduceSum", value, self.constant([axis], np.int64), keepdims=int(keep))
        if whole:
            self._whole.add(made)
        return made

    def both(self, positive: str) -> str:
        """The probability [batch, 1] of the second of two classes -> of both."""
        return self.op("Concat", self.op("Sub", 1.0, positive), positive, axis=1)

    def probabilities(self, raw: str, classes: int) -> str:
        """Log-odds [batch, 1] of two classes, or [batch, classes] of more -> their probabilities."""
        if classes > 2:
            return self.op("Softmax", raw, axis=1)
        return self.op("Concat", *(self.op("Sigmoid", side) for side in (self.op("Neg", raw), raw)), axis=1)

    def blurred(self) -> bool:
        """Whether anything is decided by numbers whose last bits are not the original's."""
        makers = {name: node for node in self.nodes for name in node.output}
        pending = [name for node in self.nodes if node.op_type in _DECIDES for name in node.input]
        seen: set[str] = set()
        while pending:
            name = pending.pop()
            if name in seen or name not in makers:
                continue
            seen.add(name)
            if makers[name].op_type in _ROUNDED and name not in self._whole:
                return True
            pending += makers[name].input
        return False

    def linear(self, table: Table, weights: NDArray, intercept: ArrayLike) -> str:
        """`table` [batch, n] x `weights` [n, m] + `intercept` [m] -> [batch, m]."""
        weights = np.asarray(weights, dtype=np.float64)
        start, made = 0, ""
        for block in table:
            part = weights[start : start + block.width]
            start += block.width
            if isinstance(block, Sparse):
                rows = self.constant(np.vstack([part, np.zeros((1, part.shape[1]))]))
                taken = self.op("Gather", rows, block.indices, axis=0)
                column = self.op("Unsqueeze", block.values, self.constant([2], np.int64))
                product = self.total(self.op("Mul", taken, column), keep=False)
            else:
                product = self.op("MatMul", numbers(block).name, part)
            made = self.op("Add", made, product) if made else product
        return self.op("Add", made, np.ravel(intercept))

    def model(self, outputs: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """The finished graph, without nodes that nobody reads."""
        wanted = {value.name for value in outputs}
        alive: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if wanted.intersection(node.output):
                alive.append(node)
                wanted.update(node.input)
        constants = [entry for entry in self.initializers if entry.name in wanted]
        made = helper.make_graph(alive[::-1], "estimator", self.inputs, list(outputs), constants)
        versions = self.versions | OPSETS
        used = {"", *(node.domain for node in alive)}
        opsets = [helper.make_opsetid(domain, versions[domain]) for domain in sorted(used)]
        return helper.make_model(made, opset_imports=opsets, producer_name="shoal")


def width(table: Table) -> int:
    """How many columns it has."""
    return sum(block.width for block in table)


def held(table: Table) -> bool:
    """Whether the original holds a table as a sparse matrix: it does where it holds a part of it so."""
    return any(not isinstance(block, Document) and block.held for block in table)


def as_held(table: Table, sparse: bool) -> Table:
    """A table that the original holds as a sparse matrix, or does not."""
    return tuple(block if isinstance(block, Document) else replace(block, held=sparse) for block in table)


def numbers(block: Block) -> Dense:
    """A block whose numbers are numbers.

    Raises:
        Unsupported: they stand for texts.
    """
    if not isinstance(block, Dense) or any(entry is not None for entry in block.texts):
        raise Unsupported(
            "a column of text reaches a step that reads numbers", hint="encode it with OneHotEncoder"
        )
    return block


def dense(graph: Graph, table: Table) -> Dense:
    """The whole table as one block of numbers or of encoded texts.

    Raises:
        Unsupported: it is too wide, or holds texts that no vectorizer has read.
    """
    if len(table) == 1 and isinstance(table[0], Dense):
        return table[0]
    names: list[str] = []
    texts: list[tuple[str, ...] | None] = []
    for block in table:
        if isinstance(block, Document):
            raise Unsupported(
                "a column of texts reaches a step that reads numbers", hint="TfidfVectorizer reads it"
            )
        made = block if isinstance(block, Dense) else spread(graph, block)
        names.append(made.name)
        texts += made.texts or [None] * made.width
    if not names:
        raise Unsupported("a step gets no columns at all", hint="leave it out of the pipeline")
    kept = tuple(texts) if any(entry is not None for entry in texts) else ()
    name = graph.op("Concat", *names, axis=1) if len(names) > 1 else names[0]
    return Dense(name, len(texts), kept, held(table))


def matrix(graph: Graph, table: Table) -> str:
    """The whole table as numbers, DOUBLE [batch, width].

    Raises:
        Unsupported: see `dense`; or a column holds texts.
    """
    return numbers(dense(graph, table)).name


def spread(graph: Graph, block: Sparse) -> Dense:
    """Every column of a bag of words, or of other columns of which a row has few.

    Raises:
        Unsupported: there are too many.
    """
    if block.width > MOST_SPREAD:
        raise Unsupported(
            f"{block.width} columns of text features reach a step that reads each of them",
            hint="end in a linear model, or let the vectorizer make fewer: max_features=..., n_features=...",
        )
    rows = graph.op("Shape", block.indices, end=1)
    shape = graph.op("Concat", rows, graph.constant([block.width + 1], np.int64), axis=0)
    empty = graph.op("ConstantOfShape", shape, value=numpy_helper.from_array(np.zeros(1)))
    full = graph.op("ScatterElements", empty, block.indices, block.values, axis=1, reduction="add")
    ends = [graph.constant([number], np.int64) for number in (0, block.width, 1)]
    return Dense(graph.op("Slice", full, *ends), block.width)


def take(graph: Graph, table: Table, columns: Sequence[int]) -> Table:
    """Some of a table's columns, in the order asked for."""
    starts = np.cumsum([0, *(block.width for block in table)])
    made: list[Block] = []
    pending = [int(column) for column in columns]
    while pending:
        place = int(np.searchsorted(starts, pending[0], side="right")) - 1
        run = []
        while pending and starts[place] <= pending[0] < starts[place + 1]:
            run.append(pending.pop(0) - int(starts[place]))
        made.append(_taken(graph, table[place], run))
    return tuple(made)


def _taken(graph: Graph, block: Block, columns: list[int]) -> Block:
    if columns == list(range(block.width)):
        return block
    if isinstance(block, Sparse):
        # A column that stays gets its new number, every other one that of no entry.
        moved = np.full(block.width + 1, len(columns), dtype=np.int64)
        moved[columns] = np.arange(len(columns))
        indices = graph.op("Gather", graph.constant(moved, np.int64), block.indices, axis=0)
        return Sparse(indices, block.values, len(columns), block.held)
    if isinstance(block, Document):
        raise Unsupported("a vectorizer reads several columns", hint="give each column its own")
    texts = tuple(block.vocabulary(column) for column in columns) if block.texts else ()
    return Dense(graph.pick(block.name, columns), len(columns), texts, block.held)


def apart(graph: Graph, block: Dense) -> list[Dense]:
    """Each column as a block of its own."""
    if block.width == 1:
        return [block]
    return [
        Dense(graph.pick(block.name, [column]), 1, (block.vocabulary(column),) if block.texts else ())
        for column in range(block.width)
    ]
