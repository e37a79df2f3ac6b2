"""`/tokenize`, `/detokenize` and `/decode`, against the original checkpoints' tokenizers in transformers."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from starlette.testclient import TestClient
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from clients.errors import Unavailable
from export.checkpoint.source import find_checkpoint
from export.encoder.recipe import SOURCE as ENCODER
from export.generation.checkpoint import find_decoder
from export.generation.recipe import SOURCE as DECODER
from serving.embedded import Server
from serving.gateway.app import application
from serving.gateway.errors import ApiError
from serving.gateway.http import Call
from serving.gateway.keys import KeyStore, Limits
from serving.gateway.models import Model, Models
from serving.gateway.protocols import tokens
from serving.gateway.service import Gateway
from serving.gateway.settings import GatewaySettings
from serving.gateway.tokenizing import MOST_KEPT, Tokenizers
from serving.ports import Ports
from serving.service import Service
from serving.supervisor.metrics import Metrics
from serving.supervisor.snapshot import ModelSpec
from tests import tiny
from tests.serving.gateway.running import Running
from tests.serving.gateway.servers import Servers, tell

TEXTS = [
    "Fish swim in shoals.",
    "北京天安门 and Москва, القاهرة, ไทย, हिन्दी",
    "👩‍👩‍👧 naïve é 𝒳\u200b\n\ttabs  and spaces ",
    "<|im_start|>user\n[CLS] [SEP] <|im_end|><|endoftext|>",
    "x" * 3000,
]


@pytest.fixture(scope="module")
def originals() -> dict[str, Any]:
    """The tokenizers as their authors publish them."""
    folders = {"minilm": find_checkpoint(ENCODER).folder, "smollm2": find_decoder(DECODER).folder}
    return {name: AutoTokenizer.from_pretrained(folder) for name, folder in folders.items()}


def ask(running: Running, path: str, **body: Any) -> Any:
    status, told, _ = running.post(path, body)
    assert status == 200, told
    return told


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("model", ["minilm", "smollm2"])
def test_tokens_in_vllms_form(running: Running, originals: dict[str, Any], model: str, special: bool) -> None:
    _, served, _ = running.get(f"/v1/models/{model}")
    for text in [*TEXTS, ""]:
        ids = originals[model](text, add_special_tokens=special).input_ids
        told = ask(running, "/tokenize", model=model, prompt=text, add_special_tokens=special)
        length = served["max_model_len"]
        assert told == {"count": len(ids), "max_model_len": length, "tokens": ids, "token_strs": None}
        told = ask(
            running,
            "/tokenize",
            model=model,
            prompt=text,
            add_special_tokens=special,
            return_token_strs=True,
        )
        assert told["token_strs"] == originals[model].convert_ids_to_tokens(ids)
        assert ask(running, "/detokenize", model=model, tokens=ids) == {
            "prompt": originals[model].decode(ids, skip_special_tokens=False)
        }


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("model", ["minilm", "smollm2"])
def test_tokens_in_the_form_of_text_embeddings_inference(
    running: Running, originals: dict[str, Any], model: str, special: bool
) -> None:
    """Its `start` and `stop` count bytes."""
    original = originals[model]
    rows = ask(running, "/tokenize", model=model, inputs=TEXTS, add_special_tokens=special)
    for text, row in zip(TEXTS, rows, strict=True):
        expected = original._tokenizer.encode(text, add_special_tokens=special)
        assert [token["id"] for token in row] == original(text, add_special_tokens=special).input_ids
        offsets = original(text, add_special_tokens=special, return_offsets_mapping=True)["offset_mapping"]
        for token, (start, stop), mask, name in zip(
            row, offsets, expected.special_tokens_mask, expected.tokens, strict=True
        ):
            assert token["special"] is bool(mask)
            if mask:
                assert (token["text"], token["start"], token["stop"]) == (name, None, None)
                continue
            assert (token["start"], token["stop"]) == (len(text[:start].encode()), len(text[:stop].encode()))
            assert text.encode()[token["start"] : token["stop"]].decode() == token["text"]
    for text, row in zip(TEXTS, rows, strict=True):
        assert ask(running, "/tokenize", model=model, inputs=text, add_special_tokens=special) == [row]
    ids = [[token["id"] for token in row] for row in rows]
    for skip in (True, False):
        found = ask(running, "/decode", model=model, ids=ids, skip_special_tokens=skip)
        assert found == [original._tokenizer.decode(row, skip_special_tokens=skip) for row in ids]
        assert ask(running, "/decode", model=model, ids=ids[1], skip_special_tokens=skip) == [found[1]]
    assert ask(running, "/decode", model=model, ids=ids) == ask(
        running, "/decode", model=model, ids=ids, skip_special_tokens=True
    )


def test_the_example_of_issue_494_in_bytes(running: Running) -> None:
    """BERT's tokenizer reads each of these characters, of three bytes in UTF-8, as a word."""
    (row,) = ask(running, "/tokenize", model="minilm", inputs="北京")
    assert [(token["text"], token["start"], token["stop"], token["special"]) for token in row] == [
        ("[CLS]", None, None, True),
        ("北", 0, 3, False),
        ("京", 3, 6, False),
        ("[SEP]", None, None, True),
    ]


def test_a_byte_level_vocabulary_without_these_characters() -> None:
    """Several tokens are one character; each of them names the whole of it."""
    made = Tokenizer.from_str(tiny.byte_level())
    found = tokens.tei_tokens(made, "a北", add_special_tokens=False)
    assert {(token.text, token.start, token.stop) for token in found[-3:]} == {("北", 1, 4)}


def test_the_count_is_what_the_models_count(running: Running, openai: OpenAI) -> None:
    text = "<|im_start|>user\nFish?<|im_end|>\n"
    answer = openai.completions.create(model="smollm2", prompt=text, max_tokens=1)
    assert answer.usage is not None
    assert ask(running, "/tokenize", model="smollm2", prompt=text)["count"] == answer.usage.prompt_tokens
    (row,) = ask(running, "/tokenize", model="minilm", inputs=text)
    assert len(row) == openai.embeddings.create(model="minilm", input=text).usage.prompt_tokens


def test_a_field_that_is_not_known_is_named(running: Running) -> None:
    for path, body in (("/tokenize", {"prompt": "x"}), ("/decode", {"ids": [101]})):
        status, _, headers = running.post(path, {"model": "minilm", **body, "truncate": True})
        assert status == 200 and headers["x-shoal-ignored"] == "truncate"


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/tokenize", {}, "send either prompt (vLLM's form) or inputs"),
        ("/tokenize", {"prompt": "x", "inputs": "x"}, "send either prompt"),
        ("/tokenize", {"prompt": ["x"]}, "prompt: Expected `str`"),
        ("/tokenize", {"prompt": "x", "model": ""}, "model must be the name"),
        ("/tokenize", {"prompt": "x"}, "several models are served with a tokenizer: name one as model"),
        ("/tokenize", {"prompt": "x", "model": "minilm", "add_special_tokens": 1}, "add_special_tokens"),
        ("/tokenize", {"prompt": "é" * (1 << 18) + "x", "model": "minilm"}, "has 524289 bytes of text"),
        ("/tokenize", {"messages": [], "model": "smollm2"}, "usage.prompt_tokens"),
        ("/tokenize", b'{"prompt": "\\ud800 x", "model": "minilm"}', "not JSON"),
        ("/tokenize", b'{"inputs": "\\udc00", "model": "minilm"}', "not JSON"),
        ("/tokenize", b"[]", "must be a JSON object"),
        ("/detokenize", {"model": "minilm"}, "tokens"),
        ("/detokenize", {"model": "minilm", "tokens": [-1]}, ">= 0"),
        ("/detokenize", {"model": "minilm", "tokens": [2**31]}, "<= 2147483647"),
        ("/detokenize", {"model": "minilm", "tokens": [10**30]}, "tokens"),
        ("/detokenize", {"model": "minilm", "tokens": [101, 30522]}, "30522, which is no token"),
        ("/detokenize", {"model": "minilm", "tokens": [True]}, "Expected `int`"),
        ("/detokenize", {"model": "minilm", "tokens": "x"}, "Expected `array`"),
    ],
)
def test_what_is_wrong_in_openais_shape(running: Running, path: str, body: Any, said: str) -> None:
    status, told, _ = running.post(path, body)
    assert status == 400 and said in told["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/tokenize", {"inputs": []}, "inputs is empty"),
        ("/tokenize", {"inputs": ["x", ""]}, "holds an empty text"),
        ("/tokenize", {"inputs": [1]}, "Expected `str`"),
        ("/tokenize", {"inputs": ["x"] * 1001}, "at most 1000"),
        ("/tokenize", {"inputs": ["x" * (1 << 18)] * 3}, "786432 bytes of text, at most 524288"),
        ("/tokenize", {"inputs": "x", "prompt_name": "query"}, "has no prompt of this name; it has none"),
        ("/tokenize", {"inputs": "x", "prompt_name": 1}, "prompt_name"),
        ("/decode", {}, "ids"),
        ("/decode", {"ids": []}, "ids is empty"),
        ("/decode", {"ids": [[101], []]}, "holds an empty list"),
        ("/decode", {"ids": [101, [101]]}, "not both"),
        ("/decode", {"ids": [[101]] * 1001}, "at most 1000"),
        ("/decode", {"ids": [101] * ((1 << 20) + 1)}, "at most 1048576"),
        ("/decode", {"ids": [[-1]]}, ">= 0"),
        ("/decode", {"ids": [[101, 30522]]}, "30522, which is no token"),
    ],
)
def test_what_is_wrong_in_the_shape_of_text_embeddings_inference(
    running: Running, path: str, body: dict[str, Any], said: str
) -> None:
    status, told, _ = running.post(path, {"model": "minilm", **body})
    assert (status, told["error_type"]) == (400, "Validation") and said in told["error"]


def test_a_model_that_there_is_not(running: Running) -> None:
    for path, body in (("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [1]})):
        status, told, _ = running.post(path, {"model": "nothing", **body})
        assert status == 404 and told["error"]["code"] == "model_not_found"
    for path, body in (("/tokenize", {"inputs": "x"}), ("/decode", {"ids": [1]})):
        status, told, _ = running.post(path, {"model": "nothing", **body})
        assert status == 404 and told["error"].startswith("The model `nothing` does not exist;")


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "keys.json")


def test_a_key_uses_its_models_only_and_its_tokens_are_counted(service: Service, store: KeyStore) -> None:
    limits = Limits(tokens_per_minute=1000)
    _, secret = store.add("embedder", models=["minilm"], limits=limits)
    catalogue = service.health.replace("/health", "/catalogue")
    settings = GatewaySettings([service.grpc], [catalogue], keys=store.path)
    with TestClient(application(settings), headers={"Authorization": f"Bearer {secret}"}) as client:
        asked = [client.post("/tokenize", json={"model": name, "prompt": "x"}) for name in ("smollm2", "no")]
        assert [each.status_code for each in asked] == [404, 404]
        assert asked[0].json() == json.loads(asked[1].text.replace("`no`", "`smollm2`"))

        def left_after(path: str, body: dict[str, Any]) -> int:
            # Without a name it is the only model that the key may use.
            assert client.post(path, json=body).status_code == 200
            return int(client.get("/v1/models").headers["x-ratelimit-remaining-tokens"])

        assert left_after("/tokenize", {"prompt": "fish " * 300}) == 1000 - 302
        assert left_after("/decode", {"ids": [101] * 100}) == 1000 - 402
        assert left_after("/tokenize", {"inputs": ["fish", "fish"]}) == 1000 - 408
        assert left_after("/detokenize", {"tokens": [101, 102]}) == 1000 - 410


PROMPTS = {"query": "query: ", "document": "passage: "}


def test_texts_get_their_prompt() -> None:
    plain, by_default = (
        Model(name="m", prompts=PROMPTS),
        Model(name="m", prompts=PROMPTS, default_prompt="query"),
    )
    assert tokens.prompt_of(plain, None) == "" and tokens.prompt_of(by_default, None) == "query: "
    assert tokens.prompt_of(by_default, "document") == "passage: "
    with pytest.raises(ApiError, match="it has query, document"):
        tokens.prompt_of(plain, "nothing")
    assert tokens.inputs_of(["a", "b"], "query: ") == ["query: a", "query: b"]


def _gateway(*models: Model) -> Gateway:
    made = Gateway(GatewaySettings())
    made.replicas = Servers()
    for each in made.replicas.each:
        tell(each, *models)
    return made


def _call() -> Call:
    return Call("", {}, b"", {}, None, 1e9)


def test_which_model_is_asked() -> None:
    asyncio.run(_which_model_is_asked())


async def _which_model_is_asked() -> None:
    forest, decoder, other = Model(name="forest"), Model(name="decoder", tokenizer=True), Model(name="other")
    assert _gateway(forest, decoder).tokenizing(_call(), None).name == "decoder"
    assert _gateway(forest, decoder).tokenizing(_call(), "decoder").name == "decoder"
    with pytest.raises(ApiError, match="The model `forest` has no tokenizer") as found:
        _gateway(forest, decoder).tokenizing(_call(), "forest")
    assert found.value.status == 400
    with pytest.raises(ApiError, match="no model is served with a tokenizer"):
        _gateway(forest, other).tokenizing(_call(), None)


class _Supervisors(Servers):
    """Servers whose supervisors give a tokenizer.

    Attributes:
        given: names and versions of the models that they were asked for.
        content: of the file; an error is raised.
    """

    def __init__(self, content: bytes | Exception) -> None:
        super().__init__()
        self.given: list[tuple[str, int]] = []
        self.content = content
        for each in self.each:
            each.models.tokenizer = self._tokenizer  # type: ignore[method-assign]

    async def _tokenizer(self, model: Model) -> bytes:
        self.given.append((model.name, model.version))
        await asyncio.sleep(0.01)
        if isinstance(self.content, Exception):
            raise self.content
        return self.content

    def serve(self, *models: Model) -> None:
        for each in self.each:
            tell(each, *models)


def _padded() -> bytes:
    made = Tokenizer.from_str(tiny.wordpiece())
    made.enable_truncation(2)
    made.enable_padding(length=7)
    return made.to_str().encode()


def test_a_tokenizer_is_read_once_for_a_version() -> None:
    async def run() -> None:
        servers, first, second = (
            _Supervisors(_padded()),
            Model(name="m", version=1),
            Model(name="m", version=2),
        )
        servers.serve(first)
        made = Tokenizers(servers)
        leaving = asyncio.create_task(made.of(first))
        await asyncio.sleep(0)
        others = [asyncio.create_task(made.of(first)) for _ in range(3)]
        await asyncio.sleep(0)
        leaving.cancel()
        found = await asyncio.gather(*others)
        assert servers.given == [("m", 1)] and found[0] is found[2]
        # It neither truncates nor pads, whatever the file says.
        assert len(found[0].encode("a b c d", add_special_tokens=False)) == 4
        servers.serve(second)
        assert await made.of(second) is not found[0]
        assert servers.given == [("m", 1), ("m", 2)]

    asyncio.run(run())


def test_those_that_were_not_asked_for_the_longest_go_first() -> None:
    async def run() -> None:
        servers = _Supervisors(_padded())
        models = [Model(name=f"m{number}") for number in range(MOST_KEPT + 1)]
        servers.serve(*models)
        made = Tokenizers(servers)
        for model in [*models[:-1], models[0], models[-1], models[0], models[1]]:
            await made.of(model)
        assert [name for name, _ in servers.given] == [*(model.name for model in models), "m1"]

    asyncio.run(run())


def test_a_failure_is_not_kept() -> None:
    async def run() -> None:
        servers, model = _Supervisors(OSError("no answer")), Model(name="m")
        servers.serve(model)
        made = Tokenizers(servers)
        for content in (Unavailable("no answer"), b"{", b"\xff", b"[]"):
            servers.content = content
            with pytest.raises(Unavailable):
                await made.of(model)
        servers.content = _padded()
        assert (await made.of(model)).token_to_id("[CLS]") is not None

    asyncio.run(run())


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Metrics]:
    folder = tmp_path / "m ä" / "3"
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_bytes(b"{}")
    made = Metrics("127.0.0.1", 0, lambda: {"m ä": ModelSpec("", (3,))})
    made.started(Server(os.getpid(), 0.0, Ports(8100, 8101, 8102), tmp_path, tmp_path), 1.0)
    yield made
    made.close()


def test_the_file_is_that_of_the_version_that_was_listed(supervisor: Metrics) -> None:
    async def run() -> None:
        models = Models(f"http://127.0.0.1:{supervisor.port}/catalogue")
        assert await models.tokenizer(Model(name="m ä", version=3)) == b"{}"
        with pytest.raises(Unavailable, match="another version"):
            await models.tokenizer(Model(name="m ä", version=2))
        with pytest.raises(Unavailable, match="cannot be had"):
            await models.tokenizer(Model(name="other", version=3))

    asyncio.run(run())
