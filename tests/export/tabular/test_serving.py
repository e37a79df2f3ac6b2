"""Estimators on a real Triton, by every client: what is missing, and what is refused and for whom."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import joblib
import lightgbm
import numpy as np
import pandas as pd
import pytest
import tritonclient.grpc as triton
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from tritonclient.utils import InferenceServerException

from clients import AsyncGrpcClient, BadInput, GrpcClient, HttpClient
from export import run
from export.encoder.recipe import EncoderRecipe
from export.repository import check_kind
from serving.embedded import Server, running
from shoal.cli import app as cli
from shoal.cli.compare import compare
from shoal.errors import RepositoryError
from shoal.manifest import manifests
from tests.export.tabular.support import frame

CHANCE = np.random.default_rng(0)
COUNT = 200
SHOP = frame(
    {"city": CHANCE.choice(["Rome", "Lima"], COUNT), "age": CHANCE.integers(18, 80, COUNT).astype(float)}
)
BOUGHT = np.where((SHOP["city"] == "Rome") ^ (SHOP["age"] > 50), "yes", "no")
TEXTS = [" ".join(CHANCE.choice(["good", "bad", "Café", "fish"], 4)) for _ in range(COUNT)]
MOOD = np.array(["pos" if "good" in text else "neg" for text in TEXTS])
STAMPS = np.column_stack([1.7e9 + CHANCE.integers(0, 500, COUNT), CHANCE.normal(size=COUNT)])
Client = GrpcClient | HttpClient


def shop() -> Any:
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    columns = ColumnTransformer([("c", OneHotEncoder(), ["city"]), ("n", numbers, ["age"])])
    return make_pipeline(columns, LogisticRegression()).fit(SHOP, BOUGHT)


MODELS: dict[str, Any] = {
    "shop": shop(),
    "mood": make_pipeline(TfidfVectorizer(strip_accents="unicode"), LogisticRegression()).fit(TEXTS, MOOD),
    "stamps": lightgbm.LGBMRegressor(n_estimators=5, verbose=-1).fit(STAMPS, STAMPS[:, 0] % 7),
    "price": make_pipeline(StandardScaler(), Ridge()).fit(STAMPS[:, 1:], STAMPS[:, 1] * 3),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    for name, model in MODELS.items():
        joblib.dump(model, folder / f"{name}.pkl")
        values = {"source": str(folder / f"{name}.pkl"), "trust_pickle": True}
        run.export(run.recipe_of(values), folder / "model_repository")
    return folder / "model_repository"


@pytest.fixture(scope="module")
def server(repository: Path, _own_cache: None) -> Iterator[Server]:
    with running(repository) as started:
        yield started


@pytest.fixture(scope="module", params=["grpc", "http"])
def caller(request: pytest.FixtureRequest, server: Server) -> Iterator[Client]:
    kind = {"grpc": GrpcClient, "http": HttpClient}[request.param]
    with kind(getattr(server, request.param), timeout=300) as client:
        yield client


def scores(rows: Any, classes: Any) -> np.ndarray:
    return np.array([[next(x.score for x in row if x.label == name) for name in classes] for row in rows])


def test_what_users_call_keeps_its_name_inputs_and_outputs(caller: Client) -> None:
    def described(model: str) -> list[tuple[str, str]]:
        found = caller.metadata(model)
        return [(entry["name"], entry["datatype"]) for entry in (*found["inputs"], *found["outputs"])]

    assert described("shop") == [("city", "BYTES"), ("age", "FP32"), ("label", "BYTES"), ("score", "FP32")]
    assert described("mood") == [("text", "BYTES"), ("label", "BYTES"), ("score", "FP32")]
    assert described("price") == [("features", "FP32"), ("prediction", "FP32")]
    assert described("stamps") == [("features", "FP64"), ("prediction", "FP32")]


@pytest.mark.parametrize("name", MODELS)
def test_rows_over_the_wire(server: Server, repository: Path, name: str) -> None:
    manifest, answers = run.verify_wire(name, repository, server.grpc)
    assert answers.failures == []
    measured = manifest.evidence["raw"]
    assert (
        (answers.inputs, answers.agreement)
        == (measured["inputs"], measured["agreement"])
        == (measured["inputs"], 1)
    )
    assert answers.original == measured["original"]


@pytest.mark.parametrize(
    "age", [[None], [float("nan")], [pd.NA], np.array([np.nan]), pd.Series([None])], ids=repr
)
def test_a_column_of_nothing_but_a_missing_number(caller: Client, age: Any) -> None:
    expected = MODELS["shop"].predict_proba(pd.DataFrame({"city": ["Rome"], "age": [np.nan]}))
    rows = caller.classify_rows({"city": ["Rome"], "age": age}, model="shop")
    np.testing.assert_allclose(scores(rows, MODELS["shop"].classes_), expected, atol=1e-6)


def test_the_data_frame_itself(caller: Client) -> None:
    table = SHOP.assign(age=SHOP["age"].where(SHOP["age"] > 30))
    rows = caller.classify_rows(table, model="shop")
    expected = MODELS["shop"].predict_proba(table)
    np.testing.assert_allclose(scores(rows, MODELS["shop"].classes_), expected, atol=1e-6)
    assert [row[0].label for row in rows] == MODELS["shop"].predict(table).tolist()


def test_the_asyncio_client(server: Server) -> None:
    async def calls() -> None:
        async with AsyncGrpcClient(server.grpc, timeout=300) as client:
            rows = await client.classify_rows({"city": ["Rome"], "age": [None]}, model="shop")
            assert {label.label for label in rows[0]} == {"no", "yes"}
            with pytest.raises(BadInput, match="row 1, column 'city': 'Oslo'"):
                await client.classify_rows({"city": ["Rome", "Oslo"], "age": [1, 2]}, model="shop")
            with pytest.raises(BadInput, match="row 0, column city: 7 is int"):
                await client.classify_rows({"city": [7], "age": [1]}, model="shop")
            got = await client.predict(STAMPS, model="stamps")
            np.testing.assert_allclose(got[:, 0], MODELS["stamps"].predict(STAMPS), rtol=1e-6)

    asyncio.run(calls())


@pytest.mark.parametrize(
    ("table", "model", "said"),
    [
        (
            {"city": ["Rome", "Oslo"], "age": [30, 40]},
            "shop",
            "row 1, column 'city': 'Oslo' is none of .* 'Lima', 'Rome'",
        ),
        ({"city": [None], "age": [30]}, "shop", "row 0, column 'city': the value is missing"),
        (
            {"city": ["Rome"], "age": [float("inf")]},
            "shop",
            "row 0, column 'age': inf is not a finite number",
        ),
        ([[0.5], [None]], "price", r"row 1, column 'x0': the value is missing \(NaN\)"),
        ([[0.5, 1.0]], "price", "shape"),
    ],
)
def test_refused(caller: Client, table: Any, model: str, said: str) -> None:
    call = caller.predict if model == "price" else caller.classify_rows
    with pytest.raises(BadInput, match=said):
        call(table, model=model)


def test_refused_for_callers_without_our_clients(server: Server) -> None:
    tensors = [triton.InferInput("city", [1, 1], "BYTES"), triton.InferInput("age", [1, 1], "FP32")]
    tensors[0].set_data_from_numpy(np.array([[b"Oslo"]], dtype=object))
    tensors[1].set_data_from_numpy(np.array([[30.0]], dtype=np.float32))
    with pytest.raises(InferenceServerException, match="row 0, column 'city': 'Oslo'") as caught:
        triton.InferenceServerClient(server.grpc).infer("shop", tensors)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    body = {
        "inputs": [
            {"name": "city", "shape": [1, 1], "datatype": "BYTES", "data": ["Oslo"]},
            {"name": "age", "shape": [1, 1], "datatype": "FP32", "data": [30]},
        ]
    }
    request = urllib.request.Request(f"http://{server.http}/v2/models/shop/infer", json.dumps(body).encode())
    with pytest.raises(urllib.error.HTTPError) as answered:
        urllib.request.urlopen(request)
    assert answered.value.code == 400
    assert "row 0, column 'city': 'Oslo' is none of the categories" in answered.value.read().decode()


def test_a_bad_row_fails_nobody_elses_request(server: Server) -> None:
    def call(number: int) -> str:
        with GrpcClient(server.grpc, timeout=300) as client:
            city = "Oslo" if number % 4 == 0 else "Rome"
            try:
                return client.classify_rows({"city": [city], "age": [60.0]}, model="shop")[0][0].label
            except BadInput as error:
                return str(error)

    with ThreadPoolExecutor(16) as pool:
        said = list(pool.map(call, range(64)))
    (label,) = MODELS["shop"].predict(pd.DataFrame({"city": ["Rome"], "age": [60.0]}))
    assert [answer == label for answer in said] == [number % 4 != 0 for number in range(64)]
    assert all("'Oslo' is none of" in answer for answer in said[::4])


def test_texts(caller: Client) -> None:
    hard = ["good CAFE", "", "😀 bad", "fish " * 300, "Cafe\u0301"]
    rows = caller.classify_rows({"text": hard}, model="mood")
    np.testing.assert_allclose(
        scores(rows, MODELS["mood"].classes_), MODELS["mood"].predict_proba(hard), atol=1e-6
    )
    assert [row[0].label for row in caller.classify(hard, model="mood")] == MODELS["mood"].predict(
        hard
    ).tolist()


def test_numbers_that_float32_does_not_hold(caller: Client) -> None:
    got = caller.predict(STAMPS, model="stamps")
    np.testing.assert_allclose(got[:, 0], MODELS["stamps"].predict(STAMPS), rtol=1e-6)
    assert not np.allclose(
        got[:, 0], MODELS["stamps"].predict(STAMPS.astype(np.float32).astype(float)), rtol=0.01
    )


@pytest.mark.parametrize("name", MODELS)
def test_without_a_row_the_command_says_one_that_works(
    name: str,
    server: Server,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["shoal", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    assert run("infer", name, "--url", server.grpc) == 2
    said = capfd.readouterr().err
    (line,) = said.splitlines()
    (command,) = re.findall(r"\((shoal infer .*)\)$", line)
    words = subprocess.run(
        ["bash", "-c", f'shoal() {{ printf "%s\\0" "$@"; }}; {command}'], check=True, capture_output=True
    ).stdout.decode()
    assert run(*words.split("\0")[:-1], "--json") == 0
    answered = json.loads(capfd.readouterr().out)
    assert answered["model"] == name
    assert {"label", "prediction"} & set(answered)


def test_versions_compare_and_verify_again(repository: Path) -> None:
    for name in MODELS:
        (manifest,) = manifests(repository, name)
        assert (manifest.network, manifest.version) == (f"{name}_estimator", 1)
        found = compare(repository, manifest, manifest)["answers"]
        assert found.get("label", {"same": 1.0}) == {"same": 1.0}
        assert not run.verify(name, repository).evidence[0].failures
    assert not (repository / "stamps_rows").exists()  # it refuses nothing


def test_a_name_is_not_for_another_kind_of_model(repository: Path) -> None:
    taken = "holds price already, which is an estimator, and this is an encoder .choose another --name, or"
    with pytest.raises(RepositoryError, match=taken):
        check_kind(repository, "price", EncoderRecipe().to_dict())
    check_kind(repository, "price", {"task": "tabular"})
    check_kind(repository, "unheard_of", EncoderRecipe().to_dict())
