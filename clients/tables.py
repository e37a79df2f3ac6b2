"""Rows of a table as a model's inputs, by the types that its metadata state. No transport, no pandas.

A table is columns by name (a mapping, or a data frame of any library whose columns are sequences), or a
matrix. Whatever stands for a missing value is one: None, NaN, pandas' NA and NaT, what a masked array masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.errors import BadInput
from clients.vocabulary import Arrays, Table
from shoal.wire import FEATURES, wire_name

_NUMBERS: dict[str, Any] = {"FP32": np.float32, "FP64": np.float64}
_ABSENT = ("NAType", "NaTType", "MaskedConstant")  # of pandas and numpy, known by name


def rows_of(table: Table, kinds: Mapping[str, str]) -> Arrays:
    """A table as inputs: [rows, 1] for each column by name, or one matrix `features` [rows, columns].

    Numbers become FP32 or FP64, booleans 0 and 1, text BYTES. A missing value is NaN, or the empty text.

    Args:
        kinds: input name -> datatype, as the model's metadata say.

    Raises:
        BadInput: columns are missing, unknown, empty or of different lengths; or a value is not what its
            column holds. The message names row and column.
    """
    columns = _by_name(table)
    if set(kinds) == {FEATURES}:
        if columns is not None and set(columns) == {FEATURES}:
            table, columns = columns[FEATURES], None
        if isinstance(table, Mapping):
            raise BadInput(
                "the model reads a matrix of numbers, and the table has columns by name",
                hint="[[...], ...], columns in the order in which the model was trained",
            )
        if columns is not None and list(columns) != [str(index) for index in range(len(columns))]:
            raise BadInput(
                "the model reads a matrix, which does not tell whether columns with names are in order",
                hint="table.to_numpy(), columns in the order in which the model was trained",
            )
        kind = kinds[FEATURES]
        return {FEATURES: _matrix(table, kind) if columns is None else _joined(columns, kind)}
    if columns is None:
        raise BadInput(f"the model reads columns by name: {', '.join(kinds)}", hint="{'name': [...], ...}")
    given = {}
    for name, values in columns.items():
        wire = name if name in kinds else wire_name(name)
        if wire in given:
            raise BadInput(f"the table has two columns for {wire}", hint="rename or drop one of them")
        given[wire] = values
    if missing := [name for name in kinds if name not in given]:
        raise BadInput(f"the table lacks {', '.join(missing)}", hint=f"the model reads {', '.join(kinds)}")
    if unknown := [name for name in given if name not in kinds]:
        raise BadInput(
            f"the model does not read {', '.join(unknown)}", hint=f"the model reads {', '.join(kinds)}"
        )
    lists = {name: _sequence(name, given[name]) for name in kinds}
    lengths = {len(values) for values in lists.values()}
    if len(lengths) != 1 or not lengths.pop():
        raise BadInput("the columns of the table are empty or have different lengths")
    return {name: _column(name, values, kinds[name])[:, None] for name, values in lists.items()}


def _by_name(table: Any) -> dict[str, Any] | None:
    """The columns of a mapping or a data frame; None: it has none."""
    names = list(table) if isinstance(table, Mapping) else getattr(table, "columns", None)
    if names is None:
        return None
    texts = [str(name) for name in names]
    if len(set(texts)) < len(texts):
        twice = next(name for name in texts if texts.count(name) > 1)
        raise BadInput(f"the table has two columns called {twice}", hint="rename or drop one of them")
    return {str(name): table[name] for name in names}


def _matrix(table: Any, kind: str) -> NDArray:
    if isinstance(table, np.ma.MaskedArray):
        table = np.ma.filled(table.astype(np.float64), np.nan)
    try:
        plain = np.asarray(table)
    except ValueError:  # rows of different lengths
        plain = np.empty(0, dtype=object)
    table = plain if plain.dtype.kind in "fiub" else _rows(table)
    if table.ndim != 2 or not table.size:
        raise BadInput(f"a table of shape {table.shape}", hint="numbers, [rows, features]")
    return _as_kind(table, kind, lambda row, column: f"row {row}, column {column}")


def _rows(table: Any) -> NDArray[np.float64]:
    """Rows of Python's own values, or of anything that a matrix of objects holds."""
    try:
        rows = [list(row) for row in table]
    except TypeError:
        raise BadInput("the table is no sequence of rows", hint="numbers, [rows, features]") from None
    if len({len(row) for row in rows}) > 1:
        raise BadInput("the rows of the table have different lengths")
    made = [
        [_number(value, f"row {index}, column {place}") for place, value in enumerate(row)]
        for index, row in enumerate(rows)
    ]
    return np.array(made, dtype=np.float64)


def _joined(columns: Mapping[str, Any], kind: str) -> NDArray:
    """The columns of a data frame side by side."""
    lists = [_column(name, _sequence(name, values), kind) for name, values in columns.items()]
    if not lists or not len(lists[0]):
        raise BadInput("the table is empty")
    return np.column_stack(lists)


def _sequence(name: str, values: Any) -> Any:
    """A column as an array of numbers, where it is one, or a list."""
    if isinstance(values, str | bytes) or not hasattr(values, "__len__") or not hasattr(values, "__iter__"):
        raise BadInput(f"column {name} is {type(values).__name__}, not a sequence of values")
    if isinstance(values, np.ma.MaskedArray):
        return [None if value is np.ma.masked else value for value in values.ravel()]
    if isinstance(values, np.ndarray):
        if values.ndim != 1 and values.shape[1:] != (1,):
            raise BadInput(f"column {name} has the shape {values.shape}", hint="[rows]")
        values = values.reshape(-1)
        return values if values.dtype.kind in "fiub" else values.tolist()
    return list(values)


def _column(name: str, values: Sequence[Any] | NDArray, kind: str) -> NDArray:
    if kind == "BYTES":
        made = np.empty(len(values), dtype=object)
        for row, value in enumerate(values):
            made[row] = _text(value, f"row {row}, column {name}")
        return made
    if not isinstance(values, np.ndarray):
        values = np.array([_number(value, f"row {row}, column {name}") for row, value in enumerate(values)])
    return _as_kind(values, kind, lambda row, _: f"row {row}, column {name}")


def _as_kind(values: NDArray, kind: str, place: Any) -> NDArray:
    if kind not in _NUMBERS:
        raise BadInput(f"the model reads {kind}, which a table does not hold")
    with np.errstate(over="ignore"):
        made = values.astype(_NUMBERS[kind])
    beyond = np.isinf(made) & np.isfinite(values)
    if beyond.any():
        row, column = np.argwhere(beyond.reshape(len(values), -1))[0]
        number = values.reshape(len(values), -1)[row, column]
        raise BadInput(f"{place(row, column)}: {number} is beyond what {kind} holds")
    return made


def _absent(value: Any) -> bool:
    return value is None or type(value).__name__ in _ABSENT


def _number(value: Any, place: str) -> float:
    if _absent(value):
        return float("nan")
    if isinstance(value, str | bytes):
        raise BadInput(f"{place}: {value!r} is text, and the model reads a number there")
    try:
        if isinstance(value, complex | np.complexfloating):  # of which float() would leave a part out
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise BadInput(f"{place}: {value!r} is not a number") from None


def _text(value: Any, place: str) -> bytes:
    if _absent(value) or (isinstance(value, float) and value != value):  # noqa: PLR0124 - NaN
        return b""
    if isinstance(value, bytes):
        try:
            value.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = f"byte {error.start} is 0x{value[error.start]:02x}"
            raise BadInput(f"{place}: {value!r} is not UTF-8: {byte}") from None
        return value
    if not isinstance(value, str):
        raise BadInput(
            f"{place}: {value!r} is {type(value).__name__}, and the model reads text there",
            hint="write it as the categories were written in training, e.g. str(value)",
        )
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInput(f"{place}: {value!r} cannot be encoded as UTF-8: {error.reason}") from error
