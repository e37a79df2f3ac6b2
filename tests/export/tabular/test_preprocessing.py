"""Steps before an estimator: what is served is what the whole pipeline of scikit-learn says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_selection import SelectFromModel, SelectKBest, VarianceThreshold
from sklearn.impute import KNNImputer, MissingIndicator, SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    Binarizer,
    FunctionTransformer,
    KBinsDiscretizer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    PowerTransformer,
    RobustScaler,
    SplineTransformer,
    StandardScaler,
    TargetEncoder,
)

from shoal.errors import ExportError
from tests.export.tabular.support import answers, estimator_of, frame, proof

CHANCE = np.random.default_rng(0)
COUNT = 240
TABLE = CHANCE.normal(size=(COUNT, 4)).round(3)
HOLES = np.where(CHANCE.random(TABLE.shape) < 0.2, np.nan, TABLE)
HOLES[:, 2] = TABLE[:, 2]
TARGET = np.digitize(TABLE[:, 0] + TABLE[:, 1] * TABLE[:, 2], [-0.5, 0.5])
FRAME = frame(
    {
        "city": CHANCE.choice(["Oslo", "Rome", "Lima"], COUNT),
        "age": CHANCE.integers(18, 80, COUNT),
        "fare paid": CHANCE.gamma(2.0, 20.0, COUNT).round(2),
        "vip": CHANCE.random(COUNT) < 0.3,
        "zip": CHANCE.choice([10115, 75001, 118], COUNT),
        "unused": CHANCE.random(COUNT),
    }
)
GAPS = FRAME.astype({"age": float})
GAPS.loc[CHANCE.random(COUNT) < 0.1, "age"] = np.nan
GAPS.loc[CHANCE.random(COUNT) < 0.1, "city"] = np.nan
BOUGHT = np.where((FRAME["city"] == "Rome") ^ (FRAME["age"] > 50), "yes", "no")


def regression() -> LogisticRegression:
    return LogisticRegression(max_iter=500)


def check(model: Any, table: Any, folder: Path, atol: float = 1e-6) -> None:
    label, got = answers(model, table, folder)
    np.testing.assert_allclose(got, model.predict_proba(table), atol=atol)
    assert label.tolist() == model.predict(table).astype(str).tolist()


NUMBERS: dict[str, Any] = {
    "standard": StandardScaler(),
    "robust": RobustScaler(),
    "min-max": MinMaxScaler(clip=True),
    "max-abs": MaxAbsScaler(),
    "bins": KBinsDiscretizer(5, encode="onehot"),
    "bins-ordinal": KBinsDiscretizer(5, encode="ordinal", strategy="uniform"),
    "polynomial": PolynomialFeatures(3),
    "interactions": PolynomialFeatures(2, interaction_only=True, include_bias=False),
    "best": SelectKBest(k=2),
    "from-model": SelectFromModel(RandomForestClassifier(5, random_state=0)),
    "variance": VarianceThreshold(),
    "pca": PCA(2, whiten=True),
    "power": PowerTransformer(),
    "normalizer": Normalizer("l1"),
    "binarizer": Binarizer(threshold=0.3),
    "nothing": FunctionTransformer(),
    "tanh": FunctionTransformer(np.tanh),
    "union": FeatureUnion([("p", PCA(2)), ("s", StandardScaler())], transformer_weights={"p": 0.5}),
    "passed-on": ColumnTransformer([("s", StandardScaler(), [1, 3])], remainder="passthrough"),
}


@pytest.mark.parametrize(
    "last", [regression(), RandomForestClassifier(3, random_state=0)], ids=["linear", "trees"]
)
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name: str, last: Any, tmp_path: Path) -> None:
    check(make_pipeline(NUMBERS[name], last).fit(TABLE, TARGET), TABLE, tmp_path)


@pytest.mark.parametrize(
    "step",
    [PowerTransformer(method="box-cox"), FunctionTransformer(np.log), FunctionTransformer(np.sqrt)],
    ids=str,
)
def test_numbers_above_zero(step: Any, tmp_path: Path) -> None:
    """What is below is refused by the original, and so by the server: it names the least that is taken."""
    table = np.abs(TABLE) + 0.1
    model = make_pipeline(step, regression()).fit(table, TARGET)
    check(model, table, tmp_path)
    checks = proof(model, tmp_path).sample.checks
    least = {check.column: check.least for check in checks}
    assert len(least) == 4
    assert all(0.0 <= value <= 1e-300 for value in least.values() if value is not None)


@pytest.mark.parametrize(
    "step",
    [
        SimpleImputer(strategy="median"),
        SimpleImputer(add_indicator=True),
        SimpleImputer(strategy="constant", fill_value=-1.0),
        FeatureUnion([("i", SimpleImputer()), ("m", MissingIndicator())]),
        KNNImputer(),
        KNNImputer(weights="distance", add_indicator=True),
    ],
    ids=str,
)
def test_missing_numbers(step: Any, tmp_path: Path) -> None:
    check(make_pipeline(step, regression()).fit(HOLES, TARGET), HOLES, tmp_path)


def test_a_column_that_is_all_missing(tmp_path: Path) -> None:
    empty = HOLES.copy()
    empty[:, 1] = np.nan
    for keep in (True, False):
        model = make_pipeline(SimpleImputer(keep_empty_features=keep), regression()).fit(empty, TARGET)
        check(model, empty, tmp_path)


def test_a_number_that_stands_for_missing(tmp_path: Path) -> None:
    table = np.nan_to_num(HOLES, nan=-999.0)
    check(
        make_pipeline(SimpleImputer(missing_values=-999.0), regression()).fit(table, TARGET), table, tmp_path
    )


ENCODERS: dict[str, Any] = {
    "one-hot": OneHotEncoder(handle_unknown="ignore"),
    "dense": OneHotEncoder(handle_unknown="ignore", sparse_output=False),
    "first-dropped": OneHotEncoder(drop="first", handle_unknown="ignore"),
    "binary-dropped": OneHotEncoder(drop="if_binary", handle_unknown="ignore"),
    "rare": OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=0.34),
    "ordinal": OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
    "ordinal-missing": OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=np.nan, encoded_missing_value=-5
    ),
    "target": TargetEncoder(),
}


@pytest.mark.parametrize("target", [BOUGHT, TARGET], ids=["two", "three"])
@pytest.mark.parametrize("name", ENCODERS)
def test_categories(name: str, target: Any, tmp_path: Path) -> None:
    """Of texts, whole numbers and booleans, with a missing and an unknown one."""
    last: Any = HistGradientBoostingClassifier(max_iter=5) if "ordinal" in name else regression()
    columns = ColumnTransformer([("e", ENCODERS[name], ["city", "zip", "vip"])])
    model = make_pipeline(columns, last).fit(GAPS, target)
    table = GAPS.copy()
    table.loc[:3, "city"] = "unheard of"
    table.loc[4:6, "zip"] = 3
    check(model, table, tmp_path)
    found = {column.name: column for column in estimator_of(model).table}
    assert (found["city"].kind, found["zip"].whole, found["vip"].boolean) == ("category", True, True)
    assert found["unused"].input == ""


def test_an_encoder_over_a_frame_without_a_column_transformer(tmp_path: Path) -> None:
    table = FRAME[["city", "vip", "zip"]]
    model = make_pipeline(OneHotEncoder(handle_unknown="ignore"), regression()).fit(table, BOUGHT)
    check(model, table, tmp_path)
    assert [column.input for column in estimator_of(model).columns] == ["city", "vip", "zip"]


def test_categories_that_are_numbers_as_python_objects(tmp_path: Path) -> None:
    table = FRAME[["zip"]].astype(object)
    model = make_pipeline(OneHotEncoder(handle_unknown="ignore"), regression()).fit(table, BOUGHT)
    assert proof(model, tmp_path).evidence.failures == []


@pytest.mark.parametrize("text", ["1", "1.0", " 1", "nan", "True", "None"])
def test_texts_that_look_like_something_else(text: str, tmp_path: Path) -> None:
    table = frame({"v": np.where(FRAME["vip"], text, "other")})
    model = make_pipeline(OneHotEncoder(handle_unknown="ignore"), regression()).fit(table, FRAME["vip"])
    unknown = frame({"v": ["1", "1.0", " 1", "nan", "True", "None", "other", "é", "1.00"]})
    check(model, unknown, tmp_path)


def test_gaps_are_filled_before_they_are_encoded(tmp_path: Path) -> None:
    for strategy in ({"strategy": "most_frequent"}, {"strategy": "constant", "fill_value": "none"}):
        columns = [
            ("c", make_pipeline(SimpleImputer(**strategy), OneHotEncoder(handle_unknown="ignore")), ["city"]),
            ("n", make_pipeline(SimpleImputer(), StandardScaler()), ["age", "fare paid"]),
        ]
        model = make_pipeline(ColumnTransformer(columns), regression()).fit(GAPS, BOUGHT)
        check(model, GAPS, tmp_path)
        assert [column.input for column in estimator_of(model).columns] == ["city", "age", "fare_paid"]


def test_an_empty_text_that_the_original_tells_from_a_missing_one_is_noted(tmp_path: Path) -> None:
    part = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore"))
    columns = ColumnTransformer([("c", part, ["city"])], remainder="drop")
    found = proof(make_pipeline(columns, regression()).fit(GAPS, BOUGHT), tmp_path).evidence
    assert found.failures == [] and found.raw is not None
    assert found.raw.notes == ("column 'city': an empty text is read as a missing value",)
    plain = ColumnTransformer([("c", OneHotEncoder(handle_unknown="ignore"), ["city"])])
    whole = FRAME.assign(city=FRAME["city"].fillna("Rome"))
    found = proof(make_pipeline(plain, regression()).fit(whole, BOUGHT), tmp_path).evidence
    assert found.raw is not None and found.raw.notes == ()


@pytest.mark.parametrize(
    "chosen",
    [slice(0, 1), [0], [True, False, False, False, False, False], make_column_selector(dtype_include=object)],
    ids=["slice", "place", "mask", "selector"],
)
def test_columns_are_chosen_in_any_way(chosen: Any, tmp_path: Path) -> None:
    columns = [("c", OneHotEncoder(), chosen), ("n", "passthrough", slice("age", "fare paid"))]
    check(make_pipeline(ColumnTransformer(columns), regression()).fit(FRAME, BOUGHT), FRAME, tmp_path)


def test_columns_of_columns(tmp_path: Path) -> None:
    """A ColumnTransformer over what another made, by the names that it gave."""
    first = ColumnTransformer(
        [("i", SimpleImputer(strategy="most_frequent"), ["city"]), ("n", SimpleImputer(), ["age"])],
        verbose_feature_names_out=False,
    ).set_output(transform="pandas")
    second = ColumnTransformer(
        [("c", OneHotEncoder(handle_unknown="ignore"), ["city"]), ("n", StandardScaler(), ["age"])]
    )
    model = Pipeline([("a", first), ("b", second), ("c", regression())]).fit(GAPS, BOUGHT)
    check(model, GAPS, tmp_path)


def double(values: Any) -> Any:
    return values * 2


@pytest.mark.parametrize(
    ("model", "table", "said"),
    [
        (
            make_pipeline(FunctionTransformer(double), regression()),
            TABLE,
            "double.*runs Python code.*apply double",
        ),
        (
            make_pipeline(SplineTransformer(), regression()),
            TABLE,
            "SplineTransformer has no conversion.*apply",
        ),
        (make_pipeline(OneHotEncoder(), regression()), FRAME[["city"]].to_numpy(), "fit it on a data frame"),
        (
            make_pipeline(OneHotEncoder(), regression()),
            pd.DataFrame({"id": 2**53 + 3 * np.arange(COUNT) % 5}),
            r"beyond 2\^53.*astype\(str\)",
        ),
        (
            make_pipeline(OneHotEncoder(), regression()),
            frame({"city": np.where(FRAME["vip"], None, np.where(FRAME["age"] > 40, "", "Rome"))}),
            "tells the empty string from a missing value.*replace the empty strings",
        ),
        (
            make_pipeline(OneHotEncoder(), regression()),
            pd.DataFrame(
                {
                    "city": pd.Series(
                        [None, np.nan, "Rome"] * (COUNT // 3) + ["Rome"] * (COUNT % 3), dtype=object
                    )
                }
            ),
            "'city' tells None from NaN.*replace one of them",
        ),
    ],
    ids=["own-code", "splines", "array-of-texts", "large-ids", "empty-and-missing", "none-and-nan"],
)
def test_refused_with_a_way_out(model: Any, table: Any, said: str, tmp_path: Path) -> None:
    model.fit(table, BOUGHT)
    with pytest.raises(ExportError, match=said) as caught:
        answers(model, table, tmp_path)
    assert "\n" not in str(caught.value)


def test_ways_out_of_what_is_refused(tmp_path: Path) -> None:
    check(regression().fit(double(TABLE), TARGET), double(TABLE), tmp_path)
    splines = SplineTransformer().fit_transform(TABLE)
    check(regression().fit(splines, TARGET), splines, tmp_path)
    named = make_pipeline(OneHotEncoder(), regression()).fit(FRAME[["city"]], BOUGHT)
    check(named, FRAME[["city"]], tmp_path)
    large = frame({"id": (2**53 + 3 * np.arange(COUNT) % 5).astype(str)})
    check(make_pipeline(OneHotEncoder(), regression()).fit(large, BOUGHT), large, tmp_path)


def test_two_columns_of_one_name_on_the_wire() -> None:
    table = FRAME.rename(columns={"unused": "fare/paid"})
    columns = ColumnTransformer([("n", StandardScaler(), ["fare paid", "fare/paid"])])
    model = make_pipeline(columns, regression()).fit(table, BOUGHT)
    with pytest.raises(ExportError, match="'fare paid' and 'fare/paid' would both be the input 'fare_paid'"):
        estimator_of(model)


def test_a_large_mean_costs_no_digits(tmp_path: Path) -> None:
    features = 1e7 + CHANCE.integers(-8, 9, size=(COUNT, 3)).astype(float)  # which float32 holds
    target = (features - 1e7) @ [1.0, -2.0, 0.5] > 0
    model = make_pipeline(StandardScaler(), regression()).fit(features, target)
    _, got = answers(model, features, tmp_path, numbers="FLOAT")
    np.testing.assert_allclose(got, model.predict_proba(features), atol=1e-6)
    between = features + 0.25  # which it does not
    assert proof(model, tmp_path).evidence.numbers == "DOUBLE"
    _, got = answers(model, between, tmp_path)
    np.testing.assert_allclose(got, model.predict_proba(between), atol=1e-6)
