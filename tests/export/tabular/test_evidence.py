"""Evidence: made rows hold what hurts, the original is asked as its users ask it, and wrong graphs show."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import msgspec
import numpy as np
import onnx
import pytest
import xgboost
from onnx import helper, numpy_helper
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeRegressor

from export import run
from export.evidence import Verified
from export.exported import Exported
from export.raw.evidence import RawEvidence, RawTolerance
from export.tabular import values
from export.tabular.agreement import Served
from export.tabular.evidence import TabularEvidence
from export.tabular.find import find_estimator
from export.tabular.original import Original
from export.tabular.sample import sample
from export.tabular.verify import measure
from serving.models.rows import Check
from shoal.errors import NotProven
from tests.export.tabular.support import Proof, estimator_of, frame, proof

CHANCE = np.random.default_rng(0)
TABLE = CHANCE.normal(size=(300, 3)).round(2)
TABLE[:, 2] = CHANCE.integers(0, 8, 300)
TARGET = (TABLE[:, 0] + (TABLE[:, 2] % 3 == 0) > 0.5).astype(int)
FRAME = frame({"city": np.array(["Oslo", "Rome", "Lima"])[TABLE[:, 2].astype(int) % 3], "age": TABLE[:, 0]})
GOOD = TabularEvidence(
    size_bytes=1, rows=100, rows_from="held-out", own_rows=100, numbers="FLOAT",
    agreement=1.0, max_abs_diff=1e-7, mean_abs_diff=1e-8, rounding_diff=0.0,
    on_edge=0, refused=0, not_refused=0, blur=0.0, batch_invariance=0.0,
    latency_ms=1.0, throughput=1.0, reference_latency_ms=1.0, reference_throughput=1.0,
    metric="r2", value=0.9, reference_value=0.9,
    raw=RawEvidence("scikit-learn: predict", 100, 1.0, 1e-7, None, 0, 0, None, RawTolerance(1e-3)),
)  # fmt: skip


@pytest.fixture(scope="module")
def forest(tmp_path_factory: pytest.TempPathFactory) -> Proof:
    return proof(find_estimator("example:forest"), tmp_path_factory.mktemp("forest"))


def test_the_example_is_proven(forest: Proof) -> None:
    evidence = forest.evidence
    assert Verified(forest.served.exported, evidence).evidence is evidence
    assert (evidence.rows_from, evidence.own_rows, evidence.numbers) == ("held-out", 143, "FLOAT")
    assert evidence.rows > 143 + 64 + 500
    assert (evidence.agreement, evidence.batch_invariance, evidence.on_edge) == (1.0, 0.0, 0)
    assert evidence.max_abs_diff < 1e-6
    assert evidence.metric == "accuracy"
    assert evidence.value == evidence.reference_value
    assert evidence.value is not None and evidence.value > 0.93
    # Each of the 30 columns refuses both infinities and what is beyond float32, and nothing else.
    assert (evidence.refused, evidence.not_refused) == (120, 0)
    assert evidence.to_dict()["proven"] is True
    assert [(s.name, s.dtype, s.dims) for s in forest.served.exported.inputs] == [
        ("features", "FLOAT", (-1, 30))
    ]
    assert [(s.name, s.dtype, s.dims) for s in forest.served.exported.outputs] == [
        ("label", "STRING", (-1, 2)),
        ("score", "FLOAT", (-1, 2)),
    ]


def test_the_example_is_the_same_each_time(forest: Proof) -> None:
    assert find_estimator("example:forest").describe() == forest.estimator.describe()
    again = sample(forest.estimator)
    for name, column in forest.sample.rows.values.items():
        np.testing.assert_array_equal(again.rows.values[name], column)


def test_made_rows_hold_every_value_that_hurts() -> None:
    model = lightgbm.LGBMClassifier(n_estimators=3, verbose=-1, num_leaves=6)
    model.fit(TABLE, TARGET, categorical_feature=[2])
    found = sample(estimator_of(model))
    number, code = (found.rows.values[name] for name in ("x0", "x2"))
    bits = {value.tobytes() for value in number}
    assert {np.float64(value).tobytes() for value in values.NUMBERS} <= bits
    threshold = next(float(line.split("=")[1].split()[0]) for line in _lines(model, "threshold"))
    on_it = [threshold, np.nextafter(threshold, np.inf), np.nextafter(threshold, -np.inf)]
    near = np.float32(threshold)
    on_it += [float(np.nextafter(near, np.float32(end))) for end in (np.inf, -np.inf)]
    assert {np.float64(value).tobytes() for value in on_it} <= bits
    assert {-1.0, 0.5, 1.5, 8.0, float(code[np.isfinite(code)].max())} <= set(code)
    assert found.checks == ()
    assert found.refused is None


def _lines(model: Any, name: str) -> list[str]:
    return [line for line in model.booster_.model_to_string().splitlines() if line.startswith(f"{name}=")]


def test_made_texts_hold_what_looks_like_something_else() -> None:
    columns = ColumnTransformer([("c", OneHotEncoder(handle_unknown="ignore"), ["city"])])
    found = sample(estimator_of(make_pipeline(columns, LogisticRegression()).fit(FRAME, TARGET)))
    assert {None, "Oslo", " Rome", "1", "1.0", " 1", "nan", "True", "None"} <= set(found.rows.values["city"])


def test_jumps_are_found_where_no_threshold_is_known(tmp_path: Path) -> None:
    """Behind a scaler, trees split where nobody says: rows lie on both sides of it all the same."""
    model = make_pipeline(StandardScaler(), DecisionTreeRegressor(max_leaf_nodes=2)).fit(
        TABLE[:, :1], TABLE[:, 0] > 0.5
    )
    found = sample(estimator_of(model))
    column = np.unique(found.rows.values["x0"][np.isfinite(found.rows.values["x0"])])
    answers = model.predict(column[:, None])
    (jump,) = np.flatnonzero(np.diff(answers))
    assert np.nextafter(column[jump], np.inf) == column[jump + 1]
    assert proof(model, tmp_path).evidence.failures == []


def shop(*encoders: tuple[str, Any, list[str]]) -> Any:
    return make_pipeline(ColumnTransformer(list(encoders)), LogisticRegression()).fit(FRAME, TARGET)


@pytest.mark.parametrize(
    ("model", "checks"),
    [
        (
            shop(("c", OneHotEncoder(), ["city"]), ("n", StandardScaler(), ["age"])),
            (
                Check("city", "city", missing=False, known=("Lima", "Oslo", "Rome")),
                Check("age", "age", missing=False, infinite=False, minus_infinite=False),
            ),
        ),
        (
            shop(("c", OneHotEncoder(handle_unknown="ignore"), ["city"]), ("n", SimpleImputer(), ["age"])),
            (Check("age", "age", infinite=False, minus_infinite=False),),
        ),
        (
            make_pipeline(OrdinalEncoder(), LogisticRegression()).fit(TABLE[:, 2:], TARGET),
            (
                Check(
                    "x0", "features", missing=False, infinite=False, minus_infinite=False,
                    known=tuple(map(float, range(8))),
                ),
            ),
        ),
        (
            make_pipeline(FunctionTransformer(np.exp), Ridge()).fit(TABLE[:, :1], TABLE[:, 0]),
            (
                Check(
                    "x0", "features", missing=False, infinite=False, minus_infinite=True,
                    most=float(np.log(np.finfo(float).max)),
                ),
            ),
        ),
        (lightgbm.LGBMRegressor(n_estimators=2, verbose=-1).fit(TABLE, TARGET), ()),
    ],
    ids=["encoder", "nothing-unknown", "codes", "up-to-a-number", "takes-all"],
)  # fmt: skip
def test_what_the_original_refuses_is_what_will_be_refused(
    model: Any, checks: tuple[Check, ...], tmp_path: Path
) -> None:
    found = proof(model, tmp_path)
    assert found.sample.checks == checks
    assert found.evidence.failures == []
    assert found.evidence.not_refused == 0
    assert (found.evidence.refused > 0) == bool(checks)


def test_the_original_is_called_as_its_users_call_it(tmp_path: Path) -> None:
    """From its file alone: labels as `predict` has them, probabilities as `predict_proba`."""
    model = lightgbm.LGBMClassifier(n_estimators=3, verbose=-1).fit(TABLE, TARGET)
    model.booster_.save_model(tmp_path / "l.txt")
    booster = xgboost.XGBClassifier(n_estimators=3).fit(TABLE, TARGET)
    booster.save_model(tmp_path / "x.json")
    for path, expected in (
        (tmp_path / "l.txt", lightgbm.Booster(model_file=tmp_path / "l.txt").predict(TABLE)),
        (tmp_path / "x.json", booster.predict_proba(TABLE)[:, 1]),
    ):
        found = Original.load(path).answers(TABLE)
        np.testing.assert_allclose(found.scores[:, 1], expected, rtol=1e-7)
        assert found.labels is not None
        assert found.labels.tolist() == np.where(expected > 0.5, "1", "0").tolist()


def _attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    return next(entry for entry in node.attribute if entry.name == name)


def _comparison(node: onnx.NodeProto) -> None:
    _attribute(node, "nodes_modes").strings[0] = b"BRANCH_LT"


def _missing_side(node: onnx.NodeProto) -> None:
    sides = _attribute(node, "nodes_missing_value_tracks_true").ints
    sides[0] = 1 - sides[0]


def _threshold(node: onnx.NodeProto) -> None:
    entry = _attribute(node, "nodes_values_as_tensor")
    numbers = numpy_helper.to_array(entry.t).copy()
    numbers[0] = np.float32(numbers[0])  # a float32, where the original has a float64
    entry.CopyFrom(
        helper.make_attribute("nodes_values_as_tensor", numpy_helper.from_array(numbers, "thresholds"))
    )


def _leaf(node: onnx.NodeProto) -> None:
    entry = _attribute(node, "target_weights_as_tensor")
    numbers = numpy_helper.to_array(entry.t).copy()
    numbers[0] += 0.1
    entry.CopyFrom(
        helper.make_attribute("target_weights_as_tensor", numpy_helper.from_array(numbers, "leaves"))
    )


@pytest.mark.parametrize(
    "spoil", [_comparison, _missing_side, _threshold, _leaf], ids=lambda f: f.__name__[1:]
)
def test_one_wrong_node_is_not_proven(spoil: Callable[[onnx.NodeProto], None], tmp_path: Path) -> None:
    """At the root of one of three trees, on made rows alone; the refusal names rows with both answers."""
    model = lightgbm.LGBMClassifier(n_estimators=3, verbose=-1, num_leaves=8, learning_rate=1.0)
    found = proof(model.fit(np.where(TABLE == 0.5, np.nan, TABLE), TARGET), tmp_path)
    assert found.evidence.failures == []
    graph = onnx.load(found.served.exported.path)
    (trees,) = (node for node in graph.graph.node if node.op_type.startswith("TreeEnsemble"))
    spoil(trees)
    onnx.save(graph, tmp_path / "wrong.onnx")
    wrong = dataclasses.replace(found.served, exported=Exported.read(tmp_path / "wrong.onnx"))
    evidence = measure(wrong, found.sample)
    with pytest.raises(NotProven, match=r"for x0=.* the original says [01] 0\.\d+ and the graph [01] 0\.\d+"):
        Verified(wrong.exported, evidence)


def test_a_wrong_constant_of_a_regression_is_seen_beside_large_predictions(tmp_path: Path) -> None:
    """Made rows hold 1e10, which must not make what is wrong in ordinary rows look small."""
    found = proof(Ridge().fit(TABLE, TABLE[:, 0] * 3), tmp_path)
    graph = onnx.load(found.served.exported.path)
    for entry in graph.graph.initializer:
        numbers = numpy_helper.to_array(entry)
        if numbers.shape == (1,):
            entry.CopyFrom(numpy_helper.from_array(numbers + 0.1, entry.name))
    onnx.save(graph, tmp_path / "wrong.onnx")
    wrong = dataclasses.replace(found.served, exported=Exported.read(tmp_path / "wrong.onnx"))
    assert found.evidence.failures == []
    assert "difference" in measure(wrong, found.sample).failures[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"agreement": 0.98}, "agreement 0.9800 < 0.999"),
        ({"agreement": float("nan")}, "agreement nan"),
        (
            {"max_abs_diff": 0.2, "examples": ("for x=1 it differs",)},
            "difference 0.2 > 0.001; for x=1 it differs",
        ),
        ({"mean_abs_diff": 0.01}, "mean difference 0.01 > 0.0001"),
        ({"batch_invariance": 0.1}, "batch invariance 0.1 > 1e-05"),
        ({"value": 0.89}, "r2 loses 0.0100 > 0.001"),
    ],
)
def test_evidence_refuses(forest: Proof, changes: dict[str, Any], said: str) -> None:
    exported = forest.served.exported
    assert Verified(exported, GOOD).evidence is GOOD
    with pytest.raises(NotProven, match=said):
        Verified(exported, dataclasses.replace(GOOD, **changes))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (SVC(probability=True, random_state=0), "not always its likeliest class; CalibratedClassifierCV"),
        (KNeighborsClassifier(), "equally near rows"),
    ],
    ids=["svc", "neighbours"],
)
def test_what_the_original_decides_otherwise_is_told(model: Any, said: str, tmp_path: Path) -> None:
    import joblib

    chance = np.random.default_rng(5)
    noisy = np.where(chance.random(len(TARGET)) < 0.2, 1 - TARGET, TARGET)
    joblib.dump(model.fit(TABLE, noisy), tmp_path / "model.pkl")
    recipe = run.recipe_of({"source": str(tmp_path / "model.pkl"), "trust_pickle": True})
    with pytest.raises(NotProven, match=said) as caught:
        run.export(recipe, tmp_path / "repository")
    assert "eval-data" not in str(caught.value)  # which would not help


def test_rows_of_the_user_help_where_no_row_can_be_made_up(tmp_path: Path) -> None:
    """An original that takes one column only where it equals another refuses whatever is made up."""
    import joblib

    from tests.export.tabular import stubborn

    model = stubborn.Stubborn().fit(TABLE, TARGET)
    joblib.dump(model, tmp_path / "stubborn.pkl")
    recipe = run.recipe_of({"source": str(tmp_path / "stubborn.pkl"), "trust_pickle": True})
    with pytest.raises(Exception, match=r"refuses every row that is made up.*\(--eval-data"):
        run.export(recipe, tmp_path / "repository")
    data = load_breast_cancer().data[:20]
    lines = "\n".join(f"{a},{a},{b},{int(a > 14)}" for a, b in data[:, :2])
    (tmp_path / "rows.csv").write_text(f"a,b,c,label\n{lines}\n")
    recipe = msgspec.structs.replace(recipe, eval_data=tmp_path / "rows.csv")
    with pytest.raises(Exception, match="Stubborn has no conversion to ONNX"):  # so the rows were taken
        run.export(recipe, tmp_path / "repository")


def test_served_is_what_the_reader_lets_through(tmp_path: Path) -> None:
    found = proof(shop(("c", OneHotEncoder(), ["city"]), ("n", StandardScaler(), ["age"])), tmp_path)
    assert isinstance(found.served, Served)
    assert found.sample.refused is not None
    assert len(found.sample.refused) == found.evidence.refused


def test_a_forest_of_float32_rows_needs_no_more_on_the_wire(tmp_path: Path) -> None:
    model = RandomForestClassifier(3, random_state=0).fit(TABLE, TARGET)
    evidence = proof(model, tmp_path).evidence
    assert (evidence.numbers, evidence.rounding_diff, evidence.failures) == ("FLOAT", 0.0, [])


def test_numbers_that_no_float32_can_hold_stay_float64_on_the_wire(tmp_path: Path) -> None:
    """The original refuses every row whose 0.1, 0.2 or 0.3 was rounded."""
    table = np.array([[0.1], [0.2], [0.3]] * 10)
    model = make_pipeline(OrdinalEncoder(), LogisticRegression()).fit(table, [0, 1, 1] * 10)
    evidence = proof(model, tmp_path).evidence
    assert (evidence.numbers, evidence.failures) == ("DOUBLE", [])
