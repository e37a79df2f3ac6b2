"""Tables as inputs, by the types that a model states: what stands for missing, and what is wrong, by row."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clients import BadInput
from clients.tables import rows_of

NAMED = {"city": "BYTES", "age": "FP32", "fare_paid": "FP64"}
NAN = float("nan")


def table(**columns: Any) -> dict[str, Any]:
    return {"city": ["Rome"], "age": [30.0], "fare_paid": [1.5], **columns}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([None], [NAN]),
        ([NAN], [NAN]),
        ([pd.NA], [NAN]),
        ([pd.NaT], [NAN]),
        ([np.float64(2.5)], [2.5]),
        ([np.int8(3)], [3.0]),
        ([True, np.bool_(False)], [1.0, 0.0]),
        ([1, 2.5, None], [1.0, 2.5, NAN]),
        ([Decimal("1.5")], [1.5]),
        (np.array([1, 2]), [1.0, 2.0]),
        (np.array([[1], [2]]), [1.0, 2.0]),
        (np.array([True, False]), [1.0, 0.0]),
        (np.array([1, None], dtype=object), [1.0, NAN]),
        (np.ma.masked_array([1.0, 2.0], mask=[False, True]), [1.0, NAN]),
        (pd.Series([1, None]), [1.0, NAN]),
        (pd.Series([1, None], dtype="Int64"), [1.0, NAN]),
        (pd.Series([True, None], dtype="boolean"), [1.0, NAN]),
        ((1, 2), [1.0, 2.0]),
        (range(2), [0.0, 1.0]),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["age", "fare_paid"])
def test_numbers(name: str, given: Any, expected: list[float]) -> None:
    rows = {"city": ["Rome"] * len(expected), "age": [1] * len(expected), "fare_paid": [1] * len(expected)}
    made = rows_of(rows | {name: given}, NAMED)[name]
    assert (made.shape, made.dtype) == ((len(expected), 1), np.float32 if name == "age" else np.float64)
    np.testing.assert_array_equal(made[:, 0], np.array(expected, dtype=made.dtype))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([None], [b""]),
        ([NAN], [b""]),
        ([pd.NA], [b""]),
        (["é", "", " x "], ["é".encode(), b"", b" x "]),
        ([b"raw"], [b"raw"]),
        ([np.str_("Rome")], [b"Rome"]),
        (np.array(["Rome", "Lima"]), [b"Rome", b"Lima"]),
        (pd.Series(["Rome", None]), [b"Rome", b""]),
        (pd.Series(["Rome", None], dtype="string"), [b"Rome", b""]),
        (pd.Series(["Rome", None], dtype="category"), [b"Rome", b""]),
    ],
    ids=str,
)
def test_texts(given: Any, expected: list[bytes]) -> None:
    count = len(expected)
    made = rows_of({"city": given, "age": [1] * count, "fare_paid": [1] * count}, NAMED)["city"]
    assert (made.shape, made.dtype) == ((count, 1), object)
    assert made[:, 0].tolist() == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (table(age=["x"]), "row 0, column age: 'x' is text, and the model reads a number"),
        (table(age=["30"]), "row 0, column age: '30' is text"),
        (table(age=[object]), "row 0, column age: .* is not a number"),
        (table(age=[1 + 2j]), "row 0, column age: .* is not a number"),
        (table(age=[1e39]), "row 0, column age: 1e\\+39 is beyond what FP32 holds"),
        (table(age=[10**400]), "row 0, column age: .* is not a number"),
        (table(city=[7]), r"row 0, column city: 7 is int, and the model reads text there \(.*str\(value\)"),
        (table(city=[True]), "row 0, column city: True is bool"),
        (table(city=["\ud800"]), "row 0, column city: .* cannot be encoded as UTF-8"),
        (table(city=[b"R\xf6me"]), "row 0, column city: .* is not UTF-8: byte 1 is 0xf6"),
        (table(age=[1, 2]), "different lengths"),
        (table(city=[], age=[], fare_paid=[]), "are empty"),
        (table(age=3), "column age is int, not a sequence"),
        (table(city="Rome"), "column city is str, not a sequence"),
        (table(age=np.zeros((1, 2))), r"column age has the shape \(1, 2\)"),
        (
            {"city": ["Rome"], "age": [1]},
            r"the table lacks fare_paid \(the model reads city, age, fare_paid\)",
        ),
        (table(agee=[1]), r"the model does not read agee \(the model reads city, age, fare_paid\)"),
        ([[1, 2, 3]], "the model reads columns by name: city, age, fare_paid"),
    ],
    ids=str,
)
def test_refused(given: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        rows_of(given, NAMED)


def test_a_column_may_be_called_as_in_the_data_frame() -> None:
    frame = pd.DataFrame({"city": ["Rome", None], "age": [1, None], "fare paid": [2.5, 3]})
    made = rows_of(frame, NAMED)
    assert made["city"].ravel().tolist() == [b"Rome", b""]
    assert made["fare_paid"].ravel().tolist() == [2.5, 3.0]


@pytest.mark.parametrize("kind", ["FP32", "FP64"])
@pytest.mark.parametrize(
    "given",
    [
        [[1, 2.5], [None, True]],
        np.array([[1, 2.5], [NAN, 1]]),
        np.array([[1, 2.5], [None, True]], dtype=object),
        np.ma.masked_array([[1, 2.5], [0, 1]], mask=[[False, False], [True, False]]),
        pd.DataFrame({0: [1, None], 1: [2.5, 1.0]}),
        pd.DataFrame({0: pd.array([1, None], dtype="Int64"), 1: [2.5, 1.0]}),
        {"features": [[1, 2.5], [None, True]]},
    ],
    ids=lambda given: type(given).__name__,
)
def test_a_matrix(given: Any, kind: str) -> None:
    (made,) = rows_of(given, {"features": kind}).values()
    assert made.dtype == (np.float32 if kind == "FP32" else np.float64)
    np.testing.assert_array_equal(made, np.array([[1, 2.5], [NAN, 1]], dtype=made.dtype))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([[1, 2], [3]], "different lengths"),
        ([[1, "x"]], "row 0, column 1: 'x' is text"),
        ([1, 2], r"shape \(2,\)"),
        (7, r"shape \(\)"),
        (["ab", "c"], "row 0, column 0: 'a' is text|different lengths"),
        (np.zeros(3), r"shape \(3,\)"),
        (np.zeros((0, 3)), r"shape \(0, 3\)"),
        ([], "shape"),
        ({"age": [1]}, "reads a matrix of numbers, and the table has columns by name"),
        (pd.DataFrame({"b": [1.0], "a": [2.0]}), "order .*to_numpy"),
        (np.array([[1 + 5j, 2]]), "row 0, column 0: .*is not a number"),
        ([[1, 1e39]], "row 0, column 1: 1e\\+39 is beyond what FP32 holds"),
    ],
    ids=str,
)
def test_refused_as_a_matrix(given: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        rows_of(given, {"features": "FP32"})


def test_large_whole_numbers_stay_what_they_are() -> None:
    (made,) = rows_of([[2**24 + 1, 2**53]], {"features": "FP64"}).values()
    assert made.tolist() == [[2.0**24 + 1, 2.0**53]]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            pd.DataFrame([["Rome", 1, 2, 3]], columns=["city", "age", "age", "fare paid"]),
            "two columns called age",
        ),
        ({"city": ["Rome"], "age": [1], "fare paid": [1], "fare_paid": [2]}, "two columns for fare_paid"),
        ({1: [1.0], "1": [2.0]}, "two columns called 1"),
    ],
    ids=["twice", "one-on-the-wire", "as-text"],
)
def test_no_column_is_lost_behind_another(given: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        rows_of(given, NAMED)


def test_pandas_is_not_needed() -> None:
    script = """
import sys
sys.modules["pandas"] = None
from clients.tables import rows_of
rows_of({"city": ["Rome"], "age": [None]}, {"city": "BYTES", "age": "FP32"})
"""
    subprocess.run([sys.executable, "-c", script], check=True)
