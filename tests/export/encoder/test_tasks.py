"""Every task over the wire, on a real Triton, against what the models' own library makes of the same input.

Models are tiny and random, their answers far from constant: what is compared is the whole way from what a
person sends to what a person gets.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers import models as st_models
from transformers import AutoTokenizer, pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from clients import AsyncGrpcClient, BadInput, GrpcClient, HttpClient
from export.checkpoint.source import find_checkpoint
from export.encoder import verify
from export.encoder.recipe import EncoderRecipe
from export.encoder.tasks import TASKS, task_of
from export.encoder.tasks.images import sample_image
from export.run import export, verify_wire
from serving.embedded import Server, running
from shoal import corpus
from shoal.errors import ExportError, UsageError
from shoal.tasks import outputs_of
from tests import tiny

Client = GrpcClient | HttpClient
NLI = {0: "contradiction", 1: "neutral", 2: "entailment"}
TAGS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
CHECKPOINTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "mood": (
        "BertForSequenceClassification",
        {
            "num_labels": 3,
            "id2label": {0: "bad", 1: "fair", 2: "good"},
            "label2id": {"bad": 0, "fair": 1, "good": 2},
        },
        "text-classification",
    ),
    "topics": (
        "RobertaForSequenceClassification",
        {"num_labels": 4, "problem_type": "multi_label_classification"},
        "text-classification",
    ),
    "grade": (
        "DistilBertForSequenceClassification",
        {"num_labels": 1, "problem_type": "regression"},
        "text-classification",
    ),
    "ranker": (
        "BertForSequenceClassification",
        {"num_labels": 1, "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}},
        "text-ranking",
    ),
    "nli": (
        "BertForSequenceClassification",
        {"num_labels": 3, "id2label": NLI, "label2id": {name: index for index, name in NLI.items()}},
        "zero-shot-classification",
    ),
    "names": ("BertForTokenClassification", {"num_labels": 5, "id2label": TAGS}, "token-classification"),
    "squad": ("RobertaForQuestionAnswering", {}, "question-answering"),
    "cloze": ("RobertaForMaskedLM", {}, "fill-mask"),
    "pictures": ("ViTForImageClassification", {"num_labels": 7}, "image-classification"),
    "vectors": ("MPNetModel", {}, "sentence-similarity"),
}
TEXTS = [*corpus.texts(5, seed=3), "Guido van Rossum wrote Python, in Amsterdam."]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, (architecture, config, _) in CHECKPOINTS.items():
        if name == "pictures":
            tiny.make_vit(folder / name, **config)
        else:
            tiny.make(folder / name, architecture, **config)
    # As sentence-transformers saves it: pooling of the last token, no normalization, prompts.
    embedder = SentenceTransformer(
        modules=[
            st_models.Transformer(str(folder / "vectors")),
            st_models.Pooling(tiny.SIZES["hidden_size"], pooling_mode="lasttoken"),
        ],
        prompts={"query": "query: "},
        device="cpu",
    )
    embedder.save(str(folder / "vectors"))
    return {name: str(folder / name) for name in CHECKPOINTS}


@pytest.fixture(scope="module")
def served(checkpoints: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One Triton with all of them."""
    repository = tmp_path_factory.mktemp("tasks") / "model_repository"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "SPEED_ROUNDS", 1)
        for name, source in checkpoints.items():
            task = CHECKPOINTS[name][2]
            asked = task if task == "zero-shot-classification" else None  # no config tells of this one
            recipe = EncoderRecipe(source=source, name=name, task=asked, precisions=("fp32",))
            assert export(recipe, repository).task == task
    with running(repository) as server:
        yield server


@pytest.fixture(scope="module", params=["grpc", "http"])
def caller(request: pytest.FixtureRequest, served: Server) -> Iterator[Client]:
    kind = {"grpc": GrpcClient, "http": HttpClient}[request.param]
    with kind(getattr(served, request.param)) as client:
        yield client


def same(got: Any, expected: Any) -> None:
    """Labels equal and in one order, scores within 1e-3."""
    assert [entry.label for entry in got] == [entry["label"] for entry in expected]
    np.testing.assert_allclose(
        [entry.score for entry in got], [entry["score"] for entry in expected], atol=1e-3
    )


def original(task: str, source: str, **options: Any) -> Any:
    return pipeline(task, model=source, device="cpu", **options)


@pytest.mark.parametrize("model", ["mood", "topics", "grade"])
def test_text_classification(caller: Client, checkpoints: dict[str, str], model: str) -> None:
    expected = original("text-classification", checkpoints[model], top_k=None)(TEXTS)
    for got, wanted in zip(caller.classify(TEXTS, model=model), expected, strict=True):
        same(got, wanted)


def test_pairs_of_texts(caller: Client, checkpoints: dict[str, str]) -> None:
    pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
    ask = original("text-classification", checkpoints["mood"], top_k=None)
    got = caller.classify(pairs, model="mood")
    for (text, text_pair), labels in zip(pairs, got, strict=True):
        same(labels, ask({"text": text, "text_pair": text_pair}))
    assert got != caller.classify([text for text, _ in pairs], model="mood")


def test_text_ranking(caller: Client, checkpoints: dict[str, str]) -> None:
    encoder = CrossEncoder(checkpoints["ranker"], device="cpu")
    expected = encoder.predict([(TEXTS[0], text) for text in TEXTS])
    np.testing.assert_allclose(caller.rank(TEXTS[0], TEXTS, model="ranker"), expected, atol=1e-3)


def test_zero_shot_classification(caller: Client, checkpoints: dict[str, str]) -> None:
    labels = ["politics", "a very long label about the Python language", "fish"]
    ask = original("zero-shot-classification", checkpoints["nli"])
    alone = ask(TEXTS, labels, multi_label=True)
    for index, (got, wanted) in enumerate(
        zip(caller.zero_shot(TEXTS, labels, model="nli"), ask(TEXTS, labels), strict=True)
    ):
        same(
            got,
            [{"label": n, "score": s} for n, s in zip(wanted["labels"], wanted["scores"], strict=True)],
        )
        by_itself = dict(zip(alone[index]["labels"], alone[index]["scores"], strict=True))
        for entry in got:
            assert entry.independent == pytest.approx(by_itself[entry.label], abs=1e-3)


def test_token_classification(caller: Client, checkpoints: dict[str, str]) -> None:
    ask = original("token-classification", checkpoints["names"], aggregation_strategy="simple")
    got = caller.entities(TEXTS, model="names")
    for text, entities, expected in zip(TEXTS, got, ask(TEXTS), strict=True):
        same(entities, [{"label": e["entity_group"], "score": e["score"]} for e in expected])
        assert [(e.start, e.end) for e in entities] == [(e["start"], e["end"]) for e in expected]
        assert all(text[e.start : e.end] == e.word for e in entities)
    assert len({len(entities) for entities in got}) > 1  # rows of different lengths in one response


@pytest.mark.skipif(
    "question-answering" not in PIPELINE_REGISTRY.get_supported_tasks(),
    reason="transformers 5 has no such pipeline to compare with",
)
def test_question_answering(caller: Client, checkpoints: dict[str, str]) -> None:
    ask = original("question-answering", checkpoints["squad"])
    long = " ".join(sorted(corpus.passages(), key=len)[-2:])[:3000]  # several windows
    for question, context in [
        ("What is Python?", TEXTS[-1]),
        ("Which statement?", long),
        ("é — ü?", "ß “ü”"),
        # No window slides, so the question need not leave room for its stride.
        ("why " * 60, "Fish swim in shoals."),
    ]:
        got = caller.answer(question, context, model="squad")
        expected = ask(question=question, context=context)
        assert (got.answer, got.start, got.end) == (expected["answer"], expected["start"], expected["end"])
        assert got.score == pytest.approx(expected["score"], abs=1e-3)
        maybe = ask(question=question, context=context, handle_impossible_answer=True)
        assert got.no_answer > got.score or maybe["answer"] == got.answer
        if not maybe["answer"]:
            assert got.no_answer == pytest.approx(maybe["score"], abs=1e-3)


def test_fill_mask(caller: Client, checkpoints: dict[str, str]) -> None:
    texts = ["Fish <mask> in shoals.", "The <mask> statement is used when a name is not found."]
    ask = original("fill-mask", checkpoints["cloze"])
    for got, expected in zip(caller.fill_mask(texts, model="cloze"), ask(texts), strict=True):
        same(got, [{"label": e["token_str"], "score": e["score"]} for e in expected])
    with pytest.raises(BadInput, match="text 0 has 0 times <mask>"):
        caller.fill_mask(["no mask"], model="cloze")


def test_image_classification(caller: Client, checkpoints: dict[str, str]) -> None:
    files = [sample_image(index) for index in range(4)]
    ask = original("image-classification", checkpoints["pictures"], top_k=5, use_fast=False)
    for content, got in zip(files, caller.classify_images(files, model="pictures"), strict=True):
        same(got, ask(Image.open(io.BytesIO(content))))


def test_embedding_of_the_last_token(caller: Client, checkpoints: dict[str, str]) -> None:
    embedder = SentenceTransformer(checkpoints["vectors"], device="cpu")
    np.testing.assert_allclose(
        caller.embed(TEXTS, model="vectors"), embedder.encode(TEXTS), rtol=0, atol=1e-3
    )
    got = caller.embed(TEXTS, model="vectors", prompt="query")
    np.testing.assert_allclose(got, embedder.encode(TEXTS, prompt_name="query"), rtol=0, atol=1e-3)
    with pytest.raises(BadInput, match="prompt_name.*poem.*query"):
        caller.embed(TEXTS, model="vectors", prompt="poem")


def counted(client: Client, model: str, **columns: list[list[str]]) -> list[int]:
    """`num_input_tokens` of each row; besides it there are the outputs of the task, and no others."""
    arrays = {
        name: np.array([[text.encode() for text in row] for row in rows], object)
        for name, rows in columns.items()
    }
    got = client.infer(model, arrays)
    assert got.keys() == {*outputs_of(CHECKPOINTS[model][2]), "num_input_tokens"}
    assert got["num_input_tokens"].dtype == np.int32
    return [int(tokens) for (tokens,) in got["num_input_tokens"]]


def lengths(source: str, *texts: list[str], **options: Any) -> list[int]:
    """How many tokens transformers' own tokenizer makes of each text, or of each pair of texts."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    return [len(ids) for ids in tokenizer(*texts, truncation=True, **options)["input_ids"]]


def test_tokens_of_a_text_or_a_pair(caller: Client, checkpoints: dict[str, str]) -> None:
    texts = [*TEXTS, "fish and fowl " * 300]
    rows, others = [[text] for text in texts], [[text] for text in reversed(texts)]
    for model in ("mood", "topics", "grade", "names"):
        expected = lengths(checkpoints[model], texts)
        assert counted(caller, model, text=rows) == expected and len(set(expected)) > 3
    pairs = [[text, other] for (text,), (other,) in zip(rows, others, strict=True)]
    expected = lengths(checkpoints["mood"], texts, texts[::-1])
    assert counted(caller, "mood", text=pairs) == expected
    assert counted(caller, "ranker", query=rows, text=others) == lengths(
        checkpoints["ranker"], texts, texts[::-1]
    )
    masked = ["Fish <mask> in shoals.", "<mask>"]
    assert counted(caller, "cloze", text=[[text] for text in masked]) == lengths(checkpoints["cloze"], masked)


def test_tokens_of_a_prompt_count(caller: Client, checkpoints: dict[str, str]) -> None:
    rows, prompts = [[text] for text in TEXTS], [["query"]] * len(TEXTS)
    assert counted(caller, "vectors", text=rows) == lengths(checkpoints["vectors"], TEXTS)
    expected = lengths(checkpoints["vectors"], [f"query: {text}" for text in TEXTS])
    assert counted(caller, "vectors", text=rows, prompt_name=prompts) == expected


def test_tokens_of_all_hypotheses_of_a_row(caller: Client, checkpoints: dict[str, str]) -> None:
    labels = ["politics", "a very long label about the Python language", "fish"]
    expected = [
        sum(lengths(checkpoints["nli"], [text] * 3, [f"This example is {label}." for label in labels]))
        for text in TEXTS
    ]
    got = counted(caller, "nli", text=[[text] for text in TEXTS], candidate_labels=[labels] * len(TEXTS))
    assert got == expected


def test_tokens_of_all_windows_of_a_row(caller: Client, checkpoints: dict[str, str]) -> None:
    """The row of one window is filled up to as many as the other has, and what fills it up does not count."""
    asked = ["What is Python?", "Which statement?"]
    contexts = [TEXTS[-1], " ".join(sorted(corpus.passages(), key=len)[-2:])[:3000]]
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["squad"])
    stride = min(128, tokenizer.model_max_length // 2)  # that of transformers' pipeline
    how = {"truncation": "only_second", "return_overflowing_tokens": True, "stride": stride}
    windows = [tokenizer(*pair, **how)["input_ids"] for pair in zip(asked, contexts, strict=True)]
    assert [len(made) > 1 for made in windows] == [False, True]
    got = counted(caller, "squad", question=[[q] for q in asked], context=[[c] for c in contexts])
    assert got == [sum(map(len, made)) for made in windows]


def test_a_picture_has_no_tokens(caller: Client) -> None:
    assert [output["name"] for output in caller.metadata("pictures")["outputs"]] == ["label", "score"]


def _png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"GIF89a", "image 0 is not the content of a PNG or JPEG file"),
        (b"", "image 0 is not the content of a PNG or JPEG file"),
        (sample_image(1)[:200], "image 0 is a broken file"),
        (_png(10_000, 10_000), "image 0 has 10000 x 10000 pixels, at most 50000000"),
    ],
)
def test_bad_images(caller: Client, content: bytes, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        caller.classify_images([content], model="pictures")


def test_bad_rows(caller: Client) -> None:
    with pytest.raises(BadInput, match="question 0 has .* tokens, at most"):
        caller.answer("why " * 200, "because", model="squad")
    with pytest.raises(BadInput, match="the sentence on label 0 has .* tokens"):
        caller.zero_shot(["text"], ["label " * 200], model="nli")
    with pytest.raises(BadInput, match="the request makes 80 sequences of tokens, at most 64"):
        caller.zero_shot(["text"] * 8, [f"label {n}" for n in range(10)], model="nli", batch_size=8)
    with pytest.raises(BadInput, match="candidate_labels 0 is empty"):
        caller.zero_shot(["text"], ["fish", ""], model="nli")
    with pytest.raises(BadInput, match="image 0 is str, not bytes"):
        caller.classify_images(["picture.png"], model="pictures")
    three = np.array([[b"a", b"b", b"c"]], object)
    with pytest.raises(BadInput, match="a row is one text or a pair of texts, this one has 3"):
        caller.infer("mood", {"text": three})


def test_the_asyncio_client_gives_the_same(served: Server) -> None:
    async def ask() -> list[Any]:
        async with AsyncGrpcClient(served.grpc) as client:
            return [
                await client.classify(TEXTS, model="mood", batch_size=2),
                await client.entities(TEXTS, model="names"),
                await client.answer("What?", TEXTS[-1], model="squad"),
                await client.zero_shot(TEXTS, ["fish", "fowl"], model="nli"),
                await client.rank("fish", TEXTS, model="ranker"),
                await client.fill_mask(["a <mask>"], model="cloze"),
                await client.classify_images([sample_image(0)], model="pictures"),
            ]

    with GrpcClient(served.grpc) as client:
        assert asyncio.run(ask()) == [
            client.classify(TEXTS, model="mood"),
            client.entities(TEXTS, model="names"),
            client.answer("What?", TEXTS[-1], model="squad"),
            client.zero_shot(TEXTS, ["fish", "fowl"], model="nli"),
            client.rank("fish", TEXTS, model="ranker"),
            client.fill_mask(["a <mask>"], model="cloze"),
            client.classify_images([sample_image(0)], model="pictures"),
        ]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_raw_inputs_over_the_wire(served: Server, name: str) -> None:
    manifest, answers = verify_wire(name, served.repository, served.grpc)
    measured = manifest.evidence["raw"]
    if name == "squad" and "question-answering" not in PIPELINE_REGISTRY.get_supported_tasks():
        assert answers.inputs == measured["inputs"] == 0
        assert "has no question-answering pipeline" in str(measured["notes"])
        return
    assert answers.failures == [] and answers.inputs >= 5
    assert [answers.inputs, answers.tokens] == [measured["inputs"], measured["tokens"]]
    assert answers.agreement == measured["agreement"] == 1.0


def test_another_model_behind_the_name_is_seen_over_the_wire(served: Server, tmp_path: Path) -> None:
    architecture, config, _ = CHECKPOINTS["mood"]
    tiny.make(tmp_path / "other", architecture, seed=1, **config)
    export(
        EncoderRecipe(source=str(tmp_path / "other"), name="mood", precisions=("fp32",)),
        tmp_path / "repository",
    )
    _, answers = verify_wire("mood", tmp_path / "repository", served.grpc)
    assert answers.agreement < 0.9
    assert "the original gives" in answers.failures[0] and "this version" in answers.failures[0]


def test_tasks_that_cannot_be(checkpoints: dict[str, str], tmp_path: Path) -> None:
    mood = find_checkpoint(checkpoints["mood"])
    with pytest.raises(UsageError, match="unknown task poetry.*known: sentence-similarity, "):
        task_of(mood, "poetry")
    for task, said in [
        ("token-classification", "is a BertForSequenceClassification, which has no head"),
        ("zero-shot-classification", "has no class named entailment, only bad, fair, good"),
        ("text-ranking", "has 3 classes, a reranker has one"),
    ]:
        with pytest.raises(ExportError, match=said):
            export(EncoderRecipe(source=checkpoints["mood"], name="x", task=task), tmp_path / "repository")
    bare = tiny.make(tmp_path / "bare", "BertModel")
    with pytest.raises(ExportError, match="bare has no weights for fill-mask: cls"):
        export(EncoderRecipe(source=str(bare), name="x", task="fill-mask"), tmp_path / "repository")
    assert task_of(mood, "feature-extraction") is TASKS["sentence-similarity"]
