"""Estimators of scikit-learn, whatever they are made of: what is served is what they say themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    BaggingRegressor,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.experimental import enable_halving_search_cv  # noqa: F401 - what scikit-learn asks for
from sklearn.feature_selection import RFE
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import (
    ElasticNet,
    LinearRegression,
    LogisticRegression,
    MultiTaskLasso,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
    SGDClassifier,
    TweedieRegressor,
)
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor, RegressorChain
from sklearn.naive_bayes import BernoulliNB, ComplementNB, GaussianNB, MultinomialNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.svm import SVC, SVR, LinearSVC, LinearSVR
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from export.tabular.classes import classes_of
from shoal.errors import ExportError
from tests.export.tabular.support import answers, estimator_of, frame, proof

CHANCE = np.random.default_rng(0)
COUNT = 240
TABLE = CHANCE.normal(size=(COUNT, 4)).round(2)
TABLE[:, 3] = CHANCE.integers(0, 9, COUNT)
HOLES = np.where(CHANCE.random(TABLE.shape) < 0.2, np.nan, TABLE)
VALUE = TABLE[:, 0] + 0.5 * TABLE[:, 1] - 0.2 * TABLE[:, 3] + 0.3 * CHANCE.normal(size=COUNT)
TWO = np.where(np.median(VALUE) < VALUE, "yes", "no")
THREE = np.digitize(VALUE, np.quantile(VALUE, [0.3, 0.7]))
BOTH = np.column_stack([VALUE, 1 - 2 * VALUE])
FOREST: dict[str, Any] = {"n_estimators": 5, "random_state": 0}
SHOP = frame({"city": CHANCE.choice(["Oslo", "Rome", "Lima"], COUNT), "age": CHANCE.integers(18, 80, COUNT)})
BOUGHT = np.where((SHOP["city"] == "Rome") ^ (SHOP["age"] > 50), "yes", "no")


def regression() -> LogisticRegression:
    return LogisticRegression(max_iter=500)


def shop(last: Any = None) -> Pipeline:
    columns = [("c", OneHotEncoder(handle_unknown="ignore"), ["city"]), ("n", StandardScaler(), ["age"])]
    return make_pipeline(ColumnTransformer(columns), regression() if last is None else last)


CLASSIFIERS: dict[str, Any] = {
    "tree": DecisionTreeClassifier(random_state=0),
    "forest": RandomForestClassifier(**FOREST),
    "extra-trees": ExtraTreesClassifier(**FOREST),
    "boosting": GradientBoostingClassifier(**FOREST),
    "histogram-boosting": HistGradientBoostingClassifier(max_iter=5),
    "ada-boost": AdaBoostClassifier(n_estimators=5),
    "bagging": BaggingClassifier(DecisionTreeClassifier(), 5, max_features=0.7, random_state=0),
    "logistic": regression(),
    "gradient-descent": SGDClassifier(loss="log_loss", random_state=0),
    "gradient-descent-huber": SGDClassifier(loss="modified_huber", random_state=0),
    "discriminant": LinearDiscriminantAnalysis(),
    "gaussian": GaussianNB(),
    "bernoulli": BernoulliNB(),
    "perceptron": MLPClassifier((8,), max_iter=30, random_state=0),
    "constant": DummyClassifier(),
    "vote": VotingClassifier([("a", regression()), ("b", GaussianNB())], voting="soft", weights=[1, 2]),
    "stack": StackingClassifier([("a", regression()), ("b", RandomForestClassifier(**FOREST))], cv=2),
    "stack-with-the-table": StackingClassifier([("a", regression())], cv=2, passthrough=True),
    "one-against-rest": OneVsRestClassifier(regression()),
    "calibrated-forest": CalibratedClassifierCV(RandomForestClassifier(**FOREST), cv=2, method="isotonic"),
    "calibrated-linear": CalibratedClassifierCV(LinearSVC(), cv=2),
    "chosen-columns": RFE(regression(), n_features_to_select=2),
    "searched": GridSearchCV(CalibratedClassifierCV(regression(), cv=2), {"method": ["sigmoid"]}, cv=2),
}


@pytest.mark.parametrize("target", [TWO, THREE], ids=["two", "three"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers(name: str, target: Any, tmp_path: Path) -> None:
    model = CLASSIFIERS[name].fit(TABLE, target)
    label, got = answers(model, TABLE, tmp_path)
    expected = model.predict_proba(TABLE)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    best = np.sort(expected, axis=1)
    clear = best[:, -1] - best[:, -2] > 1e-6
    assert label[clear].tolist() == model.predict(TABLE).astype(str)[clear].tolist()


def test_what_was_fitted_before_and_on_few_labels(tmp_path: Path) -> None:
    frozen = CalibratedClassifierCV(FrozenEstimator(regression().fit(TABLE, THREE))).fit(TABLE, THREE)
    few = SelfTrainingClassifier(regression()).fit(TABLE, np.where(TABLE[:, 2] > 0, -1, THREE))
    for model in (frozen, few):
        _, got = answers(model, TABLE, tmp_path)
        np.testing.assert_allclose(got, model.predict_proba(TABLE), atol=1e-6)


REGRESSORS: dict[str, Any] = {
    "tree": DecisionTreeRegressor(random_state=0),
    "forest": RandomForestRegressor(**FOREST),
    "boosting": GradientBoostingRegressor(**FOREST, loss="huber"),
    "histogram-boosting": HistGradientBoostingRegressor(max_iter=5),
    "bagging": BaggingRegressor(n_estimators=5, random_state=0),
    "linear": LinearRegression(),
    "elastic-net": ElasticNet(0.01),
    "linear-svr": LinearSVR(random_state=0),
    "perceptron": MLPRegressor(hidden_layer_sizes=(8,), max_iter=30, random_state=0),
    "constant": DummyRegressor(strategy="median"),
    "mean": VotingRegressor([("a", Ridge()), ("b", RandomForestRegressor(**FOREST))]),
    "stack": StackingRegressor([("a", Ridge()), ("b", RandomForestRegressor(**FOREST))], cv=2),
    "scaled-target": TransformedTargetRegressor(Ridge(), transformer=StandardScaler()),
    "svr": make_pipeline(StandardScaler(), SVR()),  # by skl2onnx
}


@pytest.mark.parametrize("name", REGRESSORS)
def test_regressors(name: str, tmp_path: Path) -> None:
    model = REGRESSORS[name].fit(TABLE, VALUE)
    _, got = answers(model, TABLE, tmp_path)
    np.testing.assert_allclose(got[:, 0], model.predict(TABLE), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    "model",
    [
        PoissonRegressor(),
        TweedieRegressor(power=1.5),
        TransformedTargetRegressor(Ridge(), func=np.log1p, inverse_func=np.expm1),
        HistGradientBoostingRegressor(max_iter=5, loss="poisson"),
        HistGradientBoostingRegressor(max_iter=5, loss="gamma"),
    ],
    ids=str,
)
def test_what_is_above_zero(model: Any, tmp_path: Path) -> None:
    model.fit(TABLE, np.exp(VALUE))
    _, got = answers(model, TABLE, tmp_path)
    np.testing.assert_allclose(got[:, 0], model.predict(TABLE), rtol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        LinearRegression(),
        MultiTaskLasso(0.01),
        RandomForestRegressor(**FOREST),
        MultiOutputRegressor(GradientBoostingRegressor(**FOREST)),
        RegressorChain(Ridge(), order=[1, 0]),
    ],
    ids=lambda model: type(model).__name__,
)
def test_several_outputs(model: Any, tmp_path: Path) -> None:
    model.fit(TABLE, BOTH)
    _, got = answers(model, TABLE, tmp_path)
    np.testing.assert_allclose(got, model.predict(TABLE), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", [MultinomialNB(), ComplementNB()], ids=str)
def test_counts(model: Any, tmp_path: Path) -> None:
    model.fit(np.abs(TABLE), THREE)
    _, got = answers(model, np.abs(TABLE), tmp_path)
    np.testing.assert_allclose(got, model.predict_proba(np.abs(TABLE)), atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        DecisionTreeClassifier(random_state=0),
        RandomForestClassifier(**FOREST),
        HistGradientBoostingClassifier(max_iter=5),
        HistGradientBoostingClassifier(max_iter=5, categorical_features=[3], min_samples_leaf=5),
    ],
    ids=["tree", "forest", "histogram-boosting", "with-categories"],
)
@pytest.mark.parametrize("trained_with", [True, False], ids=["holes-in-training", "none-in-training"])
def test_missing_numbers(model: Any, trained_with: bool, tmp_path: Path) -> None:
    model.fit(HOLES if trained_with else TABLE, THREE)
    rows = HOLES.copy()
    if getattr(model, "categorical_features", None) != "from_dtype" and hasattr(model, "_preprocessor"):
        rows[:3, 3] = [77.0, -1.0, 0.5]  # of no category
    _, got = answers(model, rows, tmp_path)
    np.testing.assert_allclose(got, model.predict_proba(rows), atol=1e-6)


def test_categories_of_histogram_boosting_in_a_frame(tmp_path: Path) -> None:
    model = HistGradientBoostingClassifier(max_iter=5, categorical_features="from_dtype", min_samples_leaf=5)
    model.fit(SHOP.astype({"city": "category"}), BOUGHT)
    table = SHOP.copy()
    table.loc[0, "city"] = "unheard of"
    table.loc[1, "city"] = np.nan
    _, got = answers(model, table, tmp_path)
    kinds = pd.CategoricalDtype(["Lima", "Oslo", "Rome", "unheard of"])
    np.testing.assert_allclose(got, model.predict_proba(table.astype({"city": kinds})), atol=1e-6)
    assert proof(model, tmp_path).evidence.failures == []


SEARCHES: dict[str, Callable[[], Any]] = {
    "grid": lambda: GridSearchCV(shop(), {"logisticregression__C": [0.1, 1.0]}, cv=2),
    "random": lambda: RandomizedSearchCV(shop(), {"logisticregression__C": [0.1, 1.0]}, n_iter=1, cv=2),
    "halving": lambda: HalvingGridSearchCV(shop(), {"logisticregression__C": [0.1, 1.0]}, cv=2),
    "calibrated": lambda: CalibratedClassifierCV(shop(), cv=2),
    "vote": lambda: VotingClassifier([("a", shop()), ("b", shop(BernoulliNB()))], voting="soft"),
    "stack": lambda: StackingClassifier([("a", shop()), ("b", shop(RandomForestClassifier(**FOREST)))], cv=2),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_pipelines_inside_others(name: str, tmp_path: Path) -> None:
    """Of a data frame, whose columns stay inputs of their own."""
    model = SEARCHES[name]().fit(SHOP, BOUGHT)
    estimator = estimator_of(model)
    assert [(column.input, column.kind) for column in estimator.columns] == [
        ("city", "category"),
        ("age", "number"),
    ]
    table = SHOP.copy()
    table.loc[:9, "city"] = "unheard of"
    label, got = answers(model, table, tmp_path)
    np.testing.assert_allclose(got, model.predict_proba(table), atol=1e-6)
    assert label.tolist() == model.predict(table).tolist()


@pytest.mark.parametrize(
    ("classes", "named"),
    [
        ([False, True], ("False", "True")),
        ([-3, 4], ("-3", "4")),
        (["ja, nein", "é"], ("ja, nein", "é")),
        ([1.0, 2.0], ("1.0", "2.0")),
    ],
)
def test_names_of_classes(classes: list[Any], named: tuple[str, ...], tmp_path: Path) -> None:
    model = DecisionTreeClassifier(random_state=0).fit(TABLE, np.array(classes)[(THREE > 0).astype(int)])
    label, _ = answers(model, TABLE, tmp_path)
    assert classes_of(model) == named
    assert label.tolist() == [str(value) for value in model.predict(TABLE).tolist()]


def test_even_votes_go_to_the_first_class(tmp_path: Path) -> None:
    target = CHANCE.choice(["no", "perhaps", "yes"], COUNT)
    model = RandomForestClassifier(n_estimators=20, random_state=0).fit(TABLE, target)
    unseen = CHANCE.normal(size=(2000, 4))
    shares = np.sort(model.predict_proba(unseen), axis=1)
    assert (shares[:, -1] == shares[:, -2]).sum() > 20
    label, _ = answers(model, unseen, tmp_path, numbers="FLOAT")
    assert label.tolist() == model.predict(unseen).tolist()


def collides() -> Any:
    model = DecisionTreeClassifier().fit(TABLE, THREE)
    model.classes_ = np.array([1, "1", 2], dtype=object)
    return model


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (LinearSVC().fit(TABLE, THREE), "LinearSVC has no probabilities.*CalibratedClassifierCV"),
        (make_pipeline(StandardScaler(), LinearSVC()).fit(TABLE, THREE), "CalibratedClassifierCV"),
        (VotingClassifier([("a", regression())]).fit(TABLE, THREE), "voting='soft'"),
        (
            VotingClassifier([("a", regression()), ("b", RidgeClassifier())]).fit(TABLE, THREE),
            "voting='soft', RidgeClassifier in CalibratedClassifierCV",
        ),
        (
            VotingClassifier([("b", RidgeClassifier())], voting="soft").fit(TABLE, THREE),
            "VotingClassifier has no probabilities.*RidgeClassifier in CalibratedClassifierCV",
        ),
        (FixedThresholdClassifier(regression()).fit(TABLE, TWO), "by a threshold.*export its estimator_"),
        (
            MultiOutputClassifier(regression()).fit(TABLE, np.column_stack([THREE, THREE])),
            "several labels to a row",
        ),
        (RandomForestClassifier(2).fit(TABLE, np.column_stack([THREE, THREE])), "several labels to a row"),
        (collides(), "two classes have one name as text: 1, 1, 2.*rename one"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_refused_by_name(model: Any, said: str) -> None:
    with pytest.raises(ExportError, match=said):
        classes_of(model)


def test_neighbours_by_their_distance_are_refused(tmp_path: Path) -> None:
    model = KNeighborsClassifier(weights="distance").fit(TABLE, THREE)
    with pytest.raises(ExportError, match="weights='distance'.*weights='uniform'"):
        answers(model, TABLE, tmp_path)


def test_ways_out_of_what_is_refused(tmp_path: Path) -> None:
    soft = VotingClassifier([("a", regression())], voting="soft")
    fixed = FixedThresholdClassifier(regression()).fit(TABLE, TWO).estimator_
    vectors = CalibratedClassifierCV(SVC(), ensemble=False, cv=2)
    wrapped = [("a", regression()), ("b", CalibratedClassifierCV(RidgeClassifier(), cv=2))]
    both = VotingClassifier(wrapped, voting="soft")
    for model in (CalibratedClassifierCV(LinearSVC(), cv=2), soft, fixed, vectors, both):
        model.fit(TABLE, TWO)
        label, got = answers(model, TABLE, tmp_path)
        assert label.tolist() == model.predict(TABLE).tolist()
        np.testing.assert_allclose(got, model.predict_proba(TABLE), atol=1e-5)
