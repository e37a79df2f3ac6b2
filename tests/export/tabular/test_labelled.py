"""Labelled rows of the user's own, from a CSV: by name or place, as codes or as what they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_wine
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from export.tabular.estimator import Estimator
from export.tabular.labelled import read_rows
from shoal.errors import ShoalError, UsageError
from tests.export.tabular.support import estimator_of, frame, proof

CHANCE = np.random.default_rng(0)


@pytest.fixture(scope="module")
def wine() -> Estimator:
    features, target = load_wine(return_X_y=True)
    return estimator_of(LogisticRegression(max_iter=5000).fit(features[:, :2], target))


def test_by_position(wine: Estimator, tmp_path: Path) -> None:
    lines = "\n".join(f"{12 + i / 10},{i % 3},{i % 3}.0" for i in range(20))
    (tmp_path / "eval.csv").write_text(f"alcohol,malic,target\n{lines}\n")
    rows = read_rows(tmp_path / "eval.csv", wine)
    assert rows.labels is not None
    assert rows.labels.tolist()[:4] == ["0", "1", "2", "0"]
    assert [column.tolist()[1] for column in rows.values.values()] == [12.1, 1.0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read"),
        ("a,b,label\n" + "1,2\n" * 20, "cannot be read"),
        ("a,b,label\n" + "1,2,0\n" * 3, "has 3 rows"),
        ("a,b,label\n" + "1,x,0\n" * 20, "column x1: could not convert"),
        ("a,b,label\n" + "1,2,7\n" * 20, "'7' is no class"),
        ("a,b,c,label\n" + "1,2,3,0\n" * 20, "lacks 2 columns"),
        ("a,a,label\n" + "1,2,0\n" * 20, "two columns of one name"),
    ],
)
def test_refused(wine: Estimator, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "eval.csv").write_text(text)
    with pytest.raises(ShoalError, match=said):
        read_rows(tmp_path / "eval.csv", wine)


def shop(encoder: Any) -> tuple[Any, pd.DataFrame]:
    table = frame({"age": CHANCE.normal(40, 15, 120), "city": CHANCE.choice(["Oslo", "Rome", "Lima"], 120)})
    table.loc[:9, "age"] = np.nan
    steps = [("n", make_pipeline(SimpleImputer(), StandardScaler()), ["age"]), ("c", encoder, ["city"])]
    model = make_pipeline(ColumnTransformer(steps), LogisticRegression())
    return model.fit(table, np.where(table["city"] == "Oslo", "yes", "no")), table


def test_the_metric_is_of_these_rows_and_made_ones_are_compared_too(tmp_path: Path) -> None:
    model, table = shop(OneHotEncoder())
    truth = np.where(CHANCE.random(120) < 0.8, model.predict(table), "no")
    table.assign(label=truth).to_csv(tmp_path / "eval.csv", index=False)
    estimator = estimator_of(model)
    evidence = proof(estimator, tmp_path, read_rows(tmp_path / "eval.csv", estimator)).evidence
    assert evidence.failures == []
    assert (evidence.own_rows, evidence.rows_from) == (120, "eval-data")
    assert evidence.rows > 600
    assert evidence.value == evidence.reference_value == np.mean(model.predict(table) == truth)


def test_rows_that_the_original_refuses(tmp_path: Path) -> None:
    model, table = shop(OneHotEncoder())
    table.loc[5, "city"] = "Nowhere"
    table.assign(label="no").to_csv(tmp_path / "eval.csv", index=False)
    estimator = estimator_of(model)
    with pytest.raises(
        UsageError, match="the original refuses the evaluation data: Found unknown categories"
    ):
        proof(estimator, tmp_path, read_rows(tmp_path / "eval.csv", estimator))


@pytest.mark.parametrize("named", [True, False], ids=["names", "codes"])
def test_categories_by_name_or_by_code(named: bool, tmp_path: Path) -> None:
    codes = CHANCE.integers(0, 3, 120)
    table = pd.DataFrame(
        {"c": pd.Categorical.from_codes(codes, ["x", "y", "z"]), "v": CHANCE.normal(size=120)}
    )
    model = lightgbm.LGBMClassifier(n_estimators=3, verbose=-1, min_data_per_group=5).fit(table, codes == 1)
    given = table if named else table.assign(c=codes)
    given.assign(label=codes == 1).to_csv(tmp_path / "eval.csv", index=False)
    rows = read_rows(tmp_path / "eval.csv", estimator_of(model))
    assert rows.values["c"].tolist() == codes.tolist()
    assert rows.labels is not None
    assert rows.labels.tolist() == (codes == 1).astype(str).tolist()
