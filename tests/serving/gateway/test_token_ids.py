"""Token ids in /v1/embeddings as OpenAI's tokenizer means them. The real file, and the client that sends such
ids, are in `tests.external_clients`."""

from __future__ import annotations

import base64
import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from serving.gateway import __main__ as command
from serving.gateway import cl100k
from serving.gateway.app import application
from serving.gateway.cl100k import Cl100k
from serving.gateway.errors import ApiError
from serving.gateway.settings import GatewaySettings, token_ids_of
from serving.service import Service
from shoal.errors import UsageError
from tests.serving.gateway.running import Running

TOKENS = [b"Fish", b" swim", " 日".encode()[:2], " 日".encode()[2:]]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small table in the form of OpenAI's."""
    content = b"".join(base64.b64encode(token) + b" %d\n" % place for place, token in enumerate(TOKENS))
    monkeypatch.setattr(cl100k, "SHA256", hashlib.sha256(content).hexdigest())
    (tmp_path / "cl100k_base.tiktoken").write_bytes(content)
    return tmp_path / "cl100k_base.tiktoken"


def test_ids_become_the_bytes_that_they_stand_for(file: Path) -> None:
    table = Cl100k.read(file)
    assert table.text([0, 1, 2, 3]) == "Fish swim 日"
    assert table.text([0, 100257]) == "Fish<|endoftext|>"
    assert table.text([0, 2]) == "Fish \ufffd"
    with pytest.raises(ApiError, match="input holds 4, which is no token"):
        table.text([0, 4])


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"IQ== 0\n")
    with pytest.raises(UsageError, match="it has another SHA-256"):
        Cl100k.read(tmp_path / "other")
    with pytest.raises(UsageError, match="No such file"):
        Cl100k.read(tmp_path / "nothing")


def test_what_flags_say(tmp_path: Path) -> None:
    assert token_ids_of(["a=cl100k", "b=refuse"]) == {"a": "cl100k", "b": "refuse"}
    for wrong in ("a", "a=own", "=cl100k"):
        with pytest.raises(UsageError, match="it must be MODEL=cl100k"):
            token_ids_of([wrong])
    with pytest.raises(UsageError, match="go together"):
        GatewaySettings(token_ids={"a": "cl100k"})
    with pytest.raises(UsageError, match="go together"):
        GatewaySettings(cl100k=tmp_path)


def test_the_vector_is_that_of_the_text(
    service: Service, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[GatewaySettings] = []
    monkeypatch.setattr(command, "run", lambda settings: told.append(settings) or 0)
    catalogue = service.health.replace("/health", "/catalogue")
    flags = [f"--triton={service.grpc}", f"--catalogue={catalogue}", "--token-ids=minilm=cl100k"]
    monkeypatch.setattr(sys, "argv", ["gateway", *flags, f"--cl100k={file}"])
    assert command.main() == 0
    (settings,) = told
    texts = ["Fish swim 日", "Fish", "Fish swim"]
    with TestClient(application(settings), base_url="http://127.0.0.1") as client:

        def embed(given: object) -> list[list[float]]:
            answer = client.post("/v1/embeddings", json={"model": "minilm", "input": given})
            assert answer.status_code == 200, answer.text
            return [entry["embedding"] for entry in answer.json()["data"]]

        expected = embed(texts)
        np.testing.assert_allclose(embed([[0, 1, 2, 3], [0], [0, 1]]), expected, atol=2e-3)
        np.testing.assert_allclose(embed([0, 1, 2, 3]), expected[:1], atol=2e-3)
        answer = client.post("/v1/embeddings", json={"model": "minilm", "input": [[9]]})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "input"


def test_the_refusal_says_what_to_do(running: Running) -> None:
    status, told, _ = running.post("/v1/embeddings", {"model": "minilm", "input": [[15339, 1917]]})
    assert status == 400 and told["error"]["code"] == "token_ids"
    assert "--token-ids MODEL=cl100k" in told["error"]["message"]
