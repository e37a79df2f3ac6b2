"""Every task behind the gateway, on the real server: against the models' own library where paths are those
of other servers, and else against our client of Triton, which `tests.export` compares with that library."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sentence_transformers import CrossEncoder
from transformers import AutoTokenizer, pipeline

from clients import GrpcClient
from export.encoder import verify
from export.encoder.recipe import EncoderRecipe
from export.encoder.tasks.images import sample_image
from export.run import export, recipe_of
from serving import service as services
from serving.ports import Ports
from tests import tiny
from tests.export.encoder.test_tasks import CHECKPOINTS, TEXTS
from tests.export.tabular.test_serving import shop
from tests.serving.gateway.documented import check
from tests.serving.gateway.running import Running, gateway

NAMES = ("mood", "ranker", "nli", "names", "squad", "cloze", "pictures")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in NAMES:
        architecture, config, _ = CHECKPOINTS[name]
        if name == "pictures":
            tiny.make_vit(folder / name, **config)
        else:
            tiny.make(folder / name, architecture, **config)
    return {name: folder / name for name in NAMES}


@pytest.fixture(scope="module")
def service(
    checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[services.Service]:
    repository = tmp_path_factory.mktemp("tasks") / "model_repository"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "SPEED_ROUNDS", 1)
        for name, source in checkpoints.items():
            task = "zero-shot-classification" if name == "nli" else None  # no config tells of this one
            export(EncoderRecipe(source=str(source), name=name, task=task, precisions=("fp32",)), repository)
        export(recipe_of({"source": "example:forest", "name": "forest"}), repository)
        pickled = repository.parent / "shop.pkl"
        joblib.dump(shop(), pickled)
        export(recipe_of({"source": str(pickled), "trust_pickle": True}), repository)
    started = services.start(repository, Ports(0, 0, 0), detach=True)
    yield started
    services.stop(started)


@pytest.fixture(scope="module")
def running(service: services.Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with gateway(service, log=tmp_path_factory.mktemp("gateway") / "log") as made:
        yield made


@pytest.fixture(scope="module")
def triton(service: services.Service) -> Iterator[GrpcClient]:
    with GrpcClient(service.grpc) as client:
        yield client


def ask(running: Running, path: str, **body: Any) -> Any:
    status, told, _ = running.post(path, body)
    assert status == 200, told
    check(path, told)
    return told


def test_documents_are_ranked_as_the_cross_encoder_ranks_them(
    running: Running, checkpoints: dict[str, Path]
) -> None:
    query, texts = "Who wrote Python?", [*TEXTS, *(f"text number {number}" for number in range(40))]
    expected = CrossEncoder(str(checkpoints["ranker"])).predict([(query, text) for text in texts])
    order = np.argsort(-expected, kind="stable").tolist()
    for path in ("/v1/rerank", "/v2/rerank"):
        told = ask(running, path, model="ranker", query=query, documents=texts, top_n=5)
        assert [entry["index"] for entry in told["results"]] == order[:5]
        scores = [entry["relevance_score"] for entry in told["results"]]
        np.testing.assert_allclose(scores, expected[order[:5]], atol=1e-4)
    objects = ask(
        running,
        "/v1/rerank",
        model="ranker",
        query=query,
        documents=[{"text": text} for text in texts[:3]],
        return_documents=True,
    )
    assert {e["index"]: e["document"]["text"] for e in objects["results"]} == dict(enumerate(texts[:3]))
    tei = ask(running, "/rerank", query=query, texts=texts)
    assert [entry["index"] for entry in tei] == order
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["ranker"])
    counts = [len(tokenizer(query, text, truncation=True).input_ids) for text in texts[:3]]
    assert objects["usage"]["prompt_tokens"] == sum(counts)


def test_labels_are_those_of_the_pipeline(running: Running, checkpoints: dict[str, Path]) -> None:
    original = pipeline("text-classification", model=str(checkpoints["mood"]), top_k=None)
    expected = original(TEXTS)
    for path in ("/v1/classify", "/v1/tasks/text-classification"):
        told = ask(running, path, model="mood", input=TEXTS)
        assert [entry["index"] for entry in told["data"]] == list(range(len(TEXTS)))
        for entry, labels in zip(told["data"], expected, strict=True):
            assert [one["label"] for one in entry["labels"]] == [one["label"] for one in labels]
            assert [one["score"] for one in entry["labels"]] == pytest.approx(
                [one["score"] for one in labels], abs=1e-4
            )
    one = ask(running, "/predict", inputs=TEXTS[0])
    assert [entry["label"] for entry in one] == [entry["label"] for entry in expected[0]]
    pair = ask(running, "/predict", inputs=[TEXTS[0], TEXTS[1]])
    paired = original({"text": TEXTS[0], "text_pair": TEXTS[1]}, top_k=None)
    assert [entry["score"] for entry in pair] == pytest.approx([e["score"] for e in paired], abs=1e-4)
    several = ask(running, "/predict", inputs=[[TEXTS[0]], [TEXTS[0], TEXTS[1]]])
    assert several == [one, pair]


def test_the_other_tasks_answer_as_triton_does(running: Running, triton: GrpcClient) -> None:
    def data(task: str, **body: Any) -> list[dict[str, Any]]:
        told = ask(running, f"/v1/tasks/{task}", **body)["data"]
        return [{name: value for name, value in entry.items() if name != "index"} for entry in told]

    def plain(key: str, rows: Any) -> list[dict[str, Any]]:
        return [{key: [asdict(value) for value in row]} for row in rows]

    masked = [f"{text} <mask>" for text in TEXTS[:2]]
    picture = sample_image(0)
    assert data("zero-shot-classification", model="nli", input=TEXTS, candidate_labels=["a", "b"]) == plain(
        "labels", triton.zero_shot(TEXTS, ["a", "b"], model="nli")
    )
    assert data("token-classification", model="names", input=TEXTS) == plain(
        "entities", triton.entities(TEXTS, model="names")
    )
    assert data("fill-mask", model="cloze", input=masked) == plain(
        "labels", triton.fill_mask(masked, model="cloze")
    )
    assert data("question-answering", model="squad", question="Who?", context=TEXTS[-1]) == [
        asdict(triton.answer("Who?", TEXTS[-1], model="squad"))
    ]
    coded = base64.b64encode(picture).decode()
    expected = plain("labels", triton.classify_images([picture], model="pictures"))
    assert data("image-classification", model="pictures", image=coded) == expected
    assert data("image-classification", model="pictures", image=f"data:image/png;base64,{coded}") == expected


def test_rows_of_a_table(running: Running, triton: GrpcClient) -> None:
    _, told, _ = running.get("/v1/models/forest")
    task, inputs = told["shoal"]["task"], told["shoal"]["inputs"]
    (width,) = inputs["features"]["dims"]
    rows = np.random.default_rng(0).normal(size=(5, width)).tolist()
    expected = triton.classify_rows(np.array(rows, np.float32), model="forest")
    found = ask(running, f"/v1/tasks/{task}", model="forest", rows=rows)["data"]
    assert [entry["labels"] for entry in found] == [[asdict(label) for label in row] for row in expected]


def test_rows_of_a_table_whose_columns_have_names(running: Running, triton: GrpcClient) -> None:
    rows = [{"city": "Rome", "age": 20.0}, {"age": None, "city": "Lima"}]
    expected = triton.classify_rows({"city": ["Rome", "Lima"], "age": [20.0, None]}, model="shop")
    found = ask(running, "/v1/tasks/tabular-classification", model="shop", rows=rows)["data"]
    assert [entry["labels"] for entry in found] == [[asdict(label) for label in row] for row in expected]
    for wrong in ([rows[0], {"age": 1}], [rows[0], [1, 2]], [[1, 2], rows[0]]):
        body = {"model": "shop", "rows": wrong}
        status, told, _ = running.post("/v1/tasks/tabular-classification", body)
        assert status == 400 and told["error"]["message"].startswith("rows[1] has other columns than rows[0]")


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/tasks/nothing", {}, "there is no task nothing; there are"),
        ("/v1/classify", {"model": "names", "input": "x"}, "is for token-classification, not for"),
        ("/v1/classify", {"model": "mood", "input": []}, "input"),
        ("/v1/classify", {"model": "mood", "input": ["a", ["b", "c"]]}, "not both"),
        ("/v1/tasks/image-classification", {"model": "pictures", "image": "%"}, "in base64"),
        ("/v1/tasks/image-classification", {"model": "pictures", "image": "aGk="}, "image"),
        ("/v1/tasks/fill-mask", {"model": "cloze", "input": "no mask"}, "mask"),
        ("/predict", {"inputs": {"a": 1}}, "inputs must be"),
        ("/predict", {"inputs": "x", "raw_scores": True}, "raw_scores is not supported"),
        ("/embed", {"inputs": "x"}, "no model is served for sentence-similarity"),
        ("/rerank", {"query": "x", "texts": []}, "no document"),
    ],
)
def test_what_is_wrong_is_said_in_the_shape_of_each_api(
    running: Running, path: str, body: dict[str, Any], said: str
) -> None:
    status, told, _ = running.post(path, body)
    error = told["error"]
    assert status == 400 and said in (error if isinstance(error, str) else error["message"])
    if path in ("/predict", "/embed", "/rerank"):
        assert told["error_type"] == "Validation"


def test_coheres_client_reads_message(running: Running) -> None:
    status, told, _ = running.post("/v2/rerank", {"model": "nothing", "query": "x", "documents": ["y"]})
    assert status == 404 and told["message"].startswith("The model `nothing` does not exist;")
