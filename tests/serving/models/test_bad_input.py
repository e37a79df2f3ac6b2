"""Whatever is sent, the sender gets a clear error and everybody else goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from clients import BadInput, ClientError, GrpcClient, HttpClient, ServerFault, Timeout, UnknownModel
from clients.vocabulary import text_array
from serving.embedded import Server

Client = GrpcClient | HttpClient


def _bytes(*rows: bytes) -> dict[str, Any]:
    return {"text": np.array([[row] for row in rows], dtype=object)}


def _ids(ids: Any, mask: Any) -> dict[str, Any]:
    return {"input_ids": np.array(ids, np.int64), "attention_mask": np.array(mask, np.int64)}


CASES: dict[str, tuple[Callable[[Client], Any], type[ClientError], str]] = {
    "empty": (lambda c: c.embed(["fine", ""]), BadInput, "text 1 is empty; leave it out"),
    "blank": (lambda c: c.embed([" \n\t "]), BadInput, "text 0 is empty"),
    "100,000 characters": (
        lambda c: c.embed(["x" * 100_000]),
        BadInput,
        "text 0 has 100000 bytes, at most 32768 are accepted; the model reads the first 256 tokens",
    ),
    "not UTF-8": (
        lambda c: c.infer("minilm", _bytes(b"fine", b"bad \xff")),
        BadInput,
        "text 1 is not UTF-8: byte 4 is 0xff",
    ),
    "wrong dtype": (
        lambda c: c.infer("minilm", {"text": np.zeros((1, 1), np.float32)}),
        BadInput,
        "data-type is 'FP32', but model 'minilm' expects 'BYTES'",
    ),
    "wrong shape": (
        lambda c: c.infer("minilm", {"text": np.array([b"a"], dtype=object)}),
        BadInput,
        r"Expected \[-1,1\], got \[1\]",
    ),
    "wrong name": (
        lambda c: c.infer("minilm", {"txt": np.array([[b"a"]], dtype=object)}),
        BadInput,
        "unexpected inference input 'txt'",
    ),
    "no such dtype": (
        lambda c: c.infer("minilm", {"text": np.zeros((1, 1), np.complex64)}),
        BadInput,
        "input text is complex64",
    ),
    "10,000 texts at once": (
        lambda c: c.infer("minilm", text_array(["x"] * 10_000)),
        BadInput,
        "batch-size must be <= 64 for 'minilm'",
    ),
    "unknown model": (lambda c: c.embed(["x"], model="nope"), UnknownModel, "unknown model: 'nope'"),
    "unknown version": (
        lambda c: c.infer("minilm", text_array(["x"]), version="9"),
        UnknownModel,
        "'minilm' version 9 is not found",
    ),
    "a string for a list": (lambda c: c.embed("text"), BadInput, "texts is one string"),
    "no texts": (lambda c: c.embed([]), BadInput, "texts is empty"),
    "a number for a text": (lambda c: c.embed(["x", 3]), BadInput, "text 1 is int, not str"),
    "a lone surrogate": (lambda c: c.embed(["\ud800"]), BadInput, "text 0 cannot be encoded as UTF-8"),
    "a token outside the vocabulary": (
        lambda c: c.infer("minilm_encoder", _ids([[10**7]], [[1]])),
        BadInput,
        "ONNX Runtime: .*out of data bounds",
    ),
    "more tokens than positions": (
        lambda c: c.infer("minilm_encoder", _ids([[5] * 600], [[1] * 600])),
        ClientError,
        "ONNX Runtime: ",
    ),
    "inputs that do not fit each other": (
        lambda c: c.infer("minilm_encoder", _ids([[5] * 6], [[1] * 8])),
        ServerFault,
        "ONNX Runtime: ",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_clear_error_and_a_server_that_goes_on(client: Client, case: str) -> None:
    call, kind, said = CASES[case]
    with pytest.raises(kind, match=said):
        call(client)
    assert client.embed(["still here"]).shape == (1, 384)


def test_the_client_splits_what_is_too_much_for_one_request(client: Client) -> None:
    vectors = client.embed([f"text {n % 3}" for n in range(150)])
    assert vectors.shape == (150, 384)
    assert (vectors[0] * vectors[147]).sum() > 0.9999


def test_a_deadline_is_kept(client: Client) -> None:
    with pytest.raises(Timeout, match="no answer before the deadline"):
        client.embed(["many words " * 100] * 32, timeout=0.005)
    assert client.embed(["still here"]).shape == (1, 384)


def test_a_bad_request_does_not_harm_those_it_is_batched_with(server: Server) -> None:
    """Out-of-vocabulary tokens reach the network together with good requests and fail alone."""
    outcomes: list[tuple[bool, bool]] = []

    def call(n: int) -> None:
        bad = n % 4 == 0
        with GrpcClient(server.grpc) as client:
            for _ in range(10):
                try:
                    client.infer("minilm_encoder", _ids([[10**7 if bad else 5] * 4], [[1] * 4]))
                    outcomes.append((bad, True))
                except BadInput:
                    outcomes.append((bad, False))

    threads = [threading.Thread(target=call, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 160
    assert all(answered is not bad for bad, answered in outcomes)
