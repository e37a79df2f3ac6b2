"""LightGBM decides what is served as it decides itself: what is missing, zero, a category, a linear leaf."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

from export.tabular.find import find_estimator
from tests.export.tabular.support import answers, frame, hard, proof

CHANCE = np.random.default_rng(0)
COUNT = 400
NUMBERS = CHANCE.normal(size=(COUNT, 3)).round(2)
NUMBERS[CHANCE.random(NUMBERS.shape) < 0.2] = 0.0
NUMBERS[:, 1][CHANCE.random(COUNT) < 0.2] = np.nan
CODES = CHANCE.integers(0, 40, COUNT).astype(float)
TABLE = np.column_stack([CODES, NUMBERS])
BINARY = (np.isin(CODES, [1, 3, 6, 33, 38]) ^ (NUMBERS[:, 0] == 0)).astype(int)
THREE = np.where(np.isin(CODES, [2, 9, 35]), 2, BINARY)
VALUE = BINARY + 0.3 * np.nan_to_num(NUMBERS[:, 1]) + 0.1 * CHANCE.normal(size=COUNT)
SMALL: dict[str, Any] = {"verbose": -1, "num_leaves": 8, "min_data_in_leaf": 5, "num_threads": 1}
CATEGORIES = {"min_data_per_group": 5, "cat_smooth": 1.0}


def train(objective: str, target: NDArray, **settings: Any) -> lightgbm.Booster:
    categorical = settings.pop("categorical_feature", "auto")
    classes = {"num_class": 3} if objective.startswith("multiclass") else {}
    data = lightgbm.Dataset(TABLE, target, categorical_feature=categorical)
    return lightgbm.train({"objective": objective, **SMALL, **classes, **settings}, data, 8)


def check(model: lightgbm.Booster, folder: Path, rows: NDArray | None = None) -> None:
    """On rows that hurt, and on and beside every threshold that the model's own file names."""
    rows = hard(TABLE) if rows is None else rows
    lines = [line for line in model.model_to_string().splitlines() if line.startswith("threshold=")]
    thresholds = np.array([float(word) for line in lines for word in line[10:].split()])
    beside = np.concatenate([thresholds, *(np.nextafter(thresholds, end) for end in (-np.inf, np.inf))])
    edges = rows[np.arange(len(beside)) % len(rows)].copy()
    edges[np.arange(len(beside)), np.arange(len(beside)) % edges.shape[1]] = beside
    rows = np.concatenate([rows, edges])
    expected = model.predict(rows)
    _, got = answers(model, rows, folder)
    if got.shape[1] == 2 and np.ndim(expected) == 1:
        got = got[:, 1]
    np.testing.assert_allclose(np.squeeze(got), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("objective", ["binary", "multiclass", "multiclassova", "regression"])
@pytest.mark.parametrize(
    "settings", [{"zero_as_missing": True}, {"use_missing": False}, {}], ids=["zero", "nothing", "nan"]
)
def test_what_is_missing(objective: str, settings: dict[str, Any], tmp_path: Path) -> None:
    target = {"binary": BINARY, "regression": VALUE}.get(objective, THREE)
    check(train(objective, target, **settings), tmp_path)


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        ("binary", {"sigmoid": 1.7}),
        ("multiclassova", {"sigmoid": 1.7}),
        ("regression", {"reg_sqrt": True}),
        ("regression_l1", {}),
        ("huber", {}),
        ("fair", {}),
        ("quantile", {"alpha": 0.8}),
        ("mape", {}),
        ("poisson", {}),
        ("gamma", {}),
        ("tweedie", {}),
        ("cross_entropy", {}),
        ("cross_entropy_lambda", {}),
    ],
)
def test_objectives(objective: str, settings: dict[str, Any], tmp_path: Path) -> None:
    target = {"binary": BINARY, "multiclassova": THREE}.get(objective, np.abs(VALUE) / 4 + 0.01)
    check(train(objective, target, **settings), tmp_path)


@pytest.mark.parametrize("boosting", ["rf", "dart"])
def test_forests_and_dropped_trees(boosting: str, tmp_path: Path) -> None:
    settings = {"boosting": boosting, "bagging_freq": 1, "bagging_fraction": 0.6}
    check(train("multiclass", THREE, **settings), tmp_path)


@pytest.mark.parametrize(
    "settings", [CATEGORIES, {**CATEGORIES, "max_cat_to_onehot": 100}, {"zero_as_missing": True}]
)
def test_categories(settings: dict[str, Any], tmp_path: Path) -> None:
    """Broken ones are cut, negative, unknown, huge and missing ones go to the right."""
    model = train("binary", BINARY, categorical_feature=[0], **settings)
    assert "cat_threshold" in model.model_to_string()
    rows = TABLE[:60].copy()
    rows[:, 0] = np.resize(
        [-1, -0.5, 0, 0.5, 1.9, 39, 40, 33.999, 64, 1e9, 2.2e9, 2.0**32 + 1, 1e19, np.nan, np.inf], 60
    )
    check(model, tmp_path, np.concatenate([hard(TABLE), rows]))


@pytest.mark.parametrize("objective", ["binary", "multiclass", "regression"])
def test_linear_leaves(objective: str, tmp_path: Path) -> None:
    target = {"binary": BINARY, "regression": VALUE}.get(objective, THREE)
    model = train(objective, target, linear_tree=True, categorical_feature=[0])
    assert "is_linear=1" in model.model_to_string()
    rows = hard(TABLE)
    rows = rows[np.nan_to_num(np.abs(rows)).max(axis=1) < 1e6]  # beyond, sums of float32 weights differ
    infinite = TABLE[:40].copy()
    infinite[::2, 1], infinite[::3, 3] = np.inf, -np.inf
    check(model, tmp_path, np.concatenate([rows, infinite]))


def test_raw_scores_of_an_objective_of_ones_own(tmp_path: Path) -> None:
    def gradient(predicted: NDArray, data: lightgbm.Dataset) -> tuple[NDArray, NDArray]:
        return predicted - data.get_label(), np.ones(len(predicted))

    model = lightgbm.train({"objective": gradient, **SMALL}, lightgbm.Dataset(TABLE, VALUE), 5)
    check(model, tmp_path)


def test_a_ranker(tmp_path: Path) -> None:
    model = lightgbm.LGBMRanker(n_estimators=5, verbose=-1, num_leaves=8).fit(TABLE, THREE, group=[200, 200])
    _, got = answers(model, hard(TABLE), tmp_path)
    np.testing.assert_allclose(got[:, 0], model.predict(hard(TABLE)), rtol=1e-6)


def test_the_best_iteration(tmp_path: Path) -> None:
    noise = CHANCE.permutation(BINARY[300:])
    model = lightgbm.LGBMClassifier(n_estimators=60, verbose=-1, num_leaves=8)
    stop = lightgbm.early_stopping(2, verbose=False)
    model.fit(TABLE[:300], BINARY[:300], eval_X=(TABLE[300:],), eval_y=(noise,), callbacks=[stop])
    assert model.best_iteration_ < 60
    _, got = answers(model, TABLE, tmp_path)
    np.testing.assert_allclose(got, model.predict_proba(TABLE), atol=1e-7)


def test_categories_of_a_data_frame(tmp_path: Path) -> None:
    """What the codes of a pandas categorical stand for is compared with the frame itself."""
    colours = pd.Categorical.from_codes(CODES.astype(int) % 5, ["red", "green", "blue", "grey", "pink"])
    table = pd.DataFrame({"colour": colours, "size": NUMBERS[:, 1]})
    model = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1, num_leaves=8, **CATEGORIES)
    model.fit(table, np.isin(CODES % 5, [1, 3]))
    label, got = answers(model, table, tmp_path)
    assert label.tolist() == model.predict(table).astype(str).tolist()
    np.testing.assert_allclose(got, model.predict_proba(table), atol=1e-7)
    path = tmp_path / "colours.txt"
    model.booster_.save_model(path)
    found = proof(find_estimator(str(path)), tmp_path)
    assert found.estimator.table[0].labels == ("red", "green", "blue", "grey", "pink")
    assert found.evidence.failures == []


def test_categories_inside_a_pipeline(tmp_path: Path) -> None:
    table = frame(
        {"colour": np.array(["red", "green", "blue"])[CODES.astype(int) % 3], "size": NUMBERS[:, 1]}
    )
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    columns = ColumnTransformer([("c", encoder, ["colour"])], remainder="passthrough")
    model = make_pipeline(columns, lightgbm.LGBMClassifier(n_estimators=5, verbose=-1, **CATEGORIES))
    model.fit(table, BINARY, lgbmclassifier__categorical_feature=[0])
    table.loc[:5, "colour"] = "unheard of"
    _, got = answers(model, table, tmp_path)
    np.testing.assert_allclose(got, model.predict_proba(table), atol=1e-7)


def test_after_an_encoder_that_gives_a_sparse_matrix(tmp_path: Path) -> None:
    table = frame({"colour": np.array(["red", "green", "blue"])[CODES.astype(int) % 3]})
    model = make_pipeline(OneHotEncoder(), lightgbm.LGBMClassifier(n_estimators=5, verbose=-1)).fit(
        table, BINARY
    )
    _, got = answers(model, table, tmp_path)
    np.testing.assert_allclose(got, model.predict_proba(table), atol=1e-7)


def test_calibrated(tmp_path: Path) -> None:
    model = CalibratedClassifierCV(lightgbm.LGBMClassifier(n_estimators=5, verbose=-1), cv=2).fit(
        TABLE, BINARY
    )
    _, got = answers(model, TABLE, tmp_path)
    np.testing.assert_allclose(got, model.predict_proba(TABLE), atol=1e-6)


def test_float32_would_move_rows_over_thresholds(tmp_path: Path) -> None:
    """So numbers are FP64 on the wire: here decimals that lie on midpoints of decimals, and whole numbers
    beyond 2^24."""
    prices = CHANCE.integers(0, 300, COUNT) / 100
    stamps = 1.7e9 + CHANCE.integers(0, 1000, COUNT)
    table = np.column_stack([prices, stamps])
    target = ((prices * 100 % 7 < 3) ^ (stamps % 10 < 5)).astype(int)
    model = lightgbm.LGBMClassifier(n_estimators=20, verbose=-1, min_child_samples=2).fit(table, target)
    found = proof(model, tmp_path)
    assert found.evidence.failures == []
    assert (found.evidence.numbers, found.evidence.on_edge, found.sample.checks) == ("DOUBLE", 0, ())
    assert found.evidence.rounding_diff > 0.1
    _, got = answers(model, table, tmp_path)
    np.testing.assert_allclose(got, model.predict_proba(table), atol=1e-7)
    rounded = model.predict_proba(table.astype(np.float32).astype(float))
    assert np.abs(rounded - model.predict_proba(table)).max() > 0.1  # which FP32 could not but answer
