"""The reader before an estimator: what it refuses, how it says so, and what it hands on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfVectorizer

from serving.models.rows import BadRow, Check, Reader
from serving.models.terms import TooManyTerms
from tests.export.tabular.test_texts import terms_of

CITY = Check("city", "city", missing=False, known=("Lima", "Rome"))
AGE = Check("the age", "the_age", missing=False, infinite=False, minus_infinite=False)
SECOND = Check("x1", "features", 1, least=0.5, most=9.0)
CODE = Check("x2", "features", 2, known=(1.0, 2.0, 3.0))


def texts(*values: str) -> Any:
    return np.array([[value.encode()] for value in values], dtype=object)


def numbers(*values: float) -> Any:
    return np.array([[value] for value in values], dtype=np.float32)


def matrix(*rows: list[float]) -> Any:
    return np.array(rows, dtype=np.float64)


NAN, INF = float("nan"), float("inf")


KNOWN = "is none of the categories that the model knows"
REFUSED: list[tuple[list[Check], dict[str, Any], str]] = [
    ([CITY], {"city": texts("Rome", "Oslo")}, f"row 1, column 'city': 'Oslo' {KNOWN}: 'Lima', 'Rome'"),
    ([CITY], {"city": texts("")}, "row 0, column 'city': the value is missing"),
    (
        [CITY],
        {"city": np.array([[b"\xff"]], dtype=object)},
        "row 0, column 'city': the text is not UTF-8: byte 0 is 0xff",
    ),
    ([AGE], {"the_age": numbers(1, NAN)}, r"row 1, column 'the age': the value is missing \(NaN\)"),
    ([AGE], {"the_age": numbers(INF)}, "row 0, column 'the age': inf is not a finite number"),
    ([AGE], {"the_age": numbers(-INF)}, "row 0, column 'the age': -inf is not a finite number"),
    ([SECOND], {"features": matrix([0, 0.25, 1])}, "row 0, column 'x1': 0.25 is below 0.5, the least"),
    ([SECOND], {"features": matrix([0, 1, 1], [0, 10, 1])}, "row 1, column 'x1': 10 is above 9.0, the most"),
    ([SECOND, CODE], {"features": matrix([0, 1, 1.5])}, f"row 0, column 'x2': 1.5 {KNOWN}: 1, 2, 3"),
]


@pytest.mark.parametrize(("checks", "given", "said"), REFUSED)
def test_refused(checks: list[Check], given: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRow, match=said):
        Reader(tuple(checks), ()).read(given)


@pytest.mark.parametrize(
    ("checks", "given"),
    [
        ([CITY], {"city": texts("Rome", "Lima")}),
        ([Check("city", "city", known=("Rome",))], {"city": texts("Rome", "")}),
        ([Check("city", "city", missing=False, known=("", "Rome"))], {"city": texts("")}),
        ([Check("city", "city", missing=False)], {"city": texts("anything")}),
        ([AGE], {"the_age": numbers(1, -1e30)}),
        ([SECOND, CODE], {"features": matrix([NAN, 0.5, NAN], [INF, 9.0, 3.0])}),
    ],
)
def test_taken_and_handed_on_as_it_is(checks: list[Check], given: dict[str, Any]) -> None:
    made = Reader(tuple(checks), ()).read(given)
    assert made.keys() == given.keys()
    assert all(made[name] is given[name] for name in given)


def test_float32_of_a_category_is_known() -> None:
    check = Check("x0", "features", known=(0.1, 16777217.0))
    Reader((check,), ()).read({"features": np.array([[0.1]], dtype=np.float32)})
    with pytest.raises(BadRow, match="0.2 is none of the categories that the model knows: 0.1, 16777217"):
        Reader((check,), ()).read({"features": np.array([[0.2]], dtype=np.float32)})


def test_many_categories_are_not_all_listed() -> None:
    check = Check("c", "c", known=tuple(map(str, range(100))))
    with pytest.raises(BadRow, match="knows: '0', '1', .*'7' and 92 more$"):
        Reader((check,), ()).read({"c": texts("x")})


def test_texts_become_terms_of_equal_width() -> None:
    terms = terms_of(TfidfVectorizer().fit(["fish swim", "birds fly"]))
    made = Reader((), (terms,)).read({"text": texts("fish fish birds", ""), "age": numbers(1, 2)})
    assert made.keys() == {"age", "terms:0", "counts:0"}
    columns, counts = made["terms:0"], made["counts:0"]
    assert (columns.dtype, counts.dtype, columns.shape) == (np.int64, np.float32, (2, 16))
    assert [columns[0, :3].tolist(), counts[0, :3].tolist()] == [[0, 1, 4], [1.0, 2.0, 0.0]]
    assert set(columns[1]) == {4}
    longer = Reader((), (terms_of(TfidfVectorizer(analyzer="char").fit(["abcdefghijklmnopqrst"])),))
    assert longer.read({"text": texts("abcdefghijklmnopqrst")})["terms:0"].shape == (1, 32)


def test_long_texts_are_refused_before_they_are_counted() -> None:
    terms = terms_of(CountVectorizer(analyzer="char").fit(["ab"]))
    reader = Reader((), (terms,))
    assert reader.read({"text": texts("é" * 50), "city": texts("x" * 100)}, max_text_bytes=100)
    for name in ("text", "city"):
        given = {"text": texts("a", "b"), "city": texts("a", "b")} | {name: texts("a", "é" * 51)}
        with pytest.raises(BadRow, match=f"row 1, column '{name}' has 102 bytes, at most 100 are accepted"):
            reader.read(given, max_text_bytes=100)


def test_the_terms_of_a_request_are_limited() -> None:
    """Of 1,000 characters there are 9,955 runs of 1 to 10, all of 'a' and so of 10 columns."""
    fitted = CountVectorizer(analyzer="char", ngram_range=(1, 10)).fit(["a" * 10])
    reader = Reader((), (terms_of(fitted),))
    made = reader.read({"text": texts("a" * 1000)}, max_request_terms=9955)
    np.testing.assert_array_equal(made["counts:0"][0, :10], fitted.transform(["a" * 1000]).toarray()[0])
    with pytest.raises(TooManyTerms, match="column 'text': the texts have too many terms"):
        reader.read({"text": texts("a" * 1000)}, max_request_terms=9954)
    with pytest.raises(TooManyTerms, match="too many terms"):
        reader.read({"text": texts("a" * 1000, "a")}, max_request_terms=9955)


def test_what_fills_up_rows_is_counted() -> None:
    reader = Reader((), (terms_of(HashingVectorizer()),))
    long = " ".join(map(str, range(100, 1000)))
    assert reader.read({"text": texts(long, *"ab")}, max_request_terms=3072)["terms:0"].shape == (3, 1024)
    with pytest.raises(TooManyTerms, match="4 rows take 1024 terms each, .* at most 3072 in all"):
        reader.read({"text": texts(long, *"abc")}, max_request_terms=3072)


def test_a_long_text_is_not_repeated_in_an_error() -> None:
    with pytest.raises(BadRow) as caught:
        Reader((Check("c", "c", known=("a",)),), ()).read({"c": texts("x" * 100_000)})
    assert len(str(caught.value)) < 300


def test_a_reader_survives_json() -> None:
    reader = Reader((CITY, AGE, SECOND, CODE), (terms_of(TfidfVectorizer().fit(["é ok"])),))
    assert Reader.from_json(reader.to_json()) == reader
